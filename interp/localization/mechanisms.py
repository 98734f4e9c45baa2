"""Which heads and MLPs implement a mechanism of factual recall: one rule and its tests.

What each mechanism is, and which attention it is read from, is in ``MECHANISM_EDGES`` of
``component_ablation``.
"""

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import f_oneway, permutation_test

from interp.statistics import ALPHA, greater_than_0, holm, runs_differ, share_interval

MECHANISMS = ("name attention", "memory", "extraction", "relation")
MIN_SHARE = 0.05
"""Of clean − corrupted: a smaller effect does not count, however significant."""


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


def mechanisms(needed: xr.Dataset, gain: xr.DataArray | None = None) -> pd.DataFrame:
    """Which components implement which mechanism, one row per (attribute, cell), ``all`` attributes
    first.

    A component implements a mechanism if
    1. clean and corrupted run can be told apart (``statistics.runs_differ``),
    2. its effect exceeds its control (paired one-sided t test, p < ALPHA after Holm's correction
       over all cells of single components),
    3. the share effect ÷ (clean − corrupted) is at least MIN_SHARE,
    4. memory only: the value becomes readable where the MLP writes (one-sided t test of ``gain``
       over facts, Holm's correction over MLPs and places). An MLP that is needed and fails here
       works on the name, or on what is asked, and is no memory of values.

    Returns:
        attribute, component, mechanism, place, kind, ``share`` with ``low`` and ``high`` (95 %:
        ``statistics.share_interval``), ``control`` (share), ``p`` (adjusted), ``gain`` (memory:
        share of facts), ``gain_p``, ``named``, ``told_apart`` (condition 1).
    """
    attributes = needed.attribute.values.astype(str)
    tables = []
    for name in ("all", *dict.fromkeys(attributes)):
        chosen = np.flatnonzero((attributes == name) | (name == "all"))
        of_gain = None if gain is None else _gains(gain, name)
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


def _mechanisms_of(needed: xr.Dataset, gain: pd.DataFrame | None) -> pd.DataFrame:
    gap = (needed.clean - needed.corrupted).values
    told_apart = bool(runs_differ(gap))
    effect, control = needed.effect.values, needed.control.values
    low, high = share_interval(effect, gap)
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
    named = single & told_apart & (adjusted < ALPHA) & (table.share.to_numpy() >= MIN_SHARE)
    memory = (table.mechanism == "memory").to_numpy()
    if gain is not None:
        table = table.merge(gain, how="left", on=["component", "place"])
        named &= ~memory | (table.gain_p.to_numpy() < ALPHA)
    else:
        named &= ~memory  # condition 4 is unknown
    return table.assign(named=named, told_apart=told_apart)


def _gains(gain: xr.DataArray, attribute: str) -> pd.DataFrame:
    wanted = (gain.attribute.values == attribute) | (attribute == "all")
    here = gain.isel(fact=np.flatnonzero(wanted)).stack(cell=("layer", "role"))
    here = here.transpose("cell", "fact")
    values = np.nan_to_num(here.values)  # what no head can read is not readable
    return pd.DataFrame(
        {
            "component": [f"L{layer} MLP" for layer in here.layer.values],
            "place": here.role.values.astype(str),
            "gain": values.mean(1),
            "gain_p": holm(greater_than_0(values)),
        }
    )
