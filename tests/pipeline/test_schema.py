"""The rows' columns: what is put right, and what is refused."""

from __future__ import annotations

import pandas as pd
import pytest

from pipeline.schema import COLUMNS, empty, pandas_dtype, validate

VALUES = {"string": "a", "int64": 1, "bool": True, "float64": 0.5}


def rows(**changed: object) -> pd.DataFrame:
    """Two rows; of the columns named, the second holds what is given."""
    data = {name: [VALUES[column.dtype]] * 2 for name, column in COLUMNS.items()}
    return pd.DataFrame({name: [first, changed.get(name, second)] for name, (first, second) in data.items()})


def dtypes(frame: pd.DataFrame) -> dict[str, str]:
    return {str(name): str(dtype) for name, dtype in frame.dtypes.items()}


def test_columns_come_in_order_and_with_their_types() -> None:
    loose = rows()[list(reversed(COLUMNS))].astype({"label": "float64", "model": "object"})
    typed = validate(loose, source="here")
    assert list(typed.columns) == list(COLUMNS)
    assert dtypes(typed) == {name: pandas_dtype(name) for name in COLUMNS} == dtypes(empty())
    pd.testing.assert_frame_equal(validate(typed, source="here"), typed)


@pytest.mark.parametrize("name", COLUMNS)
def test_null_stands_only_where_it_may(name: str) -> None:
    holed = rows(**{name: None})
    if COLUMNS[name].nullable:
        assert validate(holed, source="here")[name].isna().tolist() == [False, True]
    else:
        with pytest.raises(ValueError, match=rf"here: null values in \['{name}'\]"):
            validate(holed, source="here")


def test_a_null_of_the_right_type_is_named() -> None:
    typed = validate(rows(), source="here")
    for name in ("status", "seconds"):
        holed = typed.assign(**{name: pd.Series([VALUES[COLUMNS[name].dtype], None], dtype=pandas_dtype(name))})
        with pytest.raises(ValueError, match=rf"here: null values in \['{name}'\]"):
            validate(holed, source="here")


def test_the_wrong_columns_are_named() -> None:
    wrong = rows().drop(columns="status").assign(colour="red")
    with pytest.raises(ValueError, match=r"here: missing columns \['status'\], unknown columns \['colour'\]"):
        validate(wrong, source="here")


def test_the_wrong_type_is_refused() -> None:
    with pytest.raises(ValueError, match="here: a column has the wrong type"):
        validate(rows(n_forwards="many"), source="here")
