"""Which heads hand their part over to others during training."""

import numpy as np
import pandas as pd
import xarray as xr

from interp.statistics import percentiles, resampled_means, runs_differ

N_RESAMPLES = 2000


def head_shares(found: xr.Dataset) -> xr.DataArray:
    """The share of clean − corrupted that is lost without each head (step, layer, head), on the
    facts measured on; NaN where the runs can't be told apart.
    """
    both = found[["head_lost", "gap"]].sel(half="measured on", drop=True)
    differ = runs_differ(both.gap.transpose("step", "fact").values)
    shares = both.head_lost.mean("fact") / both.gap.mean("fact")
    return shares.where(xr.DataArray(differ, dims="step"))


def takeovers(found: xr.Dataset) -> pd.DataFrame:
    """Of every head, the share of clean − corrupted that is lost without it, where it is largest
    and at the last step.

    The step of the largest share is found on the facts chosen by, among those at which the runs can
    be told apart on both halves; shares are of the other facts, so that a peak is not large by
    choice. Intervals of the change are 95 %, for all heads together (Bonferroni), of a paired
    bootstrap over facts.

    Returns:
        ``head``, ``peak_step``, ``peak`` and ``last`` (shares), ``change`` = last − peak with
        ``low`` and ``high``; ``hands_over``: the change is below 0 and halves the share. Of the
        head that loses most, ``rise`` = last − share at *its* peak step, with ``rise_low`` and
        ``rise_high``, and ``takes_over``: that rise is above 0; NaN if no head hands over. Empty
        where the runs differ at fewer than two steps.
    """
    gap = found.gap.transpose("step", "half", "fact").values
    steps = np.flatnonzero(runs_differ(gap).all(1))
    if len(steps) < 2:
        return pd.DataFrame()
    lost = found.head_lost.stack(at=("layer", "head"), create_index=False)
    lost = lost.transpose("half", "step", "at", "fact").values[:, steps]
    chosen_by, measured = np.moveaxis(gap[steps], 1, 0)
    by_choice = lost[0].mean(-1) / chosen_by.mean(-1)[:, None]
    peak = by_choice.argmax(0)
    share = lost[1].mean(-1) / measured.mean(-1)[:, None]
    resampled = _means(lost[1]) / _means(measured)[:, None]
    head = np.arange(share.shape[1])
    confidence = 1 - 0.05 / len(head)
    change = share[-1] - share[peak, head]
    low, high = percentiles(resampled[-1] - resampled[peak, head], confidence)
    hands_over = (high < 0) & (share[-1] < share[peak, head] / 2)
    table = pd.DataFrame(
        {
            "head": [f"L{layer}H{h}" for layer in found.layer.values for h in found["head"].values],
            "peak_step": found.step.values[steps][peak],
            "peak": share[peak, head],
            "last": share[-1],
            "change": change,
            "low": low,
            "high": high,
            "hands_over": hands_over,
        }
    )
    if not hands_over.any():
        nothing = dict.fromkeys(("rise", "rise_low", "rise_high"), np.nan)
        return table.assign(**nothing, takes_over=False)
    at = peak[np.argmin(np.where(hands_over, change, np.inf))]
    low, high = percentiles(resampled[-1] - resampled[at], confidence)
    return table.assign(
        rise=share[-1] - share[at], rise_low=low, rise_high=high, takes_over=low > 0
    )


def _means(values: np.ndarray) -> np.ndarray:
    return resampled_means(values, n_resamples=N_RESAMPLES, seed=0)
