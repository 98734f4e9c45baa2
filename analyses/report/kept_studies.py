"""Figures of the training studies whose tables are kept with the toolkit: other models than the
page's, but the same question.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from interp.report.overview import LinePanel
from interp.statistics import margin

KEPT = Path(__file__).parents[1] / "results" / "laptop"
_DETECTORS = {
    "maximum probability": "how sure it is of what it says",
    "probe, answer position": "a linear probe at the answer position",
    "prompt length (control)": "length of the prompt (control)",
}


def kept_lines() -> dict[str, LinePanel]:
    """Panels by name, of those studies whose tables are there."""
    made = {"finetuned": _finetuned, "told": _told}
    return {name: lines for name, make in made.items() if (lines := make()) is not None}


def _finetuned() -> LinePanel | None:
    """Accuracy on old and on new people while fine-tuning on new people alone."""
    table = _table("finetuning")
    if table is None:
        return None
    plain = table[(table.kind == "new people") & (table.share == 1 / 8)]
    names = {"train": "old people", "new": "new people"}
    lines = [
        _over_seeds(name, plain[plain.split == split], "accuracy") for split, name in names.items()
    ]
    return LinePanel("step of fine-tuning", "share of values right", _seeds(plain), lines)


def _told() -> LinePanel | None:
    """How well known people can be told from unknown ones, by several detectors."""
    table = _table("hallucination_detection")
    if table is None:
        return None
    lines = [
        _over_seeds(name, table[table.detector == detector], "auroc")
        for detector, name in _DETECTORS.items()
    ]
    return LinePanel(
        "step of those models' training", "AUROC (0.5: not at all)", _seeds(table), lines
    )


def _table(name: str) -> pd.DataFrame | None:
    path = KEPT / f"{name}.csv"
    return pd.read_csv(path) if path.is_file() else None


def _over_seeds(name: str, table: pd.DataFrame, value: str) -> dict:
    """Mean over seeds by step, a share, with its 95 % interval (Student's t), cut at 0 and 1."""
    wide = table.pivot(index="step", columns="seed", values=value)
    mean, half = wide.mean(axis=1).to_numpy(), margin(wide.to_numpy())
    low, high = (np.clip(x, 0, 1) for x in (mean - half, mean + half))
    return {"name": name, "x": wide.index.to_numpy(), "mean": mean, "low": low, "high": high}


def _seeds(table: pd.DataFrame) -> str:
    return f"n = {table.seed.nunique()} models"
