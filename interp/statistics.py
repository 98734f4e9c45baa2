"""Hypothesis tests over facts, their correction, and confidence intervals: one rule for each.

Facts are the sample: p values and intervals speak of other facts of the same run, and are no
evidence for another training seed.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import sem, ttest_1samp
from scipy.stats import t as student

ALPHA = 0.05
"""Level of every test, of all tests of a family together where there are several (Holm 1979)."""


def greater_than_0(values: Float[np.ndarray, "*cell fact"]) -> Float[np.ndarray, "*cell"]:
    """p of Student's one-sided t test that the mean over facts is above 0.

    Equal values are certain (0 if above 0, else 1). NaN, no test: fewer than two facts, or a value
    that is NaN or infinite.
    """
    if values.shape[-1] < 2:
        return np.full(values.shape[:-1], np.nan)
    p = np.where(values[..., 0] > 0, 0.0, 1.0)
    varies = (values != values[..., :1]).any(-1)
    with np.errstate(invalid="ignore"):  # infinite values
        p[varies] = ttest_1samp(values[varies], 0, axis=-1, alternative="greater").pvalue
    return np.where(np.isfinite(values).all(-1), p, np.nan)


def runs_differ(gap: Float[np.ndarray, "*cell fact"]) -> Bool[np.ndarray, "*cell"]:
    """Whether the clean and the corrupted run can be told apart, from clean − corrupted of each
    fact: the mean is above 0 by Student's one-sided t test, p < ``ALPHA``.

    One-sided, since of a gap below 0 there is no share to recover; t, since there may be few facts.
    A single fact can't be tested and is taken at its word; NaN differs from nothing.
    """
    if gap.shape[-1] == 1:
        return np.asarray(gap[..., 0] > 0)
    return np.asarray(greater_than_0(gap) < ALPHA)


def gap_is_precise(gap: Float[np.ndarray, "*cell fact"]) -> Bool[np.ndarray, "*cell"]:
    """Whether the mean of clean − corrupted is at least ten of its standard errors, so that shares
    of it can be compared between checkpoints.

    Stricter than ``runs_differ``, which is enough for a share and its interval to exist: a ratio of
    means is nearly unbiased only where its denominator varies by less than a tenth.

    Source: Hartley and Ross 1954, Nature 174; Cochran 1977, Sampling Techniques, chapter 6: the
        bias of a ratio of means is at most its standard error times the coefficient of variation
        of the mean in its denominator.
    """
    if gap.shape[-1] < 2:
        return np.zeros(gap.shape[:-1], bool)
    with np.errstate(invalid="ignore"):
        mean, error = gap.mean(-1), gap.std(-1, ddof=1) / gap.shape[-1] ** 0.5
        return np.asarray((mean > 0) & (mean >= 10 * error))


def holm(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """p values adjusted for their number (Holm 1979); NaN stands for no test and stays NaN.

    Raises:
        ValueError: not one row of numbers from 0 to 1.
    """
    if p.ndim != 1 or ((p < 0) | (p > 1)).any():
        raise ValueError(f"got {p.ndim} dims from {p.min()} to {p.max()}; give a row of p values")
    order = np.argsort(p)  # NaN last
    left = np.isfinite(p).sum() - np.arange(len(p))
    adjusted = np.minimum(1, np.maximum.accumulate(p[order] * left))
    return adjusted[np.argsort(order)]


def format_p(p: float, floor: float = 0.0) -> str:
    """A p value as text: 0.012, < 0.001; ≤ 0.016 where it equals ``floor``, the smallest value that
    so many shuffles or resamples can give.
    """
    if np.isnan(p):
        return "not tested"
    sign = "≤ " if p <= floor * (1 + 1e-9) else ""
    return f"{sign}{p:.3f}" if p >= 0.001 else "< 0.001"


def margin(values: Float[np.ndarray, "*cell fact"]) -> Float[np.ndarray, "*cell"]:
    """Half of Student's 95 % interval of the mean over facts; NaN for a single fact, and
    where a value is NaN or infinite.
    """
    n = values.shape[-1]
    if n < 2:
        return np.full(values.shape[:-1], np.nan)
    with np.errstate(invalid="ignore"):
        return np.asarray(student.ppf(0.975, n - 1) * sem(values, axis=-1))


def resampled_means(
    values: Float[np.ndarray, "*cell fact"], *, n_resamples: int, seed: int
) -> Float[np.ndarray, "*cell resample"]:
    """Means over bootstrap resamples of the facts, ignoring NaN; NaN for a single fact, which says
    nothing about others.

    The same ``seed`` draws the same facts for every cell and every call with as many facts, so that
    resamples are paired: differences and ratios of cells can be taken resample by resample.
    """
    counts, there = _counts(values.shape[-1], n_resamples, seed), ~np.isnan(values)
    total = _weighted(np.where(there, values, 0), counts)
    with np.errstate(invalid="ignore"):  # a resample without any fact that has the cell
        means = total / (values.shape[-1] if there.all() else _weighted(there, counts))
    return means if values.shape[-1] > 1 else np.full_like(means, np.nan)


def resampled_shares(
    part: Float[np.ndarray, "*cell fact"],
    whole: Float[np.ndarray, "*#cell fact"],
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Float[np.ndarray, "*cell resample"]:
    """Mean ``part`` ÷ mean ``whole`` over bootstrap resamples of the facts, the same for both and
    for every cell (as in ``resampled_means``); NaN for a single fact.

    An interval that takes the whole as known is too narrow where part and whole vary independently,
    and too wide where they vary together. A fact that is NaN in ``part`` is left out of both.
    """
    counts, there = _counts(part.shape[-1], n_resamples, seed), ~np.isnan(part)
    whole = whole if there.all() else np.where(there, whole, 0)
    with np.errstate(invalid="ignore", divide="ignore"):  # a cell that no fact has
        shares = _weighted(np.where(there, part, 0), counts) / _weighted(whole, counts)
    return shares if part.shape[-1] > 1 else np.full_like(shares, np.nan)


def share_interval(
    part: Float[np.ndarray, "*cell fact"],
    whole: Float[np.ndarray, "*#cell fact"],
    *,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> tuple[Float[np.ndarray, "*cell"], Float[np.ndarray, "*cell"]]:
    """Low and high bound of mean ``part`` ÷ mean ``whole``: percentiles of ``resampled_shares``.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3.
    """
    shares = resampled_shares(part, whole, n_resamples=n_resamples, seed=seed)
    return percentiles(shares, confidence)


def percentiles(
    resampled: Float[np.ndarray, "*cell resample"], confidence: float
) -> tuple[Float[np.ndarray, "*cell"], Float[np.ndarray, "*cell"]]:
    """Low and high bound of the central ``confidence`` of resamples, ignoring NaN."""
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    flat = resampled.reshape(-1, resampled.shape[-1])
    missing = np.isnan(flat).any(-1)
    bounds = np.full((2, len(flat)), np.nan)
    bounds[:, ~missing] = np.quantile(flat[~missing], tails, axis=-1)
    some = missing & ~np.isnan(flat).all(-1)
    if some.any():  # much slower: cell by cell
        bounds[:, some] = np.nanquantile(flat[some], tails, axis=-1)
    low, high = bounds.reshape(2, *resampled.shape[:-1])
    return np.asarray(low), np.asarray(high)


@lru_cache(maxsize=4)
def _counts(n: int, n_resamples: int, seed: int) -> Int[np.ndarray, "resample fact"]:
    """How often each of n facts occurs in each resample; read only, as it is kept."""
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_resamples)
    counts.flags.writeable = False
    return counts


def _weighted(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sums over each resample's facts, in the precision of ``values``."""
    dtype = values.dtype if values.dtype.kind == "f" else float
    values = values.astype(dtype, copy=False)
    return np.einsum("...f,rf->...r", values, counts.astype(dtype), optimize=True)
