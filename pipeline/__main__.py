"""``python -m pipeline``: what there is, what it means, and what a run of params.yaml would do."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.config import Params

ABOUT = "The benchmark of robustness: what there is to name in params.yaml, what it means, and what a run would do."
EPILOG = """\
The benchmark itself runs by `make repro` or, in the activated environment, by `dvc repro`; `make` lists all commands.
"""


def main() -> None:
    arguments = _parser().parse_args()
    try:
        print(arguments.command(arguments))
    except UserError as error:
        sys.exit(f"error: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m pipeline", description=ABOUT, epilog=EPILOG)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    about = "validate params.yaml; print what would run and how long that took before"
    commands.add_parser("check", help=about, description=about).set_defaults(command=_check)
    about = "what is trained and attacked, what runs, and how long the rest takes"
    commands.add_parser("status", help=about, description=about).set_defaults(command=_status)
    about = "architectures, attacks, data sets and defences with their parameters, a line each"
    commands.add_parser("list", help=about, description=about).set_defaults(command=_list)
    about = "formula, source, parameters with units and cost of one of them"
    explain = commands.add_parser("explain", help=about, description=about)
    explain.add_argument("name", help="a kind that `list` shows, or a key of params.yaml: explain adef")
    explain.set_defaults(command=_explain)
    about = "this run's curves and time against the last run's: exit status 1 if they moved"
    compare = commands.add_parser("compare", help=about, description=about)
    compare.add_argument("last", type=Path, help="folder of a run, with reports/ and, if it was timed, timing.json")
    compare.add_argument("this", type=Path, help="another")
    compare.set_defaults(command=_compare)
    return parser


# The commands import late: none should wait for what only the others need.
def _check(_: argparse.Namespace) -> str:
    from pipeline.config import load_params
    from pipeline.plan import plan, read_costs

    params = load_params()
    counted = (
        f"params.yaml is valid: {len(params.models)} models and {len(params.variants)} variants × "
        f"{len(params.seeds)} seeds, {len(params.attacks)} attacks"
    )
    return f"{counted}\n\n{plan(params, read_costs(params))}"


def _status(_: argparse.Namespace) -> str:
    from pipeline.config import load_params
    from pipeline.status import status

    return status(load_params())


def _list(_: argparse.Namespace) -> str:
    from pipeline.catalogue import catalogue

    return catalogue()


def _explain(arguments: argparse.Namespace) -> str:
    from pipeline.catalogue import explain

    return explain(arguments.name, _params())


def _compare(arguments: argparse.Namespace) -> str:
    from pipeline.regression import compare, read_run, text

    if not arguments.last.is_dir():
        return f"## Against the last run\n\nNothing to compare with: {arguments.last} is not there. A first run?"
    comparison = compare(read_run(arguments.last), read_run(arguments.this))
    if comparison.failed:
        print(text(comparison))
        sys.exit(1)
    return text(comparison)


def _params() -> Params | None:
    """A broken or absent params.yaml keeps nobody from asking what a component means."""
    from pipeline.config import load_params

    try:
        return load_params()
    except UserError:
        return None


if __name__ == "__main__":
    main()
