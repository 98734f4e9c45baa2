"""Which heads do less, and which more, for the answer than they did before in training."""

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import sem
from scipy.stats import t as student

from analyses.checkpoints import halves
from interp.statistics import ALPHA, gap_is_precise


def takeovers(found: xr.Dataset) -> pd.DataFrame:
    """Of every head, the share of clean − corrupted that is lost without it, at the step at which
    it is largest and at the last one.

    Compared are the steps at which clean − corrupted is precise (``statistics.gap_is_precise``) on
    both halves of the facts. The step of the largest share is found on one half, shares are of the
    other, so that a peak is not large by choice. Intervals of a change of share are Student's, of
    each fact's lost − share · gap (to first order the change's own), at 1 − ALPHA ÷ heads, so that
    all of a column hold together (Bonferroni).

    Returns:
        ``head``; ``peak_step``, ``peak`` and ``last`` (shares), ``change`` = last − peak with
        ``low`` and ``high``; ``falls``: the change is below 0. ``first_step``; ``rise`` = last −
        share at ``first_step`` with ``rise_low`` and ``rise_high``; ``rises``: it is above 0. Empty
        where there are fewer than two such steps.
    """
    attribute = found.asked.values
    attribute = attribute[0] if attribute.ndim > 1 else attribute
    gap = found.head_gap.transpose("step", "any_fact").values
    lost = found.head_lost.stack(at=("layer", "head"), create_index=False)
    lost = lost.transpose("step", "at", "any_fact").values
    chosen, measured = halves(attribute)
    precise = gap_is_precise(gap[:, chosen]) & gap_is_precise(gap[:, measured])
    steps = np.flatnonzero(precise)
    if len(steps) < 2:
        return pd.DataFrame()
    gap, lost = gap[steps], lost[steps]
    peak = (lost[..., chosen].mean(-1) / gap[:, None, chosen].mean(-1)).argmax(0)
    lost, gap = lost[..., measured], gap[:, measured]
    share = lost.mean(-1) / gap.mean(-1)[:, None]
    around = (lost - share[..., None] * gap[:, None]) / gap.mean(-1)[:, None, None]
    head = np.arange(share.shape[1])
    reach = student.ppf(1 - ALPHA / len(head) / 2, len(measured) - 1)
    columns = {"peak_step": found.step.values[steps][peak], "peak": share[peak, head]}
    columns |= {"last": share[-1], "first_step": found.step.values[steps][0]}
    for name, at in (("change", peak), ("rise", np.zeros_like(peak))):
        value = share[-1] - share[at, head]
        half = reach * sem(around[-1] - around[at, head], axis=-1)
        ends = ("low", "high") if name == "change" else ("rise_low", "rise_high")
        columns |= {name: value, ends[0]: value - half, ends[1]: value + half}
    names = [f"L{layer}H{h}" for layer in found.layer.values for h in found["head"].values]
    table = pd.DataFrame({"head": names} | columns)
    return table.assign(falls=table.high < 0, rises=table.rise_low > 0)


def head_shares(found: xr.Dataset) -> xr.DataArray:
    """The share of clean − corrupted that is lost without each head (step, layer, head); NaN where
    it is not precise.
    """
    precise = gap_is_precise(found.head_gap.transpose("step", "any_fact").values)
    shares = found.head_lost.mean("any_fact") / found.head_gap.mean("any_fact")
    return shares.where(xr.DataArray(precise, dims="step"))
