"""Phases of learning, read off a metrics table (arXiv 2503.21676, section 2.2), and how they scale.

The paper does not say how it reads the end of a plateau off its curves. The rule here, that the
loss must fall by ``MARGIN`` of the no-knowledge baseline below it and stay there, gives the paper's
own points from the paper's own curves, within the distance of their checkpoints.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import linregress
from scipy.stats import t as student

MARGIN = 0.005
"""Share of the baseline by which the loss must fall below it; the one that fits the paper's own
plateau ends.
"""


@dataclass(frozen=True)
class Phases:
    """Optimizer steps; NaN where the run has no such point."""

    plateau_start: float
    plateau_end: float


@dataclass(frozen=True)
class PowerLaw:
    """y = factor · x^exponent, by least squares on logarithms; 95 % intervals from Student's t."""

    factor: float
    factor_low: float
    factor_high: float
    exponent: float
    exponent_low: float
    exponent_high: float
    r_squared: float
    """Of the logarithms."""

    def __call__(self, x: Float[np.ndarray, " point"]) -> Float[np.ndarray, " point"]:
        return self.factor * np.asarray(x, float) ** self.exponent


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
    return _for_good(step, np.asarray(attribute_loss) < (1 - margin) * no_knowledge_baseline)


def plateau_crossing(
    step: Int[np.ndarray, " checkpoint"],
    attribute_loss: Float[np.ndarray, " checkpoint"],
    no_knowledge_baseline: float,
    *,
    margin: float = MARGIN,
) -> float:
    """Where the straight line from the checkpoint before ``plateau_end`` to it crosses the margin:
    free of the rounding up to a checkpoint, which is coarser the shorter the plateau.
    """
    end = plateau_end(step, attribute_loss, no_knowledge_baseline, margin=margin)
    at = np.searchsorted(step, end) if np.isfinite(end) else 0
    if at == 0:
        return end
    (x0, x1), (y0, y1) = step[at - 1 : at + 1], attribute_loss[at - 1 : at + 1]
    return float(x0 + (x1 - x0) * (y0 - (1 - margin) * no_knowledge_baseline) / (y0 - y1))


def knowledge_start(
    step: Int[np.ndarray, " checkpoint"],
    attribute_loss: Float[np.ndarray, " checkpoint"],
    held_out_loss: Float[np.ndarray, " checkpoint"],
    no_knowledge_baseline: float,
    *,
    margin: float = 0.05,
) -> float:
    """First checkpoint from which, for good, the loss on known people is no more than ``margin`` of
    the baseline above it, and that on held-out people exceeds it by more than as much; NaN if there
    is none.

    A model may know something of people while its loss is above the baseline, if it is worse than
    the baseline on people it can't know: then this comes before ``plateau_end``.
    """
    loss, least = np.asarray(attribute_loss), margin * no_knowledge_baseline
    near = loss < no_knowledge_baseline + least
    return _for_good(step, near & (np.asarray(held_out_loss) - loss > least))


def rises_from(
    step: Int[np.ndarray, " checkpoint"],
    loss: Float[np.ndarray, " checkpoint"],
    *,
    margin: float = MARGIN,
) -> float:
    """First checkpoint after its minimum from which a loss stays above (1 + margin) · minimum; NaN
    if it never does.
    """
    loss = np.asarray(loss)
    return _for_good(step, loss > (1 + margin) * loss.min())


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


def plateau_end_interval(
    step: Int[np.ndarray, " checkpoint"],
    loss: Float[np.ndarray, "checkpoint person"],
    no_knowledge_baseline: float,
    *,
    margin: float = MARGIN,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of ``plateau_end`` over the people evaluated; an end is NaN
    where it lies beyond the last checkpoint.

    The interval is of this run; what another training seed would give it does not say.
    """
    n = loss.shape[1]
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), n_resamples)
    means = loss @ counts.T / n
    ends = [plateau_end(step, x, no_knowledge_baseline, margin=margin) for x in means.T]
    ends = np.nan_to_num(ends, nan=np.inf)
    tail = (1 - confidence) / 2
    low, high = np.quantile(ends, [tail, 1 - tail], method="closest_observation")
    return tuple(float(x) if np.isfinite(x) else float("nan") for x in (low, high))


def _for_good(
    step: Int[np.ndarray, " checkpoint"], holds: Bool[np.ndarray, " checkpoint"]
) -> float:
    """First step from which it holds up to the last; NaN if it does not hold there."""
    lasting = np.flip(np.logical_and.accumulate(np.flip(holds)))
    return float(np.asarray(step)[lasting][0]) if lasting.any() else float("nan")


def power_law(
    x: Float[np.ndarray, " point"],
    y: Float[np.ndarray, " point"],
    *,
    confidence: float = 0.95,
) -> PowerLaw:
    """The power law through points; points with a NaN are left out.

    Raises:
        ValueError: fewer than three points are left, or all at one x; or a value is not above 0.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    there = np.isfinite(x) & np.isfinite(y)
    x, y = x[there], y[there]
    if len(x) < 3 or len(set(x)) < 2:
        raise ValueError(f"a power law needs three points at two x; got {len(x)} at {len(set(x))}")
    if min(*x, *y) <= 0:
        raise ValueError(f"a power law needs values above 0; got {min(*x, *y)}")
    fit = linregress(np.log(x), np.log(y))
    t = student.ppf((1 + confidence) / 2, len(x) - 2)
    slope, off = fit.slope + t * fit.stderr * np.array([-1, 1]), t * fit.intercept_stderr
    factor, low, high = np.exp(fit.intercept + np.array([0, -off, off]))
    return PowerLaw(factor, low, high, fit.slope, *slope, fit.rvalue**2)
