"""``python -m pipeline check``: validate params.yaml before anything runs."""

from __future__ import annotations

import sys

from pipeline.config import load_params
from pipeline.errors import UserError

USAGE = "usage: python -m pipeline check"


def main() -> None:
    if sys.argv[1:] != ["check"]:
        sys.exit(USAGE)
    try:
        params = load_params()
    except UserError as error:
        sys.exit(f"error: {error}")
    print(
        f"params.yaml is valid: {len(params.models)} models and {len(params.variants)} variants × "
        f"{len(params.seeds)} seeds, {len(params.attacks)} attacks"
    )


if __name__ == "__main__":
    main()
