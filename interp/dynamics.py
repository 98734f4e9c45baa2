"""Phases of learning, read off a metrics table (arXiv 2503.21676, section 2.2)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

MARGIN = 0.005
"""Share of the baseline by which the loss must fall below it; the one that fits the paper's own
plateau ends.
"""


@dataclass(frozen=True)
class Phases:
    """Optimizer steps; NaN where the run has no such point."""

    plateau_start: float
    plateau_end: float


def plateau_end(
    step: Int[np.ndarray, " checkpoint"],
    attribute_loss: Float[np.ndarray, " checkpoint"],
    no_knowledge_baseline: float,
    *,
    margin: float = MARGIN,
) -> float:
    """First checkpoint from which the loss stays below (1 − margin) · baseline; NaN if it never
    does.
    """
    below = np.asarray(attribute_loss) < (1 - margin) * no_knowledge_baseline
    for_good = np.flip(np.logical_and.accumulate(np.flip(below)))
    return float(np.asarray(step)[for_good][0]) if for_good.any() else float("nan")


def phases(
    step: Int[np.ndarray, " checkpoint"],
    attribute_loss: Float[np.ndarray, " checkpoint"],
    no_knowledge_baseline: float,
    *,
    start_margin: float = 0.05,
) -> Phases:
    """The plateau: from the first checkpoint with loss below (1 + start_margin) · baseline until
    ``plateau_end``.
    """
    near = np.asarray(attribute_loss) < (1 + start_margin) * no_knowledge_baseline
    start = float(np.asarray(step)[near][0]) if near.any() else float("nan")
    return Phases(start, plateau_end(step, attribute_loss, no_knowledge_baseline))
