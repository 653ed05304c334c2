"""A made-up benchmark on disk: everything the report and the tracking read, with a known truth and no training.

An image falls to an attack exactly if the strength reaches its ``fooling_sizes``; everything else follows from that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from ruamel.yaml import YAML
from safetensors.torch import save_file
from torch import Tensor

from pipeline import schema
from pipeline.datasets.base import Dataset, Split, input_sha256, write_dataset
from pipeline.deform import deformation_size, smooth, warp
from pipeline.files import write_json
from pipeline.schema import validate
from pipeline.seeds import derive_seed

MODELS: dict[str, dict[str, Any]] = {
    "cnn": {"kind": "cnn", "channels": 32, "groups": 8, "blocks": 6},
    "resnet": {"kind": "resnet", "channels": 32, "groups": 8, "blocks": 6},
    "euler_net": {"kind": "euler_net", "channels": 32, "groups": 8, "blocks": 6},
    "neural_ode": {
        "kind": "neural_ode",
        "channels": 32,
        "groups": 8,
        "solver": {"method": "rk4", "steps": 4, "gradient": "backprop"},
    },
}

ATTACKS: dict[str, dict[str, Any]] = {
    "gaussian": {"kind": "gaussian", "norm": "sigma", "draws": 2, "epsilons": [0.2, 0.4, 0.6, 0.8]},
    "fgsm": {"kind": "fgsm", "norm": "linf", "epsilons": [0.02, 0.05, 0.1, 0.15, 0.2, 0.3]},
    "pgd": {
        "kind": "pgd",
        "norm": "linf",
        "steps": 20,
        "step_size": 1.0,
        "restarts": 1,
        "random_start": True,
        "loss": "cross_entropy",
        "epsilons": [0.02, 0.05, 0.1, 0.15, 0.2],
    },
    "pgd_l2": {
        "kind": "pgd",
        "norm": "l2",
        "steps": 20,
        "step_size": 1.0,
        "restarts": 1,
        "random_start": True,
        "loss": "cross_entropy",
        "epsilons": [0.5, 1.0, 2.0],
    },
    "adef": {
        "kind": "adef",
        "norm": "deformation",
        "candidates": 9,
        "sigma": 0.5,
        "max_iter": 100,
        "max_norm": math.inf,
        "overshoot": 1.2,
        "epsilons": [0.5, 1.0, 2.0, 3.0],
    },
}

ATTACKS |= {f"adef_{name}": ATTACKS["adef"] | {"budget": cost} for name, cost in (("cheap", 34), ("dear", 331))}

SOLVERS = {"euler": {"method": "euler", "steps": 4, "gradient": "backprop"}}
MINIMAL_KINDS = {"adef", "lbfgs"}
CLIMBING_KINDS = {"pgd"}
N_EXAMPLES = 4
STRANGER = 1.5  # times the fooling size at which an image falls to one made on another model
NFE = {"neural_ode": 16}
IMPROVEMENT = {"cnn": 0.7, "resnet": 1.0, "euler_net": 1.2, "neural_ode": 1.5}

# Which of the seven segments of a display (top, upper left, upper right, middle, lower left, lower right, bottom)
# are lit for each digit, and where they are: rows, columns of a 28 × 28 image.
_SEGMENTS = (
    "1110111",
    "0010010",
    "1011101",
    "1011011",
    "0111010",
    "1101011",
    "1101111",
    "1010010",
    "1111111",
    "1111011",
)
_BARS = (
    (4, 6, 9, 19),
    (5, 14, 8, 10),
    (5, 14, 18, 20),
    (13, 15, 9, 19),
    (14, 23, 8, 10),
    (14, 23, 18, 20),
    (22, 24, 9, 19),
)


def write_benchmark(
    root: Path, *, models: Sequence[str], attacks: Sequence[str], seeds: Sequence[int], n_images: int
) -> None:
    """Write params.yaml, data/splits, checkpoints/ and results/ under ``root``.

    Args:
        models: keys of ``MODELS``.
        attacks: keys of ``ATTACKS``.
        n_images: test images; all of them are attacked, the first ``N_EXAMPLES`` are kept as examples.
    """
    write_params(root, models=models, attacks=attacks, seeds=seeds, n_images=n_images)
    test = digits(n_images)
    splits = {"train": digits(2 * n_images), "validation": digits(n_images), "test": test}
    write_dataset(
        Dataset(splits, n_classes=10, source="seven segments", licence="none"), root / "data/splits", kind="mnist5k"
    )
    tied = [model for model in models if MODELS[model]["kind"] in ("euler_net", "neural_ode")]
    found = {model: [refinements(model)] * len(seeds) for model in tied}
    write_json(root / "refinement/refinement.json", found)
    probes = {model: {str(seed): probe(model) for seed in seeds} for model in models}
    write_json(root / "probes/probes.json", {"models": probes, "leaked": 0, "tested": n_images})
    followed = {model: [trajectory(model, attacks)] * len(seeds) for model in models}
    write_json(root / "trajectories/trajectories.json", followed)
    for name, toy in toys().items():
        write_json(root / "theory" / f"{name}.json", toy)
    for model in models:
        for seed in seeds:
            path = root / "checkpoints" / model / f"seed-{seed}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"weight": torch.zeros(1)}, path)
            write_json(path.with_suffix(".json"), training_report(model, seed))
        for attack in attacks:
            write_results(root, model, attack, seeds, test)
    for attack in transferred(attacks):
        write_transfer(root, models, attack, seeds, test)


def write_params(
    root: Path, *, models: Sequence[str], attacks: Sequence[str], seeds: Sequence[int], n_images: int
) -> None:
    """A params.yaml that ``pipeline.config.load_params`` accepts."""
    root.mkdir(parents=True, exist_ok=True)
    params = {
        "dataset": {
            "kind": "mnist5k",
            "split_seed": 0,
            "train": 2 * n_images,
            "validation": n_images,
            "test": n_images,
        },
        "models": {name: MODELS[name] for name in models},
        "variants": {},
        "train": {
            "epochs": 10,
            "batch_size": 64,
            "learning_rate": 0.003,
            "weight_decay": 0.01,
            "gradient_clip": 1.0,
            "defence": None,
            "precision": "32-true",
        },
        "seeds": list(seeds),
        "attacks": {name: ATTACKS[name] | {"n_images": n_images} for name in attacks},
        "evaluate": {"seed": 0, "chunk_size": 100, "n_examples": N_EXAMPLES, "batch_coupled": []},
        "transfer": {"attacks": transferred(attacks), "solvers": SOLVERS},
        "probe": {"n_images": 10, "most_steps": 50},
        "claims": claims(models, attacks),
        "published": {},
        "compute": {
            "accelerator": "cpu",
            "devices": 1,
            "num_nodes": 1,
            "strategy": "auto",
            "batch_size": "auto",
            "launcher": None,
            "live": False,
        },
    }
    with (root / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(params, file)


def claims(models: Sequence[str], attacks: Sequence[str]) -> dict[str, dict[str, Any]]:
    """One on the worst case of ℓ∞ and one on each attack alone, as far as models and attacks are there."""
    if not {"cnn", "neural_ode"} <= set(models):
        return {}
    about = {"more_robust": "neural_ode", "than": "cnn", "at": None}
    worst = {"perturbations": about | {"threat": "linf"}} if {"fgsm", "pgd"} & set(attacks) else {}
    return worst | {f"{name}_alone": about | {"attack": name} for name in attacks}


def digits(n: int) -> Split:
    """Image i shows the digit i mod 10 on a seven-segment display, a little displaced and blurred."""
    canvas = torch.zeros(10, 28, 28)
    for digit, segments in enumerate(_SEGMENTS):
        for lit, (top, bottom, left, right) in zip(segments, _BARS, strict=True):
            if lit == "1":
                canvas[digit, top:bottom, left:right] = 1
    labels = torch.arange(n) % 10
    noise = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    shifts = noise[:, None, None, :].expand(n, 28, 28, 2)
    blurred = warp(smooth(canvas[labels][..., None], 0.8).movedim(-1, 1), shifts)
    return Split((blurred * 255).round().to(torch.uint8), labels)


def training_report(model: str, seed: int) -> dict[str, Any]:
    """What ``pipeline.training`` writes beside a checkpoint."""
    rng = _rng("training", model, seed)
    return {
        "accuracy": {
            "train": 0.99 + 0.01 * rng.random(),
            "validation": 0.96 + 0.02 * rng.random(),
            "test": 0.95 + 0.02 * rng.random(),
        },
        "history": [
            {
                "epoch": epoch,
                "train_loss": math.exp(-epoch),
                "validation_loss": 0.1 + math.exp(-epoch),
                "validation_accuracy": 0.97 - 0.5 * math.exp(-epoch),
            }
            for epoch in range(10)
        ],
        "parameters": {"cnn": 131_000, "resnet": 131_000}.get(model, 41_000),
        "seconds": 20 + 10 * rng.random(),
        "model": model,
        "kind": MODELS[model]["kind"],
        "seed": seed,
        "key": f"{derive_seed(0, model, seed):024x}",
    }


def refinements(model: str) -> list[dict[str, Any]]:
    """What ``pipeline.stages.refine`` writes: euler_net leaves its predictions at other steps, neural_ode does not."""
    shifts = [0.3 / 2**k * (1 if model == "neural_ode" else 5) for k in range(4)] + [0.0]
    solvers = [(f"euler, {6 * 2**k} steps", 6 * 2**k) for k in range(4)] + [("dopri5, tolerance 1e-05", None)]
    return [
        {"solver": solver, "steps": steps, "accuracy": 0.96 - shift / 10, "agreement": 1 - shift / 50}
        | {"logit_shift": shift}
        for (solver, steps), shift in zip(solvers, shifts, strict=True)
    ]


def probe(model: str) -> dict[str, Any]:
    """What ``pipeline.stages.probe`` writes of a sound net."""
    solved = "solver" in MODELS[model]
    return {
        "repeat_shift": 0.0,
        "batch_shift": 4e-7,
        "solver_shift": 0.0 if solved else None,
        "adjoint_angle": 0.0 if solved else None,
        "dead_gradients": 0.0,
        "failed_ascents": 0.0,
        "unbounded": 0.0,
        "epsilon": 0.1,
        "one_step": 0.0,
        "ladder": [25, 50],
        "robust_accuracy": [0.5, 0.5],
        "nfe_ratio": 1.0 if solved else None,
        "probabilities": 0.0,
        "clipped": 0.0,
        "logit_scale": 5.0,
    }


def trajectory(model: str, attacks: Sequence[str]) -> dict[str, Any]:
    """What ``pipeline.stages.trajectories`` writes of a net: distances grow by exp(t) under attack, noise stays."""
    n_steps = 4 if model == "neural_ode" else 6
    times = [k / n_steps for k in range(n_steps + 1)]
    followed = [(name, 1.0) for name in attacks if ATTACKS[name]["norm"] in ("linf", "deformation")][:1]
    traces = [
        {
            "perturbation": name,
            "epsilon": 0.1 if rate else None,
            "n_images": N_EXAMPLES,
            "distance": [math.exp(rate * t) for t in times],
            "relative": [0.1 * math.exp((rate - 0.5) * t) for t in times],
            "rate": [rate] * n_steps,
        }
        for name, rate in followed + [("noise", 0.0)] * len(followed)
    ]
    return {"times": times, "log_norm": [3.0 - t for t in times[:-1]], "traces": traces}


def toys() -> dict[str, dict[str, Any]]:
    """What ``pipeline.stages.theory`` writes, by file."""
    points = [[0.0, 0.1], [1.0, 0.0]]
    rings = {"starts": points, "is_ring": [False, True], "offset": -0.5, "wrong": 0.02, "margin": -3.0, "turns": 1.0}
    plane = rings | {"n_extra": 0, "ends": points, "edge": points, "normal": [1.0, 0.0]}
    deep = [[*point, 0.0] for point in points]
    apart = {"n_extra": 1, "ends": deep, "edge": deep, "normal": [0.0, 0.0, 1.0], "wrong": 0.0, "turns": None}
    return {
        "annuli": {"plane": plane, "augmented": plane | apart | {"margin": 2.0}},
        "expansion": {
            "rates": [0.0, 3.0],
            "times": [0.0, 1.0],
            "trajectories": [[[-0.1, -0.1], [0.1, 0.1]], [[-0.1, -2.0], [0.1, 2.0]]],
            "growth": [1.0, 20.0],
            "exact": [1.0, math.exp(3)],
            "crossings": 0,
        },
        "ordering": {
            "strength": 3.0,
            "times": [0.0, 1.0],
            "flow": [[-1.0, -0.5], [1.0, 0.5]],
            "reordered_by_flow": 0.0,
            "steps": [1, 2],
            "euler": [[[-1.0, 1.0], [1.0, -1.0]], [[-1.0, -0.5, 0.0], [1.0, 0.5, 0.1]]],
            "reordered": [0.25, 0.125],
            "enough_steps": 18,
            "inputs": [-1.0, 1.0],
            "learned": {"flow": [0.0, 0.0], "residual": [1.0, -1.0]},
            "error": {"flow": 1.0, "residual": 0.0},
            "least_error": 1.0,
        },
    }


def fooling_sizes(model: str, attack: str, seeds: Sequence[int], n_images: int) -> npt.NDArray[np.float64]:
    """(seeds, images): the smallest strength at which each image falls; 0 where the clean prediction is wrong."""
    scale = float(np.median(ATTACKS[attack]["epsilons"])) * IMPROVEMENT[model]
    image = _rng("images").standard_normal(n_images)
    rows = []
    for seed in seeds:
        rng = _rng("sizes", model, attack, seed)
        sizes = scale * np.exp(0.1 * rng.standard_normal() + 0.5 * image + 0.3 * rng.standard_normal(n_images))
        # Its own stream: a seed's clean predictions are the same whatever attacks it.
        wrong = _rng("clean", model, seed).random(n_images) < 0.04
        rows.append(np.where(wrong, 0.0, sizes))
    return np.stack(rows)


def write_results(root: Path, model: str, attack: str, seeds: Sequence[int], test: Split) -> None:
    """``results/<model>/<attack>.parquet`` and the examples beside it."""
    kind, draws = ATTACKS[attack]["kind"], ATTACKS[attack].get("draws", 1)
    epsilons: list[float | None] = [None] if kind in MINIMAL_KINDS else list(ATTACKS[attack]["epsilons"])
    parts: list[pd.DataFrame] = []
    examples: dict[str, Tensor] = {}
    for seed, fooling in zip(seeds, fooling_sizes(model, attack, seeds, len(test.labels)), strict=True):
        fallen = pd.DataFrame(columns=["index"])
        for epsilon in epsilons:
            rows = pd.concat([result_rows(test, model, seed, attack, fooling, epsilon, draw) for draw in range(draws)])
            fresh = rows[~rows["index"].isin(fallen["index"])]
            prefix = f"seed{seed}/eps{'minimal' if epsilon is None else repr(epsilon)}"
            images = example_images(test, attack, fresh)
            examples |= {f"{prefix}/{name}": tensor for name, tensor in images.items()}
            parts.append(fresh)
            if kind in CLIMBING_KINDS:
                inherited = {"epsilon": epsilon, "inherited": True, "n_forwards": 0, "n_backwards": 0, "seconds": 0.0}
                parts += [fallen.assign(**inherited)] if len(fallen) else []
                fallen = pd.concat([fallen, fresh[fresh["success"]]]) if len(fallen) else fresh[fresh["success"]]
    path = root / "results" / model / f"{attack}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    validate(pd.concat(parts, ignore_index=True), source=str(path)).to_parquet(path, index=False)
    save_file(examples, path.with_suffix(".examples.safetensors"))


def transferred(attacks: Sequence[str]) -> list[str]:
    """The attacks whose images are tried on other models."""
    return [name for name in attacks if name == "pgd"]


def write_transfer(root: Path, models: Sequence[str], attack: str, seeds: Sequence[int], test: Split) -> None:
    """``transfer/<attack>.parquet``: to another's image an image falls at ``STRANGER`` times its own fooling size."""
    parts = [schema.empty()]

    def add(target: str, seed: int, fooling: npt.NDArray[np.float64], source: tuple[str, int]) -> None:
        parts.extend(
            result_rows(test, target.partition("@")[0], seed, attack, fooling, epsilon).assign(
                model=target, source_model=source[0], source_seed=source[1]
            )
            for epsilon in ATTACKS[attack]["epsilons"]
        )

    for model in models:
        for seed, fooling in zip(seeds, fooling_sizes(model, attack, seeds, len(test.labels)), strict=True):
            for source in models:
                for other in seeds:
                    if (source, other) != (model, seed):
                        add(model, seed, STRANGER * fooling, (source, other))
            if "solver" in MODELS[model]:
                add(f"{model}@euler", seed, fooling, (model, seed))
    rows = pd.concat(parts, ignore_index=True)
    rows = rows[rows["index"] < N_EXAMPLES].assign(n_forwards=0, n_backwards=0)
    path = root / "transfer" / f"{attack}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    validate(rows, source=str(path)).to_parquet(path, index=False)


def result_rows(
    test: Split,
    model: str,
    seed: int,
    attack: str,
    fooling: npt.NDArray[np.float64],
    epsilon: float | None,
    draw: int = 0,
) -> pd.DataFrame:
    """The judge's rows of one seed at one strength: an image falls if the strength reaches its fooling size."""
    labels = test.labels.numpy()
    norm = ATTACKS[attack]["norm"]
    n = len(labels)
    rng = _rng("rows", model, seed, attack, str(epsilon), draw)
    clean_correct = fooling > 0
    wrong = (labels + 1 + rng.integers(0, 9, n)) % 10
    fooled = np.ones(n, bool) if epsilon is None else fooling <= epsilon
    success = clean_correct & fooled
    size = np.where(clean_correct, fooling, 0.0) if epsilon is None else np.full(n, epsilon)
    shift = 5 * size * np.exp(0.2 * rng.standard_normal(n)) / IMPROVEMENT[model]
    field = norm == "deformation"
    return pd.DataFrame(
        {
            "dataset": "mnist5k",
            "split": "test",
            "index": range(n),
            "input_sha256": [input_sha256(image) for image in test.images],
            "label": labels,
            "target": None,
            "model": model,
            "seed": seed,
            "attack": attack,
            "norm": norm,
            "epsilon": epsilon,
            "draw": draw,
            "inherited": False,
            "source_model": None,
            "source_seed": None,
            "clean_pred": np.where(clean_correct, labels, (labels + 1) % 10),
            "adv_pred": np.where(fooled | ~clean_correct, wrong, labels),
            "clean_correct": clean_correct,
            "success": success,
            "size_l2": size if norm == "l2" else 5 * size,
            "size_linf": size if norm == "linf" else np.minimum(size / 3, 1),
            "size_deformation": size if field else math.nan,
            "folded_share": np.maximum(0, size - 2) / 10 if field else math.nan,
            "max_gradient": size / 2 if field else math.nan,
            "in_box": True,
            "clean_margin": np.where(clean_correct, 4.0, -1.0),
            "adv_margin": np.where(success, -1.0, 1.0),
            "output_shift_l2": shift,
            "n_forwards": 7 if epsilon is None else 1,
            "n_backwards": 30 if epsilon is None else 1,
            "nfe": NFE.get(model, 0),
            "seconds": 0.01,
            "status": "ok",
            "config_hash": f"{derive_seed(0, model, seed, attack):024x}",
        }
    )


def example_images(test: Split, attack: str, rows: pd.DataFrame) -> dict[str, Tensor]:
    """Adversarial images (and fields) of the first examples: random directions of the sizes that the rows state."""
    norm = ATTACKS[attack]["norm"]
    kept = rows[(rows["index"] < N_EXAMPLES) & (rows["draw"] == 0)]
    index = torch.tensor(kept["index"].to_numpy(np.int64))
    column = {"sigma": "size_linf"}.get(norm, f"size_{norm}")
    size = torch.tensor(kept[column].to_numpy(np.float32))[:, None, None, None]
    generator = torch.Generator().manual_seed(derive_seed(0, attack))
    inputs = test.inputs[index]
    if norm == "deformation":
        field = smooth(torch.randn(len(index), 28, 28, 2, generator=generator), 2.0)
        field = (field / deformation_size(field)[:, None, None, None] * size).contiguous()
        return {"index": index, "adv_inputs": warp(inputs, field).clamp(0, 1), "deformation": field}
    direction = torch.randn(inputs.shape, generator=generator).sign()
    scale = size if norm != "l2" else size / 28
    return {"index": index, "adv_inputs": (inputs + scale * direction).clamp(0, 1)}


def _rng(*names: str | int) -> np.random.Generator:
    return np.random.default_rng(derive_seed(0, "synthetic", *names))
