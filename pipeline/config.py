"""params.yaml to frozen dataclasses. Unknown, missing, mistyped and out-of-range keys are errors that name the key."""

from __future__ import annotations

import dataclasses
import math
import re
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline import components
from pipeline.errors import UserError
from pipeline.fields import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Range
from pipeline.settings import (
    Architecture,
    AttackEntry,
    Component,
    ComputeConfig,
    EvaluateConfig,
    ProbeConfig,
    TrainConfig,
    TransferConfig,
    Variant,
)

PARAMS = Path("params.yaml")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
T = TypeVar("T")


class ParamsError(UserError):
    """One line for the user: the file, the key, what is wrong and what to write instead."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """ "``more_robust`` withstands more than ``than``." Not in settings.py, which trained weights are keyed by.

    Attributes:
        more_robust: a model or variant.
        than: another.
        at: a strength; null for the area under the curve.
        threat: the worst case of all attacks of a kind (``pipeline.worst_case.THREATS``), or
        attack: a key of ``attacks``, alone.
    """

    more_robust: str
    than: str
    at: PositiveFloat | None
    threat: Literal["linf", "l2", "deformation", "deformation_fold_free"] | None = None
    attack: str | None = None

    def __post_init__(self) -> None:
        if (self.threat is None) == (self.attack is None):
            raise ValueError("threat: name either a threat or an attack")
        if self.more_robust == self.than:
            raise ValueError(f"than: {self.than!r} is compared with itself")


@dataclass(frozen=True, kw_only=True)
class Published:
    """A figure of a paper, to stand beside ours.

    Attributes:
        model, attack: ours that it belongs to.
        measure: robust accuracy at a strength (0: clean); share of the correctly classified images that are fooled
            within it; or the mean size of what fools them within it.
        at: the strength.
        value: the figure.
        mark: whether it was seen in the source, or is recalled and not verified.
        source: paper and table.
        differences: in what their experiment differs from ours.
    """

    model: str
    attack: str
    measure: Literal["robust_accuracy", "success", "mean_size"]
    at: NonNegativeFloat
    value: NonNegativeFloat
    mark: Literal["seen", "recalled"]
    source: str
    differences: str


@dataclass(frozen=True, kw_only=True)
class Params:
    """The whole of params.yaml, validated."""

    dataset: Component
    models: dict[str, Architecture]
    variants: dict[str, Variant]
    train: TrainConfig
    seeds: tuple[int, ...]
    attacks: dict[str, AttackEntry]
    evaluate: EvaluateConfig
    transfer: TransferConfig
    probe: ProbeConfig
    claims: dict[str, Claim]
    published: dict[str, Published]
    compute: ComputeConfig

    @property
    def attacked(self) -> dict[str, Component]:
        """Models and variants by name."""
        return {**self.models, **self.variants}

    def trained(self, name: str) -> Architecture:
        """The model whose weights a model or variant has."""
        return self.models[self.variants[name].of if name in self.variants else name]


def load_params(path: Path = PARAMS) -> Params:
    """Read and validate.

    Raises:
        ParamsError: anything is wrong; nothing has been run or written.
    """
    try:
        raw = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ParamsError(f"{path}: no such file; run from the repository's root") from error
    except OSError as error:
        raise ParamsError(f"{path}: not readable: {error.strerror}") from error
    except RecursionError as error:
        raise ParamsError(f"{path}: nested too deeply") from error
    except (YAMLError, ValueError) as error:  # ValueError: no UTF-8, or a scalar like 2001-99-99
        raise ParamsError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    return _parse_params(raw, path)


def _parse_params(raw: Any, path: Path) -> Params:
    sections = _mapping(raw, str(path))
    _check_keys(sections, {field.name for field in dataclasses.fields(Params)}, set(), str(path))
    at = f"{path}: "
    train = parse(TrainConfig, sections["train"], at + "train")
    models = _named(sections["models"], at + "models", lambda n, v, w: _architecture(n, v, sections["train"], w))
    attacks = _named(sections["attacks"], at + "attacks", _attack)
    variants = _named(
        sections["variants"], at + "variants", lambda n, v, w: _variant(n, v, sections["models"], w), may_be_empty=True
    )
    evaluate = parse(EvaluateConfig, sections["evaluate"], at + "evaluate")
    _check_coupling({"models": models, "variants": variants}, evaluate.batch_coupled, at)
    known = [*models, *variants]
    claims = _named(sections["claims"], at + "claims", lambda _, v, w: _claim(v, known, attacks, w), may_be_empty=True)
    return Params(
        dataset=_component("datasets", "dataset", sections["dataset"], at + "dataset"),
        models=models,
        variants=variants,
        train=train,
        seeds=_seeds(sections["seeds"], at + "seeds"),
        attacks=attacks,
        evaluate=evaluate,
        transfer=_transfer(sections["transfer"], attacks, evaluate, at + "transfer"),
        probe=parse(ProbeConfig, sections["probe"], at + "probe"),
        claims=claims,
        published=_named(
            sections["published"], at + "published", lambda _, v, w: _published(v, known, attacks, w), may_be_empty=True
        ),
        compute=parse(ComputeConfig, sections["compute"], at + "compute"),
    )


def _named(raw: Any, where: str, parse_entry: Any, *, may_be_empty: bool = False) -> dict[str, Any]:
    entries = _mapping(raw, where)
    if not entries and not may_be_empty:
        raise ParamsError(f"{where}: is empty; name at least one")
    for name in entries:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ParamsError(f"{where}: {name!r} is no name; use lower-case letters, digits and underscores")
    return {name: parse_entry(name, value, f"{where}.{name}") for name, value in entries.items()}


def _component(room: components.Room, name: str, raw: Any, where: str) -> Component:
    entry = dict(_mapping(raw, where))
    kind, module = _resolve(room, entry, where)
    return Component(room, name, kind, parse(module.Config, entry, where))


def _architecture(name: str, raw: Any, train: dict[str, Any], where: str) -> Architecture:
    """A model's entry; its optional ``train`` replaces keys of the section of that name."""
    entry = dict(_mapping(raw, where))
    own = _mapping(entry.pop("train", {}), f"{where}.train")
    model = _component("models", name, entry, where)
    return Architecture(model.room, name, model.kind, model.config, parse(TrainConfig, train | own, f"{where}.train"))


def _variant(name: str, raw: Any, models: dict[str, Any], where: str) -> Variant:
    """The model's entry with the keys that the variant's replaces; ``kind`` too, if the weights fit it."""
    own = dict(_mapping(raw, where))
    if "of" not in own:
        raise ParamsError(f"{where}: missing key 'of'; one of {', '.join(models)}")
    of = _value(own.pop("of"), str, f"{where}.of")
    if of not in models:
        raise ParamsError(f"{where}.of: {of!r} is no model; {components.nearest(of, models)}")
    if name in models:
        raise ParamsError(f"{where}: is the name of a model, too; take another")
    base = {key: value for key, value in models[of].items() if key != "train"}
    kind, module = _resolve("models", {"kind": base.pop("kind")} | own, where)
    own.pop("kind", None)
    known = {field.name for field in dataclasses.fields(module.Config)}
    entry = {key: value for key, value in base.items() if key in known} | own
    return Variant("models", name, kind, parse(module.Config, entry, where), of)


def _check_coupling(sections: dict[str, dict[str, Any]], declared: tuple[str, ...], at: str) -> None:
    """A model whose predictions depend on their batch has no accuracy of its own: it must be asked for by name."""
    known = [name for models in sections.values() for name in models]
    for name in declared:
        if name not in known:
            raise ParamsError(f"{at}evaluate.batch_coupled: {name!r} is no model; {components.nearest(name, known)}")
    for section, name, model in ((s, n, m) for s, models in sections.items() for n, m in models.items()):
        couples = getattr(components.load("models", model.kind), "couples_batch", None)
        if couples and couples(model.config) and name not in declared:
            raise ParamsError(
                f"{at}{section}.{name}: an image's prediction depends on the others of its batch; let each sample "
                "control its steps (solver: {control: sample}), or add the model to evaluate.batch_coupled"
            )


def _transfer(raw: Any, attacks: dict[str, AttackEntry], evaluate: EvaluateConfig, where: str) -> TransferConfig:
    transfer = parse(TransferConfig, raw, where)
    if transfer.attacks and not evaluate.n_examples:
        raise ParamsError(f"{where}.attacks: images are kept of the first evaluate.n_examples examples, which is 0")
    for name in transfer.attacks:
        if name not in attacks:
            raise ParamsError(f"{where}.attacks: {name!r} is no attack; {components.nearest(name, attacks)}")
    for name, solver in transfer.solvers.items():
        if solver.couples_batch:
            raise ParamsError(f"{where}.solvers.{name}.control: must be sample: predictions may not depend on a batch")
    return transfer


def _claim(raw: Any, models: list[str], attacks: dict[str, AttackEntry], where: str) -> Claim:
    """A claim about models and attacks that are there, at a strength that was measured."""
    claim = parse(Claim, raw, where)
    for key, name in (("more_robust", claim.more_robust), ("than", claim.than)):
        if name not in models:
            raise ParamsError(f"{where}.{key}: {name!r} is no model; {components.nearest(name, models)}")
    if claim.attack is not None and claim.attack not in attacks:
        raise ParamsError(f"{where}.attack: {claim.attack!r} is no attack; {components.nearest(claim.attack, attacks)}")
    seeking = [entry for name, entry in attacks.items() if name == claim.attack or _seeks(entry, claim.threat)]
    if not seeking or (claim.threat == "deformation_fold_free" and not any(map(_is_fold_free, seeking))):
        raise ParamsError(f"{where}.threat: no attack seeks {claim.threat}; add one or remove the claim")
    strengths = sorted({epsilon for entry in seeking for epsilon in entry.epsilons})
    if claim.at is not None and claim.at not in strengths:
        raise ParamsError(f"{where}.at: must be null or one of {', '.join(map(str, strengths))}, not {claim.at}")
    return claim


def _published(raw: Any, models: list[str], attacks: dict[str, AttackEntry], where: str) -> Published:
    """A figure of a model and an attack that are there, at a strength that was measured."""
    figure = parse(Published, raw, where)
    if figure.model not in models:
        raise ParamsError(f"{where}.model: {figure.model!r} is no model; {components.nearest(figure.model, models)}")
    if figure.attack not in attacks:
        raise ParamsError(
            f"{where}.attack: {figure.attack!r} is no attack; {components.nearest(figure.attack, attacks)}"
        )
    strengths = (0.0, *attacks[figure.attack].epsilons)
    if figure.at not in strengths:
        raise ParamsError(f"{where}.at: must be one of {', '.join(f'{s:g}' for s in strengths)}, not {figure.at:g}")
    return figure


def _seeks(attack: AttackEntry, threat: str | None) -> bool:
    return threat is not None and attack.norm == threat.removesuffix("_fold_free")


def _is_fold_free(attack: AttackEntry) -> bool:
    return bool(getattr(attack.config, "fold_free", False))


def _attack(name: str, raw: Any, where: str) -> AttackEntry:
    entry = dict(_mapping(raw, where))
    kind, module = _resolve("attacks", entry, where)
    own = {key: entry.pop(key) for key in ("n_images", "epsilons") if key in entry}
    _check_keys(own, {"n_images", "epsilons"}, set(), where)
    n_images = _value(own["n_images"], PositiveInt, f"{where}.n_images")
    epsilons = _value(own["epsilons"], tuple[PositiveFloat, ...], f"{where}.epsilons")
    if not epsilons or list(epsilons) != sorted(set(epsilons)):
        raise ParamsError(f"{where}.epsilons: must be a non-empty list in ascending order without repeats")
    config = parse(module.Config, entry, where)
    return AttackEntry("attacks", name, kind, config, n_images, epsilons)


def _resolve(room: components.Room, entry: dict[str, Any], where: str) -> tuple[str, Any]:
    """Take ``kind`` out of the entry and find its module."""
    if "kind" not in entry:
        raise ParamsError(f"{where}: missing key 'kind'; one of {', '.join(components.kinds(room))}")
    kind = _value(entry.pop("kind"), str, f"{where}.kind")
    try:
        return kind, components.load(room, kind)
    except components.UnknownComponentError as error:
        raise ParamsError(f"{where}.kind: {error}") from error


def _seeds(raw: Any, where: str) -> tuple[int, ...]:
    seeds: tuple[int, ...] = _value(raw, tuple[NonNegativeInt, ...], where)
    if not seeds or len(set(seeds)) != len(seeds):
        raise ParamsError(f"{where}: must be a non-empty list without repeats")
    return seeds


def parse(cls: type[T], raw: Any, where: str) -> T:
    """An instance of a dataclass from a mapping.

    Raises:
        ParamsError: a key is unknown, missing, mistyped or out of range; or ``__post_init__`` raised ValueError with
            a text ``"<field>: <reason>"``.
    """
    entry = _mapping(raw, where)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    optional = {name for name, field in fields.items() if field.default is not dataclasses.MISSING}
    _check_keys(entry, fields.keys(), optional, where)
    hints = get_type_hints(cls, include_extras=True)
    values = {name: _value(value, hints[name], f"{where}.{name}") for name, value in entry.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise ParamsError(f"{where}.{error}") from error


def _mapping(raw: Any, where: str) -> dict[Any, Any]:
    if not isinstance(raw, dict):
        raise ParamsError(f"{where}: must be a mapping of keys to values, not {_describe(raw)}")
    return raw


def _check_keys(entry: dict[Any, Any], known: Any, optional: set[str], where: str) -> None:
    for key in entry:
        if key not in known:
            raise ParamsError(f"{where}: unknown key {key!r}; {components.nearest(str(key), known)}")
    missing = [key for key in known if key not in entry and key not in optional]
    if missing:
        raise ParamsError(f"{where}: missing {'keys' if len(missing) > 1 else 'key'} {', '.join(sorted(missing))}")


def _value(raw: Any, hint: Any, where: str) -> Any:
    """``raw`` as the type ``hint``, or a ParamsError."""
    origin = get_origin(hint)
    if origin is Annotated:
        inner, *marks = get_args(hint)
        if inner is Component:
            return _component(marks[0].room, where.rpartition(".")[2], raw, where)
        value = _value(raw, inner, where)
        for mark in marks:
            reason = mark.violation(value) if isinstance(mark, Range) else None
            if reason:
                raise ParamsError(f"{where}: {reason}, not {raw!r}")
        return value
    if origin is Literal:
        # bool is an int in Python: True would pass for 1.
        if not any(raw == choice and type(raw) is type(choice) for choice in get_args(hint)):
            raise ParamsError(f"{where}: must be one of {', '.join(map(str, get_args(hint)))}, not {raw!r}")
        return raw
    if origin in (Union, types.UnionType):
        return _union(raw, get_args(hint), where)
    if origin is tuple:
        if not isinstance(raw, list):
            raise ParamsError(f"{where}: must be a list, not {_describe(raw)}")
        return tuple(_value(item, get_args(hint)[0], f"{where}[{i}]") for i, item in enumerate(raw))
    if origin is dict:
        return _named(raw, where, lambda _, item, at: _value(item, get_args(hint)[1], at), may_be_empty=True)
    if dataclasses.is_dataclass(hint):
        return parse(hint, raw, where)  # type: ignore[arg-type]
    return _scalar(raw, hint, where)


def _union(raw: Any, members: tuple[Any, ...], where: str) -> Any:
    if raw is None and type(None) in members:
        return None
    errors = []
    for member in (m for m in members if m is not type(None)):
        try:
            return _value(raw, member, where)
        except ParamsError as error:
            errors.append(error)
    raise errors[0]


def _scalar(raw: Any, hint: Any, where: str) -> Any:
    if hint is float and type(raw) is int and abs(raw) < 1e300:
        raw = float(raw)
    if type(raw) is not hint:
        quoted = isinstance(raw, str) and hint in (int, float) and _is_number(raw)
        remedy = "; remove the quotes" if quoted else ""
        raise ParamsError(f"{where}: must be {_TYPE_NAMES[hint]}, not {_describe(raw)}{remedy}")
    if isinstance(raw, float) and math.isnan(raw):
        raise ParamsError(f"{where}: must be a number, not NaN")
    return raw


_TYPE_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _describe(raw: Any) -> str:
    if raw is None:
        return "empty"
    names = {dict: "a mapping", list: "a list", str: "the text", bool: "the truth value"}
    return f"{names.get(type(raw), 'the number')} {raw!r}" if not isinstance(raw, dict | list) else names[type(raw)]
