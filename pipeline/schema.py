"""The result rows: one per seed × example × strength (null for minimal attacks) × draw.

Everything the report says is computed from these rows; aggregates are never stored beside them.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Column:
    """A result column: pandas dtype, whether it may be null, and what it means."""

    dtype: str
    meaning: str
    nullable: bool = False


COLUMNS: dict[str, Column] = {
    "dataset": Column("string", "data set kind"),
    "split": Column("string", "split attacked; always test outside of tests"),
    "index": Column("int64", "example index within the split"),
    "input_sha256": Column("string", "SHA-256 of the example's uint8 pixels"),
    "label": Column("int64", "true label"),
    "target": Column("int64", "target label of a targeted attack; null if untargeted", nullable=True),
    "model": Column("string", "key in params.yaml: models or variants"),
    "seed": Column("int64", "training seed"),
    "attack": Column("string", "key in params.yaml: attacks"),
    "norm": Column("string", "size that is bounded: sigma, linf, l2, deformation"),
    "epsilon": Column("float64", "strength; null for minimal attacks", nullable=True),
    "draw": Column("int64", "draw of a random attack, from 0"),
    "inherited": Column("bool", "not attacked at this strength: the example fell at a lower one, whose result this is"),
    "source_model": Column("string", "model that a transferred example was made on, else null", nullable=True),
    "source_seed": Column("int64", "its seed, else null", nullable=True),
    "clean_pred": Column("int64", "prediction of the unperturbed input"),
    "adv_pred": Column("int64", "prediction of adv_inputs, by the judge"),
    "clean_correct": Column("bool", "clean_pred == label"),
    "success": Column("bool", "clean_correct and fooled and in_box and size <= epsilon (minimal attacks: any size)"),
    "size_l2": Column("float64", "l2 norm of adv_inputs - inputs", nullable=True),
    "size_linf": Column("float64", "l-infinity norm of adv_inputs - inputs", nullable=True),
    "size_deformation": Column("float64", "max over pixels of |tau|, pixels; null without a field", nullable=True),
    "folded_share": Column("float64", "share of pixel cells that fold; null without a field", nullable=True),
    "max_gradient": Column("float64", "largest spectral norm of grad tau; null without a field", nullable=True),
    "in_box": Column("bool", "adv_inputs within [0, 1]"),
    "clean_margin": Column("float64", "logit of the label minus the largest other, unperturbed", nullable=True),
    "adv_margin": Column("float64", "the same for adv_inputs", nullable=True),
    "output_shift_l2": Column("float64", "l2 norm of logits(adv_inputs) - logits(inputs)", nullable=True),
    "n_forwards": Column("int64", "model evaluations the attack spent on the example"),
    "n_backwards": Column("int64", "gradient evaluations the attack spent on the example"),
    "nfe": Column("int64", "vector-field evaluations to predict adv_inputs; 0 without an ODE"),
    "seconds": Column("float64", "wall time of the attack on the example's chunk, divided by the chunk's examples"),
    "status": Column("string", "how the attack ended; anything but ok, stopped, budget is not a result"),
    "config_hash": Column("string", "key of the cell: checkpoint, data, attack config, seed, code, lock file"),
}

_NULLABLE = {"int64": "Int64", "bool": "boolean"}


def pandas_dtype(name: str) -> str:
    """The pandas dtype of a column (the extension type where integers may be null)."""
    column = COLUMNS[name]
    return _NULLABLE.get(column.dtype, column.dtype) if column.nullable else column.dtype


_DTYPES = {name: pd.api.types.pandas_dtype(pandas_dtype(name)) for name in COLUMNS}
_NEVER_NULL = [name for name, column in COLUMNS.items() if not column.nullable]
# Of these, the columns whose own type has a null: NumPy's integers and truth values have none.
_CAN_HOLD_NULL = {name for name in _NEVER_NULL if COLUMNS[name].dtype in ("string", "float64")}


def empty() -> pd.DataFrame:
    """No rows, all columns, right dtypes."""
    return pd.DataFrame({name: pd.Series(dtype=pandas_dtype(name)) for name in COLUMNS})


def validate(rows: pd.DataFrame, *, source: str) -> pd.DataFrame:
    """Rows with the columns in order and their dtypes enforced.

    Raises:
        ValueError: a column is missing, unknown, of the wrong type or null where it may not be; names ``source``.
    """
    missing, unknown = COLUMNS.keys() - set(rows.columns), set(rows.columns) - COLUMNS.keys()
    if missing or unknown:
        raise ValueError(f"{source}: missing columns {sorted(missing)}, unknown columns {sorted(unknown)}")
    ordered = rows if list(rows.columns) == list(COLUMNS) else rows[list(COLUMNS)]
    found = ordered.dtypes.to_dict()
    wrong = {name: dtype for name, dtype in _DTYPES.items() if found[name] != dtype}
    # Before anything is converted: NumPy would make False of a missing truth value. NaN is a value of a float column
    # (a failed attack has no size); it is a fault only where null is not allowed.
    null = [name for name in _NEVER_NULL if (name in wrong or name in _CAN_HOLD_NULL) and ordered[name].isna().any()]
    if null:
        raise ValueError(f"{source}: null values in {null}")
    try:
        return ordered.astype(wrong) if wrong else ordered
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: a column has the wrong type: {error}") from error
