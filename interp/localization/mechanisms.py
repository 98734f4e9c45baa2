"""Which heads and MLPs implement a mechanism of factual recall: one rule and its tests.

What each mechanism is, and which attention it is read from, is in ``MECHANISM_EDGES`` of
``component_ablation``.
"""

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import f_oneway, permutation_test

from interp.statistics import (
    ALPHA,
    greater_than_0,
    holm,
    percentiles,
    resampled_means,
    resampled_shares,
    runs_differ,
)

MECHANISMS = ("name attention", "memory", "extraction", "relation")
MIN_SHARE = 0.05
"""Of clean − corrupted: a smaller effect does not count, however significant."""
MIN_GAIN = 0.05
"""Share of facts: an MLP after which no more values can be read is no memory, however significant.
"""
N_RESAMPLES = 1000


def readable_gain(readings: xr.Dataset) -> xr.DataArray:
    """How much more often the value can be read off after each MLP than before it (layer, role,
    fact): right (1) or wrong (0) after minus before, minus the same for shuffled values.

    Args:
        readings: ``probes.read_off`` of the model. At ``final`` the reader is the unembedding, at
            name tokens the head that reads best after the MLP, chosen for real and for shuffled
            values alike.
    """
    gains = {}
    for labels in ("real", "shuffled"):
        correct = readings.correct.sel(labels=labels, drop=True)
        after, before = (correct.sel(site=x, drop=True) for x in ("resid_post", "resid_mid"))
        heads = [x for x in correct.reader.values if x != "unembed"]
        mean = after.sel(reader=heads).mean("fact").fillna(-1)
        best = mean.reader.isel(reader=mean.argmax("reader"))
        by_head = after.sel(reader=best) - before.sel(reader=best)
        by_unembed = (after - before).sel(reader="unembed")
        at_final = by_head.role == "final"
        gains[labels] = xr.where(at_final, by_unembed, by_head).drop_vars("reader", errors="ignore")
    return (gains["real"] - gains["shuffled"]).transpose("layer", "role", "fact")


def mechanisms(
    needed: xr.Dataset, gain: xr.DataArray | None = None, *, each_attribute: bool = True
) -> pd.DataFrame:
    """Which components implement which mechanism, one row per (attribute, cell), ``all`` attributes
    first; ``each_attribute=False`` leaves out the rows of single attributes.

    A component implements a mechanism, and is ``named``, if
    1. clean and corrupted run can be told apart (``statistics.runs_differ``),
    2. its effect exceeds its control (paired one-sided t test, p < ALPHA after Holm's correction
       over all cells of single components),
    3. the share effect ÷ (clean − corrupted) is at least MIN_SHARE, and so is the low bound of its
       interval,
    4. memory only: the value becomes readable where the MLP writes (one-sided t test of ``gain``
       over facts, Holm's correction over MLPs and places), for MIN_GAIN of the facts at least, and
       so says the low bound. An MLP that is needed and fails here works on the name, or on what is
       asked, and is no memory of values.
    It is ``borderline`` if it passes the tests, but MIN_SHARE or MIN_GAIN lies inside an interval:
    another sample of facts may put it on the other side.

    Returns:
        attribute, component, mechanism, place, kind, ``share`` with ``low`` and ``high`` (95 %,
        bootstrap over facts), ``control`` (share), ``p`` (adjusted), ``gain`` (memory: share of
        facts) with ``gain_low`` and ``gain_high``, ``gain_p``, ``named``, ``borderline``,
        ``stability`` (share of the resamples in which share and gain reach their thresholds),
        ``told_apart`` (condition 1).
    """
    attributes = needed.attribute.values.astype(str)
    tables = []
    for name in ("all", *(dict.fromkeys(attributes) if each_attribute else ())):
        chosen = np.flatnonzero((attributes == name) | (name == "all"))
        of_gain = None if gain is None else gain.isel(fact=chosen)
        tables.append(_mechanisms_of(needed.isel(fact=chosen), of_gain).assign(attribute=name))
    return pd.concat(tables, ignore_index=True)


def by_attribute(needed: xr.Dataset, *, n_shuffles: int = 4999, seed: int = 0) -> pd.DataFrame:
    """Whether a component is needed more for some attributes than for others.

    Tested is Welch's F of the facts' shares (effect − control, ÷ the mean gap of the fact's
    attribute) between attributes whose runs can be told apart, of two facts or more, against that
    of shuffled attributes. All cells of single components are tested, so that none is selected by
    its effect.

    Returns:
        One row per cell: component, mechanism, place, ``p`` (Holm-adjusted over the rows; NaN with
        fewer than two attributes), ``p_floor``: the least p that so many shuffles can give,
        ``most`` and ``least``: attributes with the largest and the smallest share, ``most_share``
        and ``least_share``.

    Source: permutation of a studentized statistic, Janssen 1997, doi 10.1016/S0167-7152(97)00043-6.
    """
    single = needed.isel(cell=np.isin(needed.kind.values, ("head", "mlp")))
    columns = {"component": "component", "mechanism": "role", "place": "place"}
    rows = pd.DataFrame({name: single[x].values.astype(str) for name, x in columns.items()})
    attribute, gap = needed.attribute.values.astype(str), (needed.clean - needed.corrupted).values
    of = {name: gap[attribute == name] for name in dict.fromkeys(attribute)}
    names = [name for name, gaps in of.items() if len(gaps) > 1 and runs_differ(gaps)]
    if len(names) < 2:
        unknown = dict.fromkeys(("p", "p_floor", "most_share", "least_share"), np.nan)
        return rows.assign(most="", least="", **unknown)
    net = (single.effect - single.control).values
    parts = [net[:, attribute == name] / of[name].mean() for name in names]
    shares = np.stack([part.mean(1) for part in parts], 1)
    ends = {"most": shares.argmax(1), "least": shares.argmin(1)}
    row = np.arange(len(rows))
    return rows.assign(
        p=holm(_p_of_difference(parts, n_shuffles, seed)),
        p_floor=min(1, len(rows) / (n_shuffles + 1)),
        **{name: np.array(names)[at] for name, at in ends.items()},
        **{f"{name}_share": shares[row, at] for name, at in ends.items()},
    )


def _p_of_difference(parts: list[np.ndarray], n_shuffles: int, seed: int) -> np.ndarray:
    """p of the difference between the two parts' means, for each row; 1 where nothing varies."""
    varies = np.all([part.std(1) > 0 for part in parts], 0)
    tested = permutation_test(
        [part[varies] for part in parts],
        lambda *x, axis: f_oneway(*x, axis=axis, equal_var=False).statistic,
        n_resamples=n_shuffles,
        alternative="greater",
        batch=max(1, 10**7 // max(1, sum(part[varies].size for part in parts))),
        axis=-1,
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    p = np.ones(len(varies))
    p[varies] = tested.pvalue
    return p


def _mechanisms_of(needed: xr.Dataset, gain: xr.DataArray | None) -> pd.DataFrame:
    gap = (needed.clean - needed.corrupted).values
    told_apart = bool(runs_differ(gap))
    effect, control = needed.effect.values, needed.control.values
    shares = resampled_shares(effect, gap[None], n_resamples=N_RESAMPLES)
    low, high = percentiles(shares, 0.95)
    single = np.isin(needed.kind.values, ("head", "mlp"))
    p = greater_than_0(effect - control)
    adjusted = np.full(len(p), np.nan)
    adjusted[single] = holm(p[single])
    table = pd.DataFrame(
        {
            "component": needed.component.values.astype(str),
            "mechanism": needed.role.values.astype(str),
            "place": needed.place.values.astype(str),
            "kind": needed.kind.values.astype(str),
            "share": effect.mean(1) / gap.mean(),
            "low": low,
            "high": high,
            "control": control.mean(1) / gap.mean(),
            "p": adjusted,
        }
    )
    tested = single & told_apart & (adjusted < ALPHA)
    within = {x: table[x].to_numpy() >= MIN_SHARE for x in ("share", "low", "high")}
    above = shares >= MIN_SHARE
    memory = (table.mechanism == "memory").to_numpy()
    if gain is None:
        tested &= ~memory  # condition 4 is unknown
    else:
        gains, resampled = _gains(gain)
        table = table.merge(gains, how="left", on=["component", "place"])
        tested &= ~memory | (table.gain_p.to_numpy() < ALPHA)
        for x, bound in (("share", "gain"), ("low", "gain_low"), ("high", "gain_high")):
            within[x] &= ~memory | (table[bound].to_numpy() >= MIN_GAIN)
        key = list(zip(table.component, table.place))
        readable = np.stack([resampled.get(x, np.full(N_RESAMPLES, np.nan)) for x in key])
        above &= ~memory[:, None] | (readable >= MIN_GAIN)
    named = tested & within["share"] & within["low"]
    return table.assign(
        named=named,
        borderline=tested & ~named & within["high"],
        stability=above.mean(1),
        told_apart=told_apart,
    )


def _gains(gain: xr.DataArray) -> tuple[pd.DataFrame, dict[tuple[str, str], np.ndarray]]:
    """Mean gain of each MLP at each place with its bounds and p, and its means over resamples."""
    here = gain.stack(cell=("layer", "role")).transpose("cell", "fact")
    values = np.nan_to_num(here.values)  # what no head can read is not readable
    resampled = resampled_means(values, n_resamples=N_RESAMPLES, seed=0)
    low, high = percentiles(resampled, 0.95)
    components = [f"L{layer} MLP" for layer in here.layer.values]
    places = here.role.values.astype(str)
    table = pd.DataFrame(
        {
            "component": components,
            "place": places,
            "gain": values.mean(1),
            "gain_low": low,
            "gain_high": high,
            "gain_p": holm(greater_than_0(values)),
        }
    )
    return table, dict(zip(zip(components, places), resampled))
