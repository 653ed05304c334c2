"""``python -m benchmarks.gradients``: PGD by true and by adjoint gradients of the same Neural ODE.

The net of the default run predicts with steps that are more and more coarse. An attacker differentiates either that
very computation (backprop through the solver) or the continuous flow that it approximates (the adjoint equations,
solved with the same tolerance). Success is that of the same predictions, so the difference is the gradient's alone.
"""

from __future__ import annotations

import dataclasses
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from pipeline import components
from pipeline.attacks.base import ExampleRng
from pipeline.attacks.losses import value_and_gradient
from pipeline.config import Params, load_params
from pipeline.datasets.base import read_card, read_split
from pipeline.errors import UserError
from pipeline.folders import DATA
from pipeline.nets import load_target
from pipeline.ode import SolverConfig
from pipeline.report.style import line_style, save_png, styled
from pipeline.settings import Component

MODEL, SEED, IMAGES = "neural_ode", 0, 100
EPSILON = 0.15
TOLERANCES = (1.0, 0.3, 0.1, 0.03, 0.01, 1e-3)
FIGURE = Path("docs/figures/gradients.png")
Gradient = Literal["backprop", "adjoint"]


@dataclass(frozen=True)
class Finding:
    """At one tolerance: accuracy, shares fooled by either gradient, and the mean angle between them in degrees."""

    tolerance: float
    accuracy: float
    by_backprop: float
    by_adjoint: float
    angle: float


def main() -> None:
    """Print the table and draw the picture."""
    warnings.filterwarnings("ignore")
    params = load_params()
    try:
        findings = [examine(params, tolerance) for tolerance in TOLERANCES]
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"{MODEL}, seed {SEED}, dopri5, {IMAGES} test images, pgd of params.yaml at ε = {EPSILON}\n")
    print("| rtol = atol | accuracy | fooled by true gradients | by adjoint gradients | mean angle |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for one in findings:
        shares = f"{one.accuracy:.2f} | {one.by_backprop:.3f} | {one.by_adjoint:.3f}"
        print(f"| {one.tolerance:g} | {shares} | {one.angle:.1f}° |")
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    save_png(draw(findings), FIGURE)


def examine(params: Params, tolerance: float) -> Finding:
    """Attack the first test images that the net with this tolerance gets right, by both gradients."""
    split, card = read_split(DATA, "test"), read_card(DATA)
    inputs, labels = split.inputs[:IMAGES], split.labels[:IMAGES]
    nets = {
        gradient: load_target(_solved(params.models[MODEL], tolerance, gradient), MODEL, SEED, split, card["n_classes"])
        .net.eval()
        .requires_grad_(False)
        for gradient in ("backprop", "adjoint")
    }
    with torch.no_grad():
        right = nets["backprop"](inputs).argmax(1) == labels
    accuracy = right.double().mean().item()
    inputs, labels = inputs[right], labels[right]
    fooled = {name: _fooled(params, net, nets["backprop"], inputs, labels) for name, net in nets.items()}
    return Finding(tolerance, accuracy, fooled["backprop"], fooled["adjoint"], _angle(nets, inputs, labels))


def _solved(model: Component, tolerance: float, gradient: Gradient) -> Component:
    solver = SolverConfig(
        method="dopri5", rtol=tolerance, atol=tolerance, max_steps=1000, control="batch", gradient=gradient
    )
    return dataclasses.replace(model, config=dataclasses.replace(model.config, solver=solver))


def _fooled(params: Params, attacked: nn.Module, judging: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Share of the images that the net which predicts gets wrong after an attack on the other's gradients."""
    rng = ExampleRng.for_examples(range(len(inputs)), seed=0, dataset="benchmark", attack="pgd")
    attack, config = components.load("attacks", "pgd").attack, params.attacks["pgd"].config
    output = attack(attacked, inputs, labels, targets=None, epsilon=EPSILON, config=config, rng=rng)
    with torch.no_grad():
        fooled: Tensor = judging(output.adv_inputs).argmax(1) != labels
    return fooled.double().mean().item()


def _angle(nets: dict[str, nn.Module], inputs: Tensor, labels: Tensor) -> float:
    """Mean over images, in degrees, between the margins' gradients."""
    true, adjoint = (
        value_and_gradient(net, inputs, labels, None, "margin")[2].flatten(1).double() for net in nets.values()
    )
    cosines = torch.nn.functional.cosine_similarity(true, adjoint).clamp(-1, 1)
    return cosines.arccos().rad2deg().mean().item()


def draw(findings: list[Finding]) -> Figure:
    """Shares fooled, and the angle, against tolerance."""
    tolerances = [one.tolerance for one in findings]
    with styled():
        figure = Figure(figsize=(7, 2.9), layout="constrained")
        shares, angles = figure.subplots(1, 2)
        shares.plot(tolerances, [one.by_backprop for one in findings], label="true gradients", **line_style(0))
        shares.plot(tolerances, [one.by_adjoint for one in findings], label="adjoint gradients", **line_style(1))
        shares.set_ylabel("fooled")
        shares.set_ylim(-0.02, 1.02)
        shares.legend()
        angles.plot(tolerances, [one.angle for one in findings], **line_style(2))
        angles.set_ylabel("angle between them, degrees")
        angles.set_ylim(bottom=0)
        for axes in (shares, angles):
            axes.set_xscale("log")
            axes.set_xlabel("rtol = atol of dopri5")
    return figure


if __name__ == "__main__":
    main()
