"""A profile's own workspace: ``python -m pipeline.workspace <profile>`` makes or refreshes ``runs/<profile>/``.

A profile is a change to params.yaml with results of its own. It runs in a copy of the sources, so that no profile's
results replace another's; the store of finished weights and rows is shared, so that none is computed twice.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.components import nearest
from pipeline.config import ParamsError, load_params
from pipeline.errors import UserError
from pipeline.files import write_text
from pipeline.store import STORE

PROFILES = Path("profiles")
SOURCES = ("dvc.yaml", "requirements.lock")


def make_workspace(root: Path, profile: Path, target: Path) -> None:
    """Copy the sources of ``root`` to ``target`` with the profile applied to params.yaml; results there stay.

    Raises:
        UserError: the profile names what params.yaml does not have, or the parameters it makes are not valid.
    """
    yaml = YAML()
    params = yaml.load((root / "params.yaml").read_text(encoding="utf-8"))
    apply_profile(params, profile)
    text = io.StringIO()
    yaml.dump(params, text)
    target.mkdir(parents=True, exist_ok=True)
    write_text(target / "params.yaml", text.getvalue())
    load_params(target / "params.yaml")
    shutil.rmtree(target / "pipeline", ignore_errors=True)
    shutil.copytree(root / "pipeline", target / "pipeline", ignore=shutil.ignore_patterns("__pycache__", "*.tmp"))
    for name in SOURCES:
        shutil.copyfile(root / name, target / name)
    _configure_dvc(target)
    store = target / STORE
    if not store.exists():
        (root / STORE).mkdir(exist_ok=True)
        store.symlink_to((root / STORE).resolve(), target_is_directory=True)


def _configure_dvc(target: Path) -> None:
    """A DVC repository of its own, which needs no git."""
    (target / ".dvc").mkdir(exist_ok=True)
    write_text(target / ".dvc" / "config", "[core]\n    no_scm = true\n    analytics = false\n    autostage = false\n")


def apply_profile(params: dict[str, Any], profile: Path) -> None:
    """Change the parameters as the profile says.

    Raises:
        UserError: there is no such profile, or it names what the parameters do not have.
    """
    for path, change in _chain(profile):
        _apply(params, change, str(path))


def _chain(profile: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The profile after the one that it is a change ``of``; that one is of no other."""
    change = _read(profile)
    base = change.get("of")
    if base is None:
        return [(profile, change)]
    path = profile.with_name(f"{base}.yaml")
    first = _read(path)
    if "of" in first:
        raise ParamsError(f"{profile}: of: {base!r} is itself a change of another profile; name that one")
    return [(path, first), (profile, change)]


def _read(profile: Path) -> dict[str, Any]:
    try:
        raw = YAML(typ="safe", pure=True).load(profile.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        known = [path.stem for path in profile.parent.glob("*.yaml")]
        raise UserError(f"{profile}: no such profile; {nearest(profile.stem, known)}") from error
    except YAMLError as error:
        raise ParamsError(f"{profile}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict) or not raw.keys() <= {"of", "only", "set"}:
        raise ParamsError(
            f"{profile}: must have the keys 'only' (names kept per section), 'set' (values changed) and, if it "
            "changes another profile, 'of' (its name)"
        )
    return raw


def _apply(params: dict[str, Any], change: dict[str, Any], where: str) -> None:
    for section, names in (change.get("only") or {}).items():
        entries = params.get(section, {})
        for name in names:
            if name not in entries:
                raise ParamsError(f"{where}: only.{section}: {name!r} is not in params.yaml; {nearest(name, entries)}")
        for name in [name for name in entries if name not in names]:
            del entries[name]
    # What transfers and what is claimed follows what is attacked.
    if "transfer" in params:
        params["transfer"]["attacks"] = [name for name in params["transfer"]["attacks"] if name in params["attacks"]]
    if "claims" in params:
        for name in [name for name, claim in params["claims"].items() if not _is_testable(claim, params)]:
            del params["claims"][name]
    _merge(params, change.get("set") or {})


def _is_testable(claim: dict[str, Any], params: dict[str, Any]) -> bool:
    """Whether the models and attacks that a claim names are left; what it lacks is load_params' to say."""
    models, attacks = {*params["models"], *params["variants"]}, params["attacks"]
    if not {claim[key] for key in ("more_robust", "than") if key in claim} <= models:
        return False
    if claim.get("attack") is not None:
        return claim["attack"] in attacks
    threat = claim.get("threat") or ""
    norm = threat.removesuffix("_fold_free")
    return not threat or any(a["norm"] == norm and (norm == threat or a.get("fold_free")) for a in attacks.values())


def _merge(params: dict[str, Any], change: dict[str, Any]) -> None:
    """Mappings are merged key by key, but for those of another kind; everything else is replaced.

    Unknown keys are load_params' to refuse.
    """
    for key, value in change.items():
        old = params.get(key)
        if isinstance(value, dict) and isinstance(old, dict) and value.get("kind", old.get("kind")) == old.get("kind"):
            _merge(params[key], value)
        else:
            params[key] = value


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m pipeline.workspace <profile>, one of the files in profiles/")
    try:
        make_workspace(Path(), PROFILES / f"{sys.argv[1]}.yaml", Path("runs") / sys.argv[1])
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
