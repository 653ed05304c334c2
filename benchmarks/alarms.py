"""``python -m benchmarks.alarms``: do the alarms tell sound nets from planted defects?

The thresholds of ``pipeline.masking`` were frozen on the first five seeds of the default nets and the defects that are
not held out. Seeds 5 to 9 and the held-out defects test them: every defect must raise its alarm, and no sound net any.
It needs the ten seeds of ``profiles/alarms.yaml``. Finished nets are kept in ``runs/alarms/alarms`` and not measured
again; several of these processes share the work.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from benchmarks.defects import DEFECTS
from pipeline.attacks.base import AttackOutput
from pipeline.attacks.fgsm import Config as FgsmConfig
from pipeline.attacks.pgd import Config as PgdConfig
from pipeline.attacks.square import Config as SquareConfig
from pipeline.climbing import climb
from pipeline.config import Params, load_params
from pipeline.datasets.base import Split, read_split
from pipeline.errors import UserError
from pipeline.evaluate import Cell, Examples, evaluate, evaluate_transferred, predict
from pipeline.examples import first_examples
from pipeline.files import write_json
from pipeline.folders import DATA
from pipeline.masking import THRESHOLDS, Alarm, alarms
from pipeline.nets import load_target
from pipeline.ode import SolverConfig
from pipeline.probing import Subject, measure, relatives
from pipeline.row_store import RowStore
from pipeline.settings import Component, ProbeConfig
from pipeline.stages.common import run
from pipeline.store import LockedError, locked
from pipeline.worst_case import Threat, gather

IMAGES, EPSILONS = 50, (0.05, 0.1, 0.2, 0.3)
PROBE = ProbeConfig(n_images=20, most_steps=100)  # the default's
ATTACKS: dict[str, Any] = {
    "fgsm": FgsmConfig(norm="linf"),
    "pgd": PgdConfig(norm="linf", steps=20, step_size=2.0, restarts=1, random_start=True, loss="both"),
    "square": SquareConfig(norm="linf", queries=60, p_init=0.8),
}
ADAPTIVE = SolverConfig(
    method="tsit5", rtol=1e-2, atol=1e-2, max_steps=100, control="sample", gradient="backprop"
)  # the Neural ODE's weights with each image's own steps: sound, too
FROZEN_ON = range(5)  # seeds; the others test
PLANTED_ON = {False: (0, 1, 5, 6), True: (5, 6, 7)}  # seeds that defects are planted on, by held_out
WORKSPACE, FINISHED = Path("runs/alarms"), Path("alarms")
Images = tuple[str, int, torch.Tensor]  # the model and the seed they were made on; (strengths, N, C, H, W)


@dataclass(frozen=True)
class Case:
    """A net to be measured: sound, or with a defect."""

    label: str
    model: Component
    trained: str
    seed: int
    defect: str | None = None

    @property
    def path(self) -> Path:
        return FINISHED / f"{self.label.replace(' ', '-')}-{self.seed}.json"


def main() -> None:
    """Measure what is not finished, then print what every group of nets says."""
    with contextlib.chdir(WORKSPACE):
        params, split = load_params(), read_split(DATA, "test")
        cases = list(_cases(params))
        strangers = {seed: _strangers(params, split, seed) for seed in (0, 5)}
        for case in cases:
            # Images of strangers' nets: of other seeds than the case's.
            _finish(case, split, strangers[5 if case.seed < 5 else 0])
        found = {case: _read(case) for case in cases}
    _print_thresholds({case: measured for case, measured in found.items() if case.seed in FROZEN_ON})
    _print_verdicts({case: measured for case, measured in found.items() if case.seed not in FROZEN_ON})


def _finish(case: Case, split: Split, strangers: list[Images]) -> None:
    """Measure a case unless it is finished or another process has it."""
    with contextlib.suppress(LockedError), locked(case.path.stem):
        if not case.path.is_file():
            started = time.perf_counter()
            write_json(case.path, [asdict(alarm) for alarm in _measured(case, split, strangers)])
            print(f"measured {case.label}, seed {case.seed}, {time.perf_counter() - started:.0f} s", flush=True)


def _read(case: Case) -> list[Alarm]:
    """What was measured, held against today's thresholds."""
    try:
        stored = json.loads(case.path.read_text(encoding="utf-8"))
        return [Alarm(**(one | {"threshold": THRESHOLDS[one["name"]]})) for one in stored]
    except FileNotFoundError as error:
        raise UserError(f"{case.path}: another process is measuring it; run this again when it has ended") from error


def _cases(params: Params) -> Iterator[Case]:
    ode = params.models["neural_ode"]
    for seed in params.seeds:
        for name, model in params.models.items():
            yield Case(name, model, name, seed)
        yield Case("adaptive ODE", replace(ode, config=replace(ode.config, solver=ADAPTIVE)), "neural_ode", seed)
    for label, defect in DEFECTS.items():
        for seed in PLANTED_ON[defect.held_out]:
            trained = "neural_ode" if defect.solver else "resnet"
            sound = params.models[trained]
            solved = replace(sound, config=replace(sound.config, solver=defect.solver)) if defect.solver else sound
            yield Case(label, solved, trained, seed, label)


def _measured(case: Case, split: Split, strangers: list[Images]) -> list[Alarm]:
    nets = {
        name: load_target(model, case.trained, case.seed, split, 10).net
        for name, model in {"net": case.model, **relatives(case.model)}.items()
    }
    plant = DEFECTS[case.defect].plant if case.defect else None
    if plant:
        nets = {"net": plant(nets["net"])}
    torch.manual_seed(case.seed)  # defects are random
    examples = first_examples(split, IMAGES)
    net = nets["net"].eval().requires_grad_(False)
    attacks = {name: (_rows(net, examples, name), EPSILONS) for name in ATTACKS}
    evidence = gather(Threat("linf"), attacks, [_transferred(net, examples, strangers)])
    assert evidence is not None
    probe = measure(Subject(**nets), examples.subset(range(PROBE.n_images)), PROBE, seed=0)
    return alarms(case.label, [probe], {"linf": evidence})


def _cell(attack: str) -> Cell:
    return Cell("mnist5k", "test", "net", 0, attack, attack, ATTACKS[attack], 0, "benchmark")


def _rows(net: nn.Module, examples: Examples, attack: str) -> pd.DataFrame:
    clean = predict(net, examples)

    def judged(epsilon: float | None, some: Examples) -> Any:
        rows = [examples.indices.index(index) for index in some.indices]
        return evaluate(net, some, _cell(attack), epsilon=epsilon, clean_logits=clean[rows])

    with tempfile.TemporaryDirectory() as folder:
        store = RowStore(attack, store=Path(folder))
        return climb(0, examples, store, epsilons=EPSILONS, climbs=attack != "fgsm", attack=judged)


def _strangers(params: Params, split: Split, seed: int) -> list[Images]:
    """Images (strengths, N, C, H, W) that PGD makes on two sound nets, at all strengths."""
    found = []
    examples = first_examples(split, IMAGES)
    for name in ("cnn", "resnet"):
        net = load_target(params.models[name], name, seed, split, 10).net.requires_grad_(False)
        clean = predict(net, examples)
        images = [evaluate(net, examples, _cell("pgd"), epsilon=e, clean_logits=clean).adv_inputs for e in EPSILONS]
        found.append((name, seed, torch.stack(images)))
    return found


def _transferred(net: nn.Module, examples: Examples, strangers: list[Images]) -> pd.DataFrame:
    clean, none = predict(net, examples), torch.zeros_like(examples.labels)
    parts = []
    for name, seed, images in strangers:
        for epsilon, adv_inputs in zip(EPSILONS, images, strict=True):
            output = AttackOutput(adv_inputs, None, none, none, none)
            strengths = [epsilon] * len(examples)
            rows = evaluate_transferred(
                net, examples, output, _cell("pgd"), epsilons=strengths, source=(name, seed), clean_logits=clean
            )
            parts.append(rows)
    return pd.concat(parts, ignore_index=True)


def _print_thresholds(found: dict[Case, list[Alarm]]) -> None:
    """Each alarm's threshold between what sound nets and the defects that must raise it measure."""
    sound, planted = defaultdict(list), defaultdict(list)
    thresholds = {}
    for case, of_case in found.items():
        for alarm in of_case:
            thresholds[alarm.name] = alarm.threshold
            if case.defect is None:
                sound[alarm.name].append(alarm.value)
            elif alarm.name in DEFECTS[case.defect].alarms:
                planted[alarm.name].append(alarm.value)
    print(f"\nFrozen on seeds {FROZEN_ON.start} to {FROZEN_ON[-1]}\n")
    print("| alarm | sound nets, largest | threshold | defects that must raise it, smallest |")
    print("| --- | ---: | ---: | ---: |")
    for name, threshold in thresholds.items():
        smallest = f"{min(planted[name]):.3g}" if planted[name] else "–"
        print(f"| {name} | {max(sound[name], default=0):.3g} | {threshold:g} | {smallest} |")


def _print_verdicts(found: dict[Case, list[Alarm]]) -> None:
    """Which alarms the unseen nets raise."""
    raised: dict[str, list[set[str]]] = defaultdict(list)
    for case, of_case in found.items():
        raised[case.label].append({alarm.name for alarm in of_case if alarm.raised})
    print("\nTested on the other seeds and on held-out defects\n")
    print("| net | seeds | alarms raised (on how many seeds) | as it must be |")
    print("| --- | ---: | --- | --- |")
    for label, sets in raised.items():
        counts = {name: sum(name in one for one in sets) for name in sorted(set().union(*sets))}
        words = ", ".join(f"{name} ({count})" for name, count in counts.items()) or "none"
        defect = DEFECTS.get(label)
        right = all(set(defect.alarms) & one for one in sets) if defect else not counts
        held_out = " (held out)" if defect and defect.held_out else ""
        print(f"| {label}{held_out} | {len(sets)} | {words} | {'yes' if right else 'NO'} |")


if __name__ == "__main__":
    run(main)
