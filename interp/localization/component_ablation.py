"""How much each head and MLP is needed for each mechanism of factual recall, and which components
implement it.

Mechanisms (Geva et al. 2023, https://arxiv.org/abs/2304.14767; Nanda et al. 2023, Fact finding):
name attention, a head that brings earlier parts of a name to a later one; memory, an MLP that turns
the name into values; extraction, a head that brings what the name tokens hold to the answer
position; relation, a head that brings what is asked for there.

Causes, all noising: a head's attention along the mechanism's edges is cut before the softmax
(``head_knockout``); an MLP's output at its tokens is replaced by that of the run with another
person's name. Effect = clean − patched ``logit_diff``, nats, positive = needed. Each has a control:
the same change, scored on another fact's pair of values. A component whose part others can take
over is not needed and stays hidden here: compare the effects of whole layers, and the other
direction.
"""

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import f_oneway, permutation_test

from interp.config import CONTROL, METRICS
from interp.data.facts import FactSet
from interp.localization.attention_to_names import EDGES
from interp.localization.inputs import check_inputs
from interp.localization.probes import PLACES
from interp.model.decoder import HookedDecoder
from interp.patching import patch_sites
from interp.statistics import greater_than_0, holm, margin

MECHANISMS = ("name attention", "memory", "extraction", "relation")
MECHANISM_EDGES = {
    "name_middle ← name_first": "name attention",
    "name_last ← other names": "name attention",
    "final ← names": "extraction",
    "final ← cue": "relation",
}
"""The edges of ``attention_to_names.EDGES`` along which heads implement a mechanism."""
MIN_SHARE = 0.05
"""Of clean − corrupted: a smaller effect does not count, however sure."""
ALPHA = 0.05
"""Of all cells of a checkpoint and attribute together (Holm 1979)."""


def needs(
    model: HookedDecoder, facts: FactSet, *, whole_value: bool = False, max_memory: float = 2.0
) -> xr.Dataset:
    """What is lost without each component at each mechanism.

    Returns:
        ``effect`` and ``control`` (cell, fact): clean − patched ``logit_diff`` of the fact, and of
        another fact's pair of values, nats; ``effect_first_logprob``, and with ``whole_value``
        ``effect_value_logprob``: the same of the log-probability of the value's first token, and of
        all its tokens; ``clean`` and ``corrupted`` (fact). A cell is one component at one
        mechanism; its coordinates: ``component`` (L1H3, L2 MLP; "layer 1 heads" and "all MLPs" when
        cut together), ``role`` (the mechanism), ``place`` (where it is cut), ``kind`` (head, mlp,
        layer, all).
    """
    check_inputs(model, facts, sequential=True, names=True, twins=True)
    options = {
        "direction": "noising",
        "whole_value": whole_value,
        "control": True,
        "max_memory": max_memory,
    }
    every = {"window": 2 * model.cfg.n_layers, "layers": (0,)}
    tables = []
    cuts = {"head_knockout": "head", "knockout": "layer"}
    ends = {edge: (EDGES[edge][0], "+".join(EDGES[edge][1])) for edge in MECHANISM_EDGES}
    dests, sources = (tuple(dict.fromkeys(x)) for x in zip(*ends.values()))
    # One sweep, though some of its cells are not asked for: its runs are shared.
    edges = {"groups": dests, "sources": sources} | options
    whole = patch_sites(model, facts, sites=["knockout"], **every, **edges)["knockout"]
    for dest in dests:
        of_dest = [edge for edge in MECHANISM_EDGES if ends[edge][0] == dest]
        edges = {"groups": (dest,), "sources": tuple(ends[edge][1] for edge in of_dest)} | options
        single = patch_sites(model, facts, sites=list(cuts), **edges)
        for edge in of_dest:
            at = dict(zip(("dest", "src"), ends[edge]))
            about = MECHANISM_EDGES[edge], at, edge
            tables += [_table(single[site], kind, *about) for site, kind in cuts.items()]
            tables.append(_table(whole, "all", *about))
    for at, kind in (({}, "mlp"), (every, "all")):
        sites = {"sites": ["mlp_out"], "groups": PLACES}
        swapped = patch_sites(model, facts, **sites, **at, **options)["mlp_out"]
        tables += [_table(swapped, kind, "memory", {"role": place}, place) for place in PLACES]
    whole = xr.concat(tables, "cell")
    return whole.assign(clean=swapped.clean, corrupted=swapped.corrupted).assign_attrs(
        units="nats", sign="positive = needed", direction="noising"
    )


def _table(
    result: xr.Dataset, kind: str, mechanism: str, place: dict[str, str], label: str
) -> xr.Dataset:
    """The cells of one mechanism, at one place, of a sweep."""
    columns = {}
    names = {"effect": "", "control": f"_{CONTROL}"}
    names |= {f"effect_{x}": f"_{x}" for x in METRICS[1:] if f"patched_{x}" in result}
    for name, suffix in names.items():
        lost = result[f"clean{suffix}"] - result[f"patched{suffix}"]
        columns[name] = lost.sel(place).drop_vars(list(place))
    cells = xr.Dataset(columns)
    dims = [dim for dim in ("layer", "head") if dim in cells.dims]
    labels = [
        _component(kind, mechanism, dict(zip(dims, at)))
        for at in np.ndindex(*(cells.sizes[dim] for dim in dims))
    ]
    cells = cells.stack(cell=dims, create_index=False).transpose("cell", "fact")
    cells = cells.drop_vars([x for x in cells.coords if x not in ("attribute", "person")])
    return cells.assign_coords(
        component=("cell", np.array(labels, object)),
        role=("cell", np.array([mechanism] * len(labels), object)),
        place=("cell", np.array([label] * len(labels), object)),
        kind=("cell", np.array([kind] * len(labels), object)),
    )


def _component(kind: str, mechanism: str, at: dict[str, int]) -> str:
    if kind == "all":
        return "all MLPs" if mechanism == "memory" else "all heads"
    if kind == "layer":
        return f"layer {at['layer']} heads"
    return f"L{at['layer']}H{at['head']}" if "head" in at else f"L{at['layer']} MLP"


def readable_gain(readings: xr.Dataset) -> xr.DataArray:
    """By how much each MLP makes the value readable where it writes (layer, role, fact): right or
    not after the MLP minus before it, minus the same for shuffled values; share of facts.

    Args:
        readings: ``memory.read_off`` of the model. At ``final`` the reader is the unembedding, at
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
    """Which components implement which mechanism, one row a (attribute, cell), ``all`` attributes
    first.

    The rule, in one place. A component implements a mechanism if
    1. clean and corrupted run can be told apart (one-sided t test over facts, p < ALPHA),
    2. its effect exceeds its control (paired one-sided t test, p < ALPHA after Holm's correction
       over all cells of single components),
    3. the share effect ÷ (clean − corrupted) is at least MIN_SHARE,
    4. memory only: the value becomes readable where the MLP writes (one-sided t test of ``gain``
       over facts, Holm's correction over MLPs and places). An MLP that is needed and fails here
       works on the name, or on what is asked, and is no memory of values.

    Returns:
        attribute, component, mechanism, place, kind, ``share`` with ``low`` and ``high`` (95 %
        interval over facts of the effect, the gap taken as known), ``control`` (share), ``p``
        (adjusted), ``gain`` (memory: share of facts), ``gain_p``, ``named`` (all conditions hold),
        ``told_apart`` (condition 1).
    """
    attributes = needed.attribute.values.astype(str)
    tables = []
    for name in ("all", *dict.fromkeys(attributes)):
        chosen = np.flatnonzero((attributes == name) | (name == "all"))
        of_gain = None if gain is None else _gains(gain, name)
        tables.append(_mechanisms_of(needed.isel(fact=chosen), of_gain).assign(attribute=name))
    return pd.concat(tables, ignore_index=True)


def by_attribute(needed: xr.Dataset, *, n_shuffles: int = 4999, seed: int = 0) -> pd.DataFrame:
    """Whether a component is needed for some attributes more than for others.

    Tested is Welch's F of the facts' shares (effect − control, ÷ the mean gap of the fact's
    attribute) between attributes whose runs can be told apart, against that of shuffled attributes.
    All cells of single components are tested, so that nothing is chosen by what is tested.

    Returns:
        One row a cell: component, mechanism, place, ``p`` (Holm-adjusted over the rows; NaN with
        fewer than two attributes), ``most`` and ``least``: attributes with the largest and the
        smallest share, ``most_share`` and ``least_share``.

    Source: permutation of a studentized statistic, Janssen 1997, doi 10.1016/S0167-7152(97)00043-6.
    """
    single = needed.isel(cell=np.isin(needed.kind.values, ("head", "mlp")))
    columns = {"component": "component", "mechanism": "role", "place": "place"}
    rows = pd.DataFrame({name: single[x].values.astype(str) for name, x in columns.items()})
    attribute, gap = needed.attribute.values.astype(str), (needed.clean - needed.corrupted).values
    names = [x for x in dict.fromkeys(attribute) if greater_than_0(gap[attribute == x]) < ALPHA]
    if len(names) < 2:
        return rows.assign(p=np.nan, most="", least="", most_share=np.nan, least_share=np.nan)
    net = (single.effect - single.control).values
    parts = [net[:, attribute == x] / gap[attribute == x].mean() for x in names]
    shares = np.stack([part.mean(1) for part in parts], 1)
    ends = {"most": shares.argmax(1), "least": shares.argmin(1)}
    row = np.arange(len(rows))
    return rows.assign(
        p=holm(_p_of_difference(parts, n_shuffles, seed)),
        **{name: np.array(names)[at] for name, at in ends.items()},
        **{f"{name}_share": shares[row, at] for name, at in ends.items()},
    )


def _p_of_difference(parts: list[np.ndarray], n_shuffles: int, seed: int) -> np.ndarray:
    """Of a difference between the parts' means, for each row; 1 where nothing varies."""
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
    told_apart = greater_than_0(gap) < ALPHA
    effect, control = needed.effect.values, needed.control.values
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
            "low": (effect.mean(1) - margin(effect)) / gap.mean(),
            "high": (effect.mean(1) + margin(effect)) / gap.mean(),
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
        named &= ~memory  # nothing says that it is one
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
