"""Tests of significance, as short as they are."""

import numpy as np
from jaxtyping import Float
from scipy.stats import t as student


def greater_than_0(values: Float[np.ndarray, "*cell fact"]) -> Float[np.ndarray, "*cell"]:
    """p of Student's one-sided t test that the mean over facts is above 0; 1 for a single fact."""
    n = values.shape[-1]
    if n < 2:
        return np.ones(values.shape[:-1])
    mean, error = values.mean(-1), values.std(-1, ddof=1) / n**0.5
    with np.errstate(invalid="ignore", divide="ignore"):
        p = student.sf(mean / error, n - 1)
    return np.where(error > 0, p, np.where(mean > 0, 0.0, 1.0))


def margin(values: Float[np.ndarray, "*cell fact"]) -> Float[np.ndarray, "*cell"]:
    """Half of Student's 95 % interval of the mean over facts; NaN for a single fact or a NaN."""
    n = values.shape[-1]
    if n < 2:
        return np.full(values.shape[:-1], np.nan)
    return np.asarray(student.ppf(0.975, n - 1) * values.std(-1, ddof=1) / n**0.5)


def holm(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """p values adjusted for their number (Holm 1979); a NaN is no test, and stays NaN."""
    order = np.argsort(p)  # NaN last
    left = np.isfinite(p).sum() - np.arange(len(p))
    adjusted = np.minimum(1, np.maximum.accumulate(p[order] * left))
    return adjusted[np.argsort(order)]
