"""Tests of significance, as short as they are."""

import numpy as np
from jaxtyping import Float
from scipy.stats import t as student


def greater_than_0(values: Float[np.ndarray, "*cell fact"]) -> Float[np.ndarray, "*cell"]:
    """p of Student's one-sided t test that the mean over facts is above 0; 1 for a single fact, NaN
    where a value is NaN or infinite.
    """
    n = values.shape[-1]
    if n < 2:
        return np.ones(values.shape[:-1])
    with np.errstate(invalid="ignore", divide="ignore"):
        mean, error = values.mean(-1), values.std(-1, ddof=1) / n**0.5
        p = student.sf(mean / error, n - 1)
    p = np.where(error > 0, p, np.where(mean > 0, 0.0, 1.0))
    return np.where(np.isfinite(values).all(-1), p, np.nan)


def margin(values: Float[np.ndarray, "*cell fact"]) -> Float[np.ndarray, "*cell"]:
    """Half of Student's 95 % interval of the mean over facts; NaN for a single fact, and
    where a value is NaN or infinite.
    """
    n = values.shape[-1]
    if n < 2:
        return np.full(values.shape[:-1], np.nan)
    with np.errstate(invalid="ignore"):
        return np.asarray(student.ppf(0.975, n - 1) * values.std(-1, ddof=1) / n**0.5)


def holm(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """p values adjusted for their number (Holm 1979); a NaN is no test, and stays NaN.

    Raises:
        ValueError: not one row of numbers from 0 to 1.
    """
    if p.ndim != 1 or ((p < 0) | (p > 1)).any():
        raise ValueError(f"got {p.ndim} dims from {p.min()} to {p.max()}; give a row of p values")
    order = np.argsort(p)  # NaN last
    left = np.isfinite(p).sum() - np.arange(len(p))
    adjusted = np.minimum(1, np.maximum.accumulate(p[order] * left))
    return adjusted[np.argsort(order)]
