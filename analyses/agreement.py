"""How well estimated effects agree with exact ones."""

import numpy as np
import xarray as xr
from scipy.stats import rankdata

from interp.statistics import percentiles, resampled_means

MEASURES = ("pearson", "spearman", "same_sign")
N_RESAMPLES = 500


def agreement_of(estimated: np.ndarray, patched: np.ndarray) -> np.ndarray:
    """Estimate, low and high of each of ``MEASURES``, from changes (cell, fact); cells in which
    nothing can change are left out.
    """
    there = np.isfinite(patched).any(1) & (np.abs(np.nan_to_num(patched)) > 1e-9).any(1)
    x, y = estimated[there], patched[there]
    known = np.isfinite(y).all(0)
    if len(x) < 3 or known.sum() < 2:
        return np.full((3, len(MEASURES)), np.nan)
    x, y = x[:, known], y[:, known]
    ranks = [rankdata(values).reshape(values.shape) for values in (x, y)]
    moments = [np.stack([a, b, a * a, b * b, a * b]).mean(1) for a, b in ((x, y), ranks)]
    of_fact = np.concatenate([*moments, (np.sign(x) == np.sign(y)).mean(0)[None]])
    resampled = resampled_means(of_fact, n_resamples=N_RESAMPLES, seed=0)
    return np.stack([_measures(of_fact.mean(1)), *percentiles(_measures(resampled), 0.95)])


def _measures(means: np.ndarray) -> np.ndarray:
    """``MEASURES``, from means over cells and facts of moments of values, of ranks, and of equal
    signs.
    """
    return np.stack([_correlation(means[:5]), _correlation(means[5:10]), means[10]])


def _correlation(moments: np.ndarray) -> np.ndarray:
    x, y, xx, yy, xy = moments
    return (xy - x * y) / np.sqrt((xx - x * x) * (yy - y * y))


def interval_text(at: xr.Dataset, name: str = "agreement") -> str:
    """A value with its interval, as text."""
    low, mid, high = (float(at[f"{name}{end}"]) for end in ("_low", "", "_high"))
    return "–" if np.isnan(mid) else f"{mid:.2f} [{low:.2f}, {high:.2f}]"
