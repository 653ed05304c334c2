"""What the sections of params.yaml become. Apart from the parser, which no result depends on."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal

from pipeline.components import Room
from pipeline.fields import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pipeline.ode import SolverConfig


@dataclass(frozen=True)
class Component:
    """A data set, architecture, attack or defence named in params.yaml.

    Attributes:
        room: where components of its sort are.
        name: its key.
        kind: its file, ``pipeline/<room>/<kind>.py``.
        config: an instance of that file's ``Config``.
    """

    room: Room
    name: str
    kind: str
    config: Any

    @property
    def module(self) -> str:
        """Its file's dotted name."""
        return f"pipeline.{self.room}.{self.kind}"


@dataclass(frozen=True)
class InRoom:
    """Marks a field ``Annotated[Component, InRoom("attacks")]`` of a Config: a component inside a component."""

    room: Room


@dataclass(frozen=True)
class AttackEntry(Component):
    """An attack with what the judge needs besides its config.

    Attributes:
        n_images: the first n test examples are attacked.
        epsilons: strengths, ascending; a minimal attack runs once and is read off at them.
    """

    n_images: int
    epsilons: tuple[float, ...]

    @property
    def norm(self) -> str:
        norm: str = self.config.norm
        return norm


def modules(config: Any) -> list[str]:
    """Dotted names of the components inside a config, at any depth: code that runs besides the config's own."""
    if not is_dataclass(config):
        return []
    own = [config.module] if isinstance(config, Component) else []
    return own + [name for field in fields(config) for name in modules(getattr(config, field.name))]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Training. An architecture's entry may replace single keys.

    Attributes:
        epochs: passes over the training split.
        batch_size: images of a step over all devices together.
        learning_rate: peak of the one-cycle schedule (AdamW).
        weight_decay: AdamW's decoupled decay.
        gradient_clip: largest gradient norm of a step.
        defence: how the training loss is made: null for the cross-entropy, or a component of ``pipeline/defences/``.
        precision: Lightning's precision of training; attacks always run in float32.
    """

    epochs: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    weight_decay: NonNegativeFloat
    gradient_clip: PositiveFloat
    defence: Annotated[Component, InRoom("defences")] | None
    precision: Literal["32-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True)
class Architecture(Component):
    """A model with its own training.

    Attributes:
        train: the section of that name with what its entry replaces.
    """

    train: TrainConfig


@dataclass(frozen=True)
class Variant(Component):
    """The weights of a trained model under another solver or gradient: attacked like a model, never trained.

    Attributes:
        of: the model's name.
    """

    of: str


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The judge.

    Attributes:
        seed: base seed of all attack randomness.
        chunk_size: examples attacked together; the unit of work and of resuming.
        n_examples: adversarial images of the first n examples are kept beside the rows.
        batch_coupled: models whose predictions may depend on the other images of the batch; all others must not.
    """

    seed: NonNegativeInt
    chunk_size: PositiveInt
    n_examples: NonNegativeInt
    batch_coupled: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """Stored adversarial images tried on other models.

    Attributes:
        attacks: keys of ``attacks`` whose images are tried on every other model.
        solvers: name to solver: every model that has one is tried on its own images under these, too.
    """

    attacks: tuple[str, ...]
    solvers: dict[str, SolverConfig]


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Measurements for the alarms.

    Attributes:
        n_images: the first n test examples.
        most_steps: of PGD; shorter ones double from 25.
    """

    n_images: PositiveInt
    most_steps: PositiveInt


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Where it runs; part of no hash.

    Attributes:
        accelerator, devices, num_nodes, strategy: Lightning's Trainer arguments of these names.
        batch_size: images of a chunk attacked at once; ``auto`` begins with all and halves when memory runs out.
        launcher: the command that starts a stage's processes, such as ``torchrun --standalone --nproc-per-node 8
            --no-python`` or ``srun``; null if Lightning starts them.
        live: whether MLflow shows trainings while they go on.
    """

    accelerator: str
    devices: int | str
    num_nodes: PositiveInt
    strategy: str
    batch_size: PositiveInt | Literal["auto"]
    launcher: str | None
    live: bool
