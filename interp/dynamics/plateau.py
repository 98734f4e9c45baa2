"""Phases of learning, read off a metrics table (arXiv 2503.21676, section 2.2).

The paper does not say how it reads the end of a plateau off its curves. The rule here, that the
loss must fall by ``MARGIN`` of the no-knowledge baseline below it and stay there, gives the paper's
own points from the paper's own curves, within the distance of their checkpoints.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from interp.statistics import resampled_means

MARGIN = 0.005
"""Share of the baseline by which the loss must fall below it; the one that fits the paper's own
plateau ends.
"""


@dataclass(frozen=True)
class Phases:
    """Boundaries of the phases in optimizer steps; NaN where the run has no such point."""

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
    (loss,) = _checked(step, {"attribute_loss": attribute_loss}, no_knowledge_baseline, margin)
    return _for_good(step, loss < (1 - margin) * no_knowledge_baseline)


def plateau_crossing(
    step: Int[np.ndarray, " checkpoint"],
    attribute_loss: Float[np.ndarray, " checkpoint"],
    no_knowledge_baseline: float,
    *,
    margin: float = MARGIN,
) -> float:
    """Step at which the straight line between ``plateau_end`` and the checkpoint before it crosses
    the margin. It is not rounded up to a checkpoint, an error that grows as the plateau gets
    shorter.
    """
    step, attribute_loss = np.asarray(step), np.asarray(attribute_loss)
    end = plateau_end(step, attribute_loss, no_knowledge_baseline, margin=margin)
    at = np.searchsorted(step, end) if np.isfinite(end) else 0
    if at == 0:
        return end
    (x0, x1), (y0, y1) = step[at - 1 : at + 1], attribute_loss[at - 1 : at + 1]
    if not np.isfinite(y0):
        raise ValueError(f"attribute_loss is {y0} at step {x0}, so where it crosses is not known")
    return float(x0 + (x1 - x0) * (y0 - (1 - margin) * no_knowledge_baseline) / (y0 - y1))


def knowledge_start(
    step: Int[np.ndarray, " checkpoint"],
    attribute_loss: Float[np.ndarray, " checkpoint"],
    held_out_loss: Float[np.ndarray, " checkpoint"],
    no_knowledge_baseline: float,
    *,
    margin: float = 0.05,
) -> float:
    """First checkpoint from which, for good, the loss on known people is at most ``margin`` of the
    baseline above it, and that on held-out people exceeds it by more than that; NaN if there is
    none.

    A model may know something of people while its loss is above the baseline, if it is worse than
    the baseline on people it can't know: then this comes before ``plateau_end``.
    """
    losses = {"attribute_loss": attribute_loss, "held_out_loss": held_out_loss}
    loss, held_out = _checked(step, losses, no_knowledge_baseline, margin)
    least = margin * no_knowledge_baseline
    return _for_good(step, (loss < no_knowledge_baseline + least) & (held_out - loss > least))


def rises_from(
    step: Int[np.ndarray, " checkpoint"],
    loss: Float[np.ndarray, " checkpoint"],
    *,
    margin: float = MARGIN,
) -> float:
    """First checkpoint after its minimum from which a loss stays above (1 + margin) · minimum; NaN
    if it never does.
    """
    (loss,) = _checked(step, {"loss": loss}, 1.0, margin)
    for at in np.flatnonzero(~np.isfinite(loss)):
        raise ValueError(f"loss is {loss[at]} at step {step[at]}, so its minimum is not known")
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
    losses = {"attribute_loss": attribute_loss}
    (loss,) = _checked(step, losses, no_knowledge_baseline, start_margin)
    near = loss < (1 + start_margin) * no_knowledge_baseline
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
    """Percentile bootstrap interval of ``plateau_end`` over the people evaluated; a bound is NaN
    where it lies beyond the last checkpoint, and both are NaN for fewer than two people.

    The interval is of this run; what another training seed would give it does not say.
    """
    if not np.isfinite(loss).all() or not 0 < confidence < 1 or n_resamples < 1:
        raise ValueError(
            f"{np.sum(~np.isfinite(loss))} losses that are not finite, {confidence=} and "
            f"{n_resamples=} give no interval; give finite losses, 0.95 and 2000"
        )
    if loss.shape[1] < 2:
        return float("nan"), float("nan")
    means = resampled_means(loss.astype(float), n_resamples=n_resamples, seed=seed)
    ends = np.nan_to_num(
        [plateau_end(step, x, no_knowledge_baseline, margin=margin) for x in means.T], nan=np.inf
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(ends, [tail, 1 - tail], method="closest_observation")
    low, high = (float(x) if np.isfinite(x) else float("nan") for x in (low, high))
    return low, high


def _checked(
    step: np.ndarray, losses: dict[str, np.ndarray], baseline: float, margin: float
) -> list[Float[np.ndarray, " checkpoint"]]:
    """The losses as arrays. A loss that is NaN or infinite is below no threshold.

    Raises:
        ValueError: steps that don't increase, other lengths, a baseline not above 0, a margin
            outside 0 to 1.
    """
    step = np.asarray(step)
    if step.ndim != 1 or not len(step) or not np.isfinite(step).all():
        raise ValueError(f"got steps of shape {step.shape}; give one or more finite ones in a row")
    for i in np.flatnonzero(np.diff(step) <= 0):
        raise ValueError(f"step {step[i + 1]} comes after step {step[i]}; sort them, each once")
    for name, loss in losses.items():
        if np.shape(loss) != step.shape:
            raise ValueError(f"{name} has shape {np.shape(loss)}, the steps {step.shape}")
    if not (0 < baseline < np.inf and 0 <= margin < 1):
        raise ValueError(f"the baseline is {baseline}, the margin {margin}; give 2.0 and 0.05, say")
    values = [np.asarray(loss, float) for loss in losses.values()]
    return [np.where(np.isfinite(x), x, np.nan) for x in values]


def _for_good(
    step: Int[np.ndarray, " checkpoint"], holds: Bool[np.ndarray, " checkpoint"]
) -> float:
    """First step from which the condition holds up to the last step; NaN if there is none."""
    lasting = np.flip(np.logical_and.accumulate(np.flip(holds)))
    return float(np.asarray(step)[lasting][0]) if lasting.any() else float("nan")


def format_step(step: float | int, spacing: float | int = 1, *, sign: str = "") -> str:
    """A step, or a number of steps, as text: whole ones as they are, others to at least a tenth of
    ``spacing``, the distance between the neighbouring checkpoints.
    """
    digits = max(0, 2 - int(np.ceil(np.log10(spacing)))) if spacing > 0 else 2
    text = f"{round(step, digits) + 0.0:{sign}.{digits}f}"
    return text.rstrip("0").rstrip(".") if digits else text
