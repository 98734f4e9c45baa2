"""Curves in a CSV file: numbers are plain decimals and each (curve, step, fact) occurs once;
anything else is refused, naming file and row.
"""

import re
from math import prod
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.data.csv_table import read_csv_table

_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
LEAST_SPARSE, SPARSE = 10**7, 20
"""A file may name so many cells (curves × steps × facts), or so many times its rows."""


def read_curve_table(path: Path) -> pd.DataFrame:
    """One row per (curve, step, fact), in the order of the file: step (whole numbers if all are),
    value (NaN where the field is empty), and the labels curve and fact if there are such columns.

    Raises:
        FileNotFoundError, ValueError: no such file, not such a CSV.
    """
    table = read_csv_table(path, needed=("step", "value"), optional=("curve", "fact"))
    steps, values = (_numbers(table, column, path) for column in ("step", "value"))
    for row, text in table.step[np.abs(steps) >= 2**53].items():
        raise ValueError(
            f"{path}, row {row}: step is {text!r}; steps from 2^53 on can't be told apart, use "
            "larger units"
        )
    dims = [column for column in ("curve", "step", "fact") if column in table]
    for column in set(dims) - {"step"}:
        for row in table.index[table[column] == ""]:
            raise ValueError(f"{path}, row {row}: no {column}; write its label")
    whole = (steps == np.round(steps)).all()
    found = table.assign(step=steps.astype(int) if whole else steps, value=values)
    for row in table.index[found.duplicated(dims)]:
        cell = ", ".join(f"{column} {table[column][row]}" for column in dims)
        raise ValueError(f"{path}, row {row}: {cell} again; name samples in a column fact")
    sizes = {column: found[column].nunique() for column in dims}
    if prod(sizes.values()) > max(LEAST_SPARSE, SPARSE * len(found)):
        named = " × ".join(f"{n} {column}s" for column, n in sizes.items())
        raise ValueError(
            f"{path} has {len(found)} rows for {named}; give curves that share their steps and "
            "facts, or a file a curve"
        )
    return found


def _numbers(table: pd.DataFrame, column: str, path: Path) -> Float[np.ndarray, " row"]:
    values = np.full(len(table), np.nan)
    for i, text in enumerate(table[column]):
        if column == "value" and not text.strip():
            continue
        number = float(text) if _NUMBER.fullmatch(text) else np.nan
        if not np.isfinite(number):
            raise ValueError(f"{path}, row {table.index[i]}: {column} is {text!r}; write a number")
        values[i] = number
    return values + 0.0  # −0 is 0
