"""Trajectories inside a net: how far clean and perturbed ones come apart, and how fast the field lets them.

A residual block is a step of size 1/K, so that all nets share the time t in [0, 1]: z + f(z) has the velocity K·f(z),
and a block f(z) without residual connection the velocity K·(f(z) - z).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import provenance
from pipeline.files import digest
from pipeline.ode import solve
from pipeline.ode.solve import VectorField
from pipeline.seeds import derive_seed
from pipeline.trajectory import NOISE, Trace, Trajectory

TIMES = 6  # equal parts of [0, 1] at which an adaptive solver's trajectory is looked at
LANCZOS_STEPS = 30  # by 20 the default nets have reached four digits
Images = dict[int, Tensor]


@dataclass(frozen=True)
class Perturbation:
    """An attack's name and strength, and what it made of some images: index in the split to (C, H, W)."""

    name: str
    epsilon: float | None
    images: Images


@dataclass(frozen=True)
class Path:
    """States at ``times``, (K + 1) of shape (B, ...), and the velocity at any time and state."""

    times: tuple[float, ...]
    states: list[Tensor]
    velocities: Sequence[VectorField]  # one for each step


def kept_images(tensors: dict[str, Tensor], seed: int, epsilon: float | None) -> Images:
    """The attacked images within ``epsilon`` of those that ``pipeline.attacking`` stored: index to (C, H, W).

    One that fell at a lower strength was not attacked again and is that of its fall.
    """
    prefix = f"seed{seed}/eps"
    strengths = {
        name: name.removeprefix(prefix).removesuffix("/index")
        for name in tensors
        if name.startswith(prefix) and name.endswith("/index")
    }
    sizes = {name: 0.0 if strength == "minimal" else float(strength) for name, strength in strengths.items()}
    images: Images = {}
    for name in sorted(sizes, key=sizes.__getitem__):
        if epsilon is None or sizes[name] <= epsilon:
            adv_inputs = tensors[name.removesuffix("index") + "adv_inputs"]
            images |= dict(zip(tensors[name].tolist(), adv_inputs, strict=True))
    return images


@torch.no_grad()
def follow(body: nn.Module, z: Tensor) -> Path | None:
    """The states of a net's body from z (B, ...) on; None where nothing says what a step is, or there is none."""
    if isinstance(body, nn.Sequential):
        return _through_blocks(list(body), z) if len(body) else None
    if not hasattr(body, "field"):
        return None
    field, parameters = body.field.bind(z)  # type: ignore[operator, union-attr]
    if hasattr(body, "blocks"):
        blocks: Any = body.blocks
        states = [z]
        for k in range(blocks):
            states.append(states[-1] + field(torch.tensor(k / blocks, dtype=z.dtype), states[-1]) / blocks)
        return Path(_grid(blocks), states, [field] * blocks)
    solver: Any = body.solver
    n_steps = solver.steps or TIMES
    states = [z]
    for k in range(1, n_steps + 1):  # each from the start: the last is what the head reads, whatever the method
        until = replace(solver, steps=k) if solver.steps else solver
        states.append(solve(field, z, t0=0.0, t1=k / n_steps, config=until, parameters=parameters).z1)
    return Path(_grid(n_steps), states, [field] * n_steps)


def _through_blocks(blocks: list[nn.Module], z: Tensor) -> Path:
    states = [z]
    for block in blocks:
        states.append(block(states[-1]))

    def velocity(block: nn.Module) -> VectorField:
        return lambda _t, state: (block(state) - state) * len(blocks)

    return Path(_grid(len(blocks)), states, [velocity(block) for block in blocks])


def _grid(n_steps: int) -> tuple[float, ...]:
    return tuple(k / n_steps for k in range(n_steps + 1))


@torch.no_grad()
def log_norm(function: Callable[[Tensor], Tensor], z: Tensor, *, steps: int = LANCZOS_STEPS) -> Tensor:
    """μ₂ = λ_max((J + Jᵀ)/2) of a function's Jacobian J at each of z's samples, by Lanczos' method.

    The result lies below the eigenvalue, and on it once ``steps`` reaches the size of a state.

    Args:
        function: (B, ...) to the same shape, sample by sample.
        z: (B, ...).
        steps: products with J + Jᵀ, of all samples together.
    Returns:
        (B,).
    """
    shape, size = z.shape, z[0].numel()
    steps = min(steps, size)
    generator = torch.Generator().manual_seed(derive_seed(0, "lanczos"))
    random = torch.randn(steps, size, generator=generator, dtype=z.dtype).to(z.device)
    with torch.enable_grad():
        at = z.detach().requires_grad_()
        velocity, cotangent = function(at), torch.zeros_like(z, requires_grad=True)
        pulled = torch.autograd.grad(velocity, at, cotangent, create_graph=True)[0]  # Jᵀ cotangent: its gradient is J

    def product(v: Tensor) -> Tensor:
        backward = torch.autograd.grad(velocity, at, v.view(shape), retain_graph=True)[0]
        forward = torch.autograd.grad(pulled, cotangent, v.view(shape), retain_graph=True)[0]
        return ((forward + backward) / 2).flatten(1)

    def beyond(v: Tensor) -> Tensor:
        """The part of v outside the basis; in floating point twice is enough, and once is not (Parlett)."""
        for _ in range(2):
            v = v - torch.einsum("bkn,bk->bn", basis, torch.einsum("bkn,bn->bk", basis, v))
        return v

    def fresh(k: int) -> Tensor:
        """A random unit vector outside the basis, the same for all samples: none depends on the others."""
        v = beyond(random[k].expand(len(z), size))
        unit: Tensor = v / v.norm(dim=1, keepdim=True)
        return unit

    basis = z.new_empty(len(z), 0, size)
    v, diagonal, beside = fresh(0), list[Tensor](), list[Tensor]()
    for k in range(1, steps + 1):
        w = product(v)
        diagonal.append((w * v).sum(1))
        basis = torch.cat((basis, v[:, None]), dim=1)
        if k < steps:
            scale, w = w.norm(dim=1), beyond(w)
            length = w.norm(dim=1)
            spent = length <= 10 * torch.finfo(z.dtype).eps * scale  # an invariant subspace: go on beside it
            v = torch.where(spent[:, None], fresh(k), w / length[:, None])
            beside.append(length.masked_fill(spent, 0))
    tridiagonal = torch.diag_embed(torch.stack(diagonal, 1))
    if beside:
        off = torch.diag_embed(torch.stack(beside, 1), offset=1)
        tridiagonal = tridiagonal + off + off.mT
    eigenvalues: Tensor = torch.linalg.eigvalsh(tridiagonal)
    return eigenvalues[:, -1]


def trace(net: nn.Module, inputs: Tensor, perturbations: Sequence[Perturbation]) -> Trajectory | None:
    """Clean trajectories of some images, and how far the perturbed ones lie from them.

    Args:
        net: stem, body, head; for any other net, and for a body without steps, the result is None.
        inputs: (N, C, H, W), the images of indices 0 to N - 1.
        perturbations: of any of these images; noise is added to them.
    """
    if not (isinstance(net, nn.Sequential) and len(net) == 3):
        return None
    with torch.no_grad():
        clean = follow(net[1], net[0](inputs))
    if clean is None:
        return None
    found = [_compare(net, clean, one, inputs) for one in (*perturbations, *_noise(inputs, perturbations))]
    finite = torch.stack([state.flatten(1).isfinite().all(1) for state in clean.states]).all(0)
    if not finite.any():
        return None
    steps = zip(clean.times[:-1], clean.states[:-1], clean.velocities, strict=True)
    norms = [log_norm(partial(velocity, torch.tensor(t)), z[finite]).mean().item() for t, z, velocity in steps]
    return Trajectory(clean.times, tuple(norms), tuple(one for one in found if one is not None))


def _noise(inputs: Tensor, perturbations: Sequence[Perturbation]) -> list[Perturbation]:
    """Random directions, each of the ℓ2 size of the first perturbation of its image."""
    generator = torch.Generator().manual_seed(derive_seed(0, NOISE))
    images = {}
    for first in perturbations[:1]:
        for index, image in sorted(first.images.items()):
            direction = torch.randn(image.shape, generator=generator)
            size = (image - inputs[index]).norm()
            images[index] = inputs[index] + direction * size / direction.norm()
    return [Perturbation(NOISE, None, images)] if images else []


@torch.no_grad()
def _compare(net: nn.Sequential, clean: Path, perturbation: Perturbation, inputs: Tensor) -> Trace | None:
    """None if no image was changed."""
    # An unchanged image's distance is 0 but for round-off, which differs between batches.
    index = [i for i, image in sorted(perturbation.images.items()) if not torch.equal(image, inputs[i])]
    if not index:
        return None
    other = follow(net[1], net[0](torch.stack([perturbation.images[i] for i in index])))
    assert other is not None
    states = [z[index].flatten(1).double() for z in clean.states]
    distance = torch.stack([(z.flatten(1) - own).norm(dim=1) for z, own in zip(other.states, states, strict=True)])
    relative = distance / torch.stack([own.norm(dim=1) for own in states])
    ratio, times = distance / distance[0], torch.tensor(clean.times)
    # A net that forgets a perturbation altogether has the slope of the smallest number.
    rate = ratio.clamp(min=torch.finfo(ratio.dtype).tiny).log().diff(dim=0) / times.diff()[:, None]
    good = torch.cat((ratio, relative, rate)).isfinite().all(0)  # the stem saw no change, or a solver gave up
    if not good.any():
        return None
    means = (tuple(measure[:, good].mean(1).tolist()) for measure in (ratio, relative, rate))
    return Trace(perturbation.name, perturbation.epsilon, int(good.sum()), *means)


def trace_key(
    weights_sha256: str, kind: str, config: Any, data_sha256: str, perturbations: Sequence[Perturbation]
) -> str:
    """Hash of everything that determines the numbers."""
    images = [
        [one.name, one.epsilon, [[index, _sha256(image)] for index, image in sorted(one.images.items())]]
        for one in perturbations
    ]
    return digest(
        {
            "weights": weights_sha256,
            "model": [kind, asdict(config)],
            "data": data_sha256,
            "perturbations": images,
            "code": provenance.code_hash(["pipeline.tracing", f"pipeline.models.{kind}"]),
            "environment": provenance.environment(),
        }
    )


def _sha256(image: Tensor) -> str:
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()
