"""Images per second of the attacks, against their floor and their peers.

The floor of an attack is what it must at least spend: its own forward and backward passes, in the batch sizes in which
it made them, timed bare (``benchmarks.passes``). Peers run in the same process, in turns with the attack, and so do the
floors; a ratio is the median of the rounds' ratios. Beside the speed stand the passes that an image cost and, for
minimal attacks, the size found: an attack may be fast because it stops early.

Nets are trained for a few seconds only, and the labels are their own predictions, so that every image has to be
attacked. Nothing here says anything of robustness; ``benchmarks.strength`` compares the attacks' strength.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cases import ALL_STEPS, Case, all_cases, peers_of
from benchmarks.passes import Recorder, floor
from benchmarks.targets import Target
from benchmarks.timing import in_turns, ratio
from pipeline import components
from pipeline.config import Params, load_params
from pipeline.datasets.base import Split
from pipeline.deform import deformation_size
from pipeline.nets import build

MODELS = ("resnet", "neural_ode")
LONG = 4.0  # seconds from which on an attack is timed twice and not three times
CLOSE_RACE = 7  # rounds where equal speed is what is asked for
TRAINING_STEPS, LEARNING_RATE = 100, 6e-3

OVERHEAD = {"pgd": Target("≤", 1.15), "adef": Target("≤", 1.3)}  # time in units of the floor's
SCIPY = {"resnet": Target("≥", 5), "neural_ode": Target("≥", 10)}  # times SciPy's images per second
PGD = Target("≥", 1)  # times Foolbox's images per second, where both make all steps


def main() -> None:
    """Print the table and, below it, what must be reached."""
    warnings.filterwarnings("ignore")
    params = load_params()
    split = components.load("datasets", params.dataset.kind).load(params.dataset.config).splits["test"]
    print(f"{torch.get_num_threads()} threads; sizes are ℓ2 or, of deformations, pixels\n")
    print(
        "| model | attack | by | images | images/s | forwards + backwards per image | time / floor "
        "| ours is faster | median size (ours on the same images) |"
    )
    print("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    verdicts: list[str] = []
    for name in (name for name in MODELS if name in params.models):
        model = _somewhat_trained(params, name, split)
        for case in all_cases(params):
            verdicts += _measure(name, model, case, split.inputs[: case.batch])
    print("\nmust reach:\n")
    print("\n".join(verdicts))


def _somewhat_trained(params: Params, name: str, split: Split) -> nn.Module:
    """Trained just enough that attacks do not end at once."""
    net = build(params.models[name], in_shape=split.in_shape, n_classes=10, seed=0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=TRAINING_STEPS)
    for step in range(TRAINING_STEPS):
        rows = (torch.arange(64) + 64 * step) % len(split.labels)
        loss = F.cross_entropy(net(split.inputs[rows]), split.labels[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return net.eval().requires_grad_(False)


def _measure(model_name: str, model: nn.Module, case: Case, inputs: Tensor) -> list[str]:
    """Print the rows of an attack and its peers; what must be reached, a line each."""
    with torch.no_grad():
        labels = model(inputs).argmax(1)
    recorder, started = Recorder(model), time.perf_counter()
    output = case.run(recorder, inputs, labels)
    rounds = CLOSE_RACE if case.name.endswith(ALL_STEPS) else 2 if time.perf_counter() - started > LONG else 3
    sizes = _sizes(case, model, inputs, labels, output.adv_inputs, output.deformation)
    tasks: dict[str, Callable[[], object]] = {
        "ours": partial(case.run, model, inputs, labels),
        "floor": partial(floor, model, inputs, recorder.passes),
    }
    peers: dict[str, tuple[int, str, str]] = {}  # images, passes, median size
    for name, (peer, n) in peers_of(case).items():
        tasks[name] = partial(peer, model, inputs[:n], labels[:n])
        looked_at = Recorder(model)
        found = _sizes(case, model, inputs[:n], labels[:n], peer(looked_at, inputs[:n], labels[:n]), None)
        peers[name] = n, looked_at.per_image(n), _median(found, sizes)

    seconds = in_turns(tasks, rounds=rounds)
    overhead = ratio(seconds, "ours", "floor")
    faster = {name: ratio(seconds, name, "ours") * case.batch / n for name, (n, _, _) in peers.items()}
    rows = {"ours": (case.batch, recorder.per_image(case.batch), _median(sizes))} | peers
    for name, (n, passes, size) in rows.items():
        speed = f"{n / median(seconds[name]):.1f}"
        ratios = f"{overhead:.2f} | " if name == "ours" else f"| × {faster[name]:.2f}"
        print(f"| {model_name} | {case.name} | {name} | {n} | {speed} | {passes} | {ratios} | {size} |", flush=True)
    return [f"- {model_name}, {case.name}: {verdict}" for verdict in _verdicts(model_name, case, overhead, faster)]


def _median(sizes: Tensor | None, ours: Tensor | None = None) -> str:
    """The median of a peer's sizes beside that of ours on the same images, which are the first; or of ours alone."""
    if sizes is None:
        return "–"
    beside = "" if ours is None else f" ({ours[: len(sizes)].median():.3f})"
    return f"{sizes.median():.3f}{beside}"


def _sizes(
    case: Case, model: nn.Module, inputs: Tensor, labels: Tensor, adv_inputs: Tensor, deformation: Tensor | None
) -> Tensor | None:
    """(B,), infinite where the model is not fooled; None for attacks that minimise nothing."""
    if case.epsilon is not None:
        return None
    sizes = (adv_inputs - inputs).flatten(1).norm(dim=1) if deformation is None else deformation_size(deformation)
    with torch.no_grad():
        return sizes.where(model(adv_inputs).argmax(1) != labels, torch.inf)


def _verdicts(model_name: str, case: Case, overhead: float, faster: dict[str, float]) -> list[str]:
    """What this attack must reach, and what it did."""
    found = []
    if case.kind in OVERHEAD:
        found.append(f"time / floor at batch {case.batch} {OVERHEAD[case.kind].verdict(overhead)}")
    if case.kind == "lbfgs":
        target, at = SCIPY[model_name], f"at batch {case.batch}"
        found += [f"images/s over those of {name} {at} {target.verdict(times)}" for name, times in faster.items()]
    if case.name.endswith(ALL_STEPS):
        found.append(f"images/s over Foolbox's {PGD.verdict(faster['Foolbox'])}")
    return found
