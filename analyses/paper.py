"""The paper's figures as numbers (arXiv 2503.21676), to be shown beside ours."""

from functools import lru_cache
from pathlib import Path

import pandas as pd

NO_KNOWLEDGE = 6.784
"""Nats per value: mean entropy of the paper's uniform pools, 74,400 birth dates, 800 cities
(twice), 200 universities, 100 majors and 500 companies.
"""
BATCH_SIZE = 128
FIGURE_W = pd.DataFrame({
    "x": [1000, 2000, 3000, 5000, 16_000], "y": [0.0216, 0.0141, 0.0105, 0.0097, 0.0069]
})  # fmt: skip
"""Final attribute loss by the step of a reference that was trained on its people in eight groups,
one after the other; read off the figure.
"""


def panel(figure: str, name: str) -> pd.DataFrame:
    """The points of a panel: series, x_name, x, y_name, y.

    Raises:
        ValueError: there is none of that name.
    """
    table = _points()
    found = table[(table.figure == figure) & (table.panel == name)]
    if found.empty:
        raise ValueError(f"no panel {name!r} in figure {figure}")
    return found.drop(columns=["figure", "panel"]).reset_index(drop=True)


@lru_cache
def _points() -> pd.DataFrame:
    path = Path(__file__).parent / "data" / "paper_curves.csv"
    return pd.read_csv(path, dtype={"figure": str})
