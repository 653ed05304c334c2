"""Images per second of every attack of params.yaml, against its floor and, where there is one, a peer.

The floor of an attack is what it must at least spend: its own forward and backward passes, in the batch sizes in which
it made them, timed bare. Peers run in the same process, in turns with the attack. Nets are untrained but for a few
steps: speed does not depend on how well they classify, and nothing here says anything of robustness.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import eagerpy
import foolbox
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import in_turns
from pipeline import components
from pipeline.attacks.base import ExampleRng
from pipeline.config import AttackEntry, Params, load_params
from pipeline.datasets.base import Split
from pipeline.training import build

MODELS = ("resnet", "neural_ode")
BATCH = {"budget": 200, "minimal": 50}
REPEATS = 3
TRAINING_STEPS = 60


class Recorder(nn.Module):
    """A model that notes the batch size of every forward and whether it was differentiated."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.passes: list[list[int]] = []  # [batch, backwards], in order

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(inputs)
        entry = [len(inputs), 0]
        self.passes.append(entry)
        if logits.requires_grad:
            logits.register_hook(lambda _: entry.__setitem__(1, entry[1] + 1))  # type: ignore[no-untyped-call]
        return logits


def main() -> None:
    """Print the table."""
    warnings.filterwarnings("ignore")
    params = load_params()
    split = components.load("datasets", params.dataset.kind).load(params.dataset.config).splits["test"]
    print(f"batch {BATCH}, {torch.get_num_threads()} threads, median of {REPEATS}\n")
    print("| model | attack | images/s | time / floor | time / peer | peer |")
    print("| --- | --- | ---: | ---: | ---: | --- |")
    for name in (name for name in MODELS if name in params.models):
        model = _somewhat_trained(params, name, split)
        for attack in params.attacks.values():
            if attack.kind != "gaussian":  # spends no evaluation: there is no floor
                print(_line(name, model, attack, split), flush=True)


def _somewhat_trained(params: Params, name: str, split: Split) -> nn.Module:
    """Trained just enough that attacks do not end at once."""
    net = build(params.models[name], in_shape=split.in_shape, n_classes=10, seed=0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for step in range(TRAINING_STEPS):
        rows = torch.arange(64) + 64 * step
        loss = F.cross_entropy(net(split.inputs[rows % len(split.labels)]), split.labels[rows % len(split.labels)])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return net.eval().requires_grad_(False)


def _line(model_name: str, model: nn.Module, attack: AttackEntry, split: Split) -> str:
    component = components.load("attacks", attack.kind)
    n = BATCH[component.GOAL]
    inputs, labels = split.inputs[:n], split.labels[:n]
    rng = ExampleRng.for_examples(range(n), seed=0, dataset="benchmark", attack=attack.name)
    epsilon = None if component.GOAL == "minimal" else attack.epsilons[len(attack.epsilons) // 2]

    def run(target: nn.Module = model) -> None:
        component.attack(target, inputs, labels, targets=None, epsilon=epsilon, config=attack.config, rng=rng)

    recorder = Recorder(model)
    run(recorder)
    tasks: dict[str, Callable[[], object]] = {"attack": run, "floor": lambda: _floor(model, inputs, recorder.passes)}
    peer = _peer(attack, model, inputs, labels, epsilon)
    if peer is not None:
        tasks["peer"] = peer
    seconds = in_turns(tasks, repeats=REPEATS)
    ratio = f"{seconds['attack'] / seconds['peer']:.2f}" if peer else "–"
    return (
        f"| {model_name} | {attack.name} | {n / seconds['attack']:.0f} | {seconds['attack'] / seconds['floor']:.2f} "
        f"| {ratio} | {'Foolbox' if peer else '–'} |"
    )


def _floor(model: nn.Module, inputs: Tensor, passes: list[list[int]]) -> None:
    """The passes alone, without the arithmetic between them."""
    for size, backwards in passes:
        images = inputs[torch.arange(size) % len(inputs)].requires_grad_(backwards > 0)
        with torch.set_grad_enabled(backwards > 0):
            logits = model(images)
        for i in range(backwards):
            torch.autograd.grad(logits[:, i % logits.shape[1]].sum(), images, retain_graph=i + 1 < backwards)


def _peer(
    attack: AttackEntry, model: nn.Module, inputs: Tensor, labels: Tensor, epsilon: float | None
) -> Callable[[], object] | None:
    """Foolbox's attack of the same kind with as many steps, or None."""
    made: Any
    if attack.kind == "fgsm":
        made = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    elif attack.kind == "pgd" and attack.norm == "linf":
        made = foolbox.attacks.LinfPGD(rel_stepsize=0.1, steps=attack.config.steps)
    else:
        return None
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
    images, criterion = eagerpy.astensor(inputs), foolbox.criteria.Misclassification(eagerpy.astensor(labels))
    return lambda: made(wrapped, images, criterion, epsilons=epsilon)
