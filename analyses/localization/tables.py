"""Sentences and tables of the localization page."""

import numpy as np
import pandas as pd
import xarray as xr

from interp.dynamics.emergence import MARKS, Order
from interp.dynamics.plateau import format_step
from interp.localization.formation import (
    Localization,
    borderline_components,
    leaders,
    leading_head,
    place_of,
    time_text,
)
from interp.localization.mechanisms import MECHANISMS, MIN_SHARE
from interp.localization.neurons import effective_number, gini, sharing
from interp.report.page import Block, Cell, Entry, Paragraph, Table
from interp.statistics import format_p, margin

_KEY = ["component", "mechanism", "place"]


def lead(found: Localization) -> list[Block]:
    """Which components implement which mechanism at the last step, and the order of mechanisms."""
    table = found.mechanisms
    last = table[(table.step == table.step.max()) & (table.attribute == "all")]
    mlps = last[(last.mechanism == "memory") & (last.kind == "mlp") & last.told_apart]
    mlps = mlps[~mlps.named & ~mlps.borderline & (mlps.share >= MIN_SHARE)]
    others = "; ".join(f"{x.component} at {x.place} {x.share:.2f}" for x in mlps.itertuples())
    note = f" MLPs that are needed, and were not shown to be a memory: {others}." if others else ""
    note += _borderline(table) + _without_place(found.answers["needs"])
    text = (
        f"At step {table.step.max()}, n = {found.curves.sizes['fact']} facts, share of the logit "
        "difference that is lost without the component, with its 95 % interval over facts; named "
        "are those that beat their control, the same change scored on another fact's pair of "
        f"values, and whose interval is above {MIN_SHARE}, of memories that of the readable gain, "
        f"too; and in how many resamples of the facts these thresholds are reached.{note}"
    )
    rows = [[mechanism, _named(last, mechanism)] for mechanism in MECHANISMS]
    orders = [Paragraph(_order_in_words(kind, x)) for kind, x in found.orders.items()]
    return [Paragraph(text, "lead"), Table([], rows), *orders]


def _without_place(needed: xr.Dataset) -> str:
    """A sentence, after a space, on prompts that lack a place; empty if there are none."""
    n, every = needed.n.values.reshape(-1, needed.sizes["cell"])[-1], needed.sizes["fact"]
    lacking = dict(zip(needed.place.values[n < every].astype(str), n[n < every].tolist()))
    places = "; ".join(f"{place} {there}" for place, there in lacking.items())
    return (
        f" Of the {every} prompts so many have a place: {places}; the others have nothing to cut "
        "there and lose nothing, and count in the share."
        if places
        else ""
    )


def roles_text(found: Localization) -> str:
    """The components of each mechanism at the last step, as a table for a terminal."""
    named = found.to_dataframe()
    columns = ["mechanism", "component", "place", "share", "low", "high", "stability", "since"]
    rows = named[columns].round(2).to_string(index=False) if len(named) else "no component"
    return rows + _borderline(found.mechanisms).replace(" Borderline", "\nBorderline", 1)


def _borderline(table: pd.DataFrame) -> str:
    """A sentence, after a space; empty if there are none."""
    rows = "; ".join(
        f"{x.component} at {x.place} ({x.mechanism}) {x.share:.2f} [{x.low:.2f}, {x.high:.2f}]"
        f"{_gain(x)}, in {x.stability:.0%} of resamples"
        for x in borderline_components(table).itertuples()
    )
    return f" Borderline, with a threshold inside an interval: {rows}." if rows else ""


def _gain(row) -> str:
    if row.mechanism != "memory":
        return ""
    return f" (readable gain {row.gain:.2f} [{row.gain_low:.2f}, {row.gain_high:.2f}])"


def _named(last: pd.DataFrame, mechanism: str) -> Cell:
    mine = last[(last.mechanism == mechanism) & last.named].sort_values("share", ascending=False)
    return [
        Entry(
            x.component,
            f" at {x.place}: {x.share:.2f} [{x.low:.2f}, {x.high:.2f}], {x.stability:.0%}",
        )
        for x in mine.itertuples()
    ] or "no component"


def _order_in_words(kind: str, found: Order) -> str:
    names = " → ".join(label.split(": ")[0] for label in found.labels)
    sure = "" if found.significant else "not "
    return (
        f"In order of midpoints, {kind}: {names}; the same order in {found.share:.0%} of "
        f"bootstrap samples of facts; {sure}every step of it is significant (Holm-adjusted p < "
        "0.05, and the midpoints lie between different checkpoints)."
    )


def times(found: Localization) -> list[Block]:
    """When each curve rose."""
    rows = []
    for label in found.formed.curve.values:
        x = found.formed.sel(curve=label)
        name = "logit difference, clean − corrupted" if label == "gap" else str(label)
        if bool(x.emerged):
            lag = _lag(found.lags, label, float(x.resolution_midpoint))
            rows.append([name, *(time_text(x, mark) for mark in MARKS), lag])
        else:
            rows.append([name, f"no step: {x.reason.item()}"])
    text = (
        "Steps, with 95 % bootstrap intervals over facts, and ± the distance of the checkpoints "
        "between which it lies. The last column is positive where the midpoint comes after the end "
        "of the loss's plateau."
    )
    return [Paragraph(text), Table(["", *MARKS, "midpoint − plateau end"], rows)]


def _lag(lags: xr.Dataset | None, label: str, spacing: float) -> str:
    if lags is None:
        return "no plateau end"
    x = lags.sel(curve=label)
    near = "" if bool(x.resolved) else ", between the same checkpoints"
    lag, low, high = (
        format_step(float(x[name]), spacing, sign="+") for name in ("lag", "lag_low", "lag_high")
    )
    return f"{lag} [{low}, {high}]{near}"


def whole_value(found: Localization, mechanism: str) -> list[Block]:
    """For the components that are named for all facts or for some attribute at the last step: what
    is lost of the whole value, and whether they are needed for some attributes more than others.
    """
    last = found.mechanisms[found.mechanisms.step == found.mechanisms.step.max()]
    named = last[last.named & (last.mechanism == mechanism)][_KEY].drop_duplicates()
    mine = named.merge(found.by_attribute, on=_KEY)
    if mine.empty:
        return []
    value = found.depth["value"]
    labels = [value[x].values.astype(str) for x in ("component", "role", "place")]
    cell = pd.MultiIndex.from_arrays(labels)
    rows = []
    for x in mine.itertuples():
        lost = value.isel(cell=cell.get_loc((x.component, x.mechanism, x.place)))
        rows.append([
            f"{x.component} at {x.place}", _mean(lost.effect), _mean(lost.effect_value_logprob),
            f"{x.least_share:.2f} ({x.least})", f"{x.most_share:.2f} ({x.most})",
            _p(x.p, x.p_floor),
        ])  # fmt: skip
    text = (
        "Components that are named for all facts or for some attribute, at the last step. Nats "
        f"lost (n = {value.sizes['fact']} facts, mean ± 95 %) of the logit difference of first "
        "tokens, and of the log-probability of the whole value; and whether a component is needed "
        "for some attributes more than for others: least and largest share, p of a permutation "
        f"test over facts (n = {found.curves.sizes['fact']}, Holm-adjusted over all components)."
    )
    heads = ["", "logit difference", "whole value", "least needed for", "most needed for", "p"]
    return [Paragraph(text), Table(heads, rows)]


def copied(found: Localization, mechanism: str) -> list[Block]:
    """How the leading head of a mechanism attends at the last step, and what it copies."""
    leader = leading_head(found.mechanisms, mechanism)
    if leader is None:
        return []
    layer, head = place_of(leader.component)
    at = found.answers["attention"].isel(step=-1, layer=layer, head=head).sel(edge=leader.place)
    share = found.depth["copying"].share.isel(layer=layer, head=head)
    text = (
        f"{leader.component} at the last step, mean ± 95 %: attention along its edge "
        f"{_mean(at.pattern)}, weighted by what it carries (‖pattern · v · W_O‖) "
        f"{_mean(at.value_weighted)}; normalised entropy of the pattern {_mean(at.entropy)} (0 = "
        "one token, 1 = uniform); share of values it would copy if it attended to them "
        f"{float(share.mean()):.2f} (chance {float(share.chance.mean()):.2f})."
    )
    return [Paragraph(text)]


def logit_lens(found: Localization) -> list[Block]:
    """How the unembedding ranks the right value at ``final`` at the last step, by layer."""
    read = found.answers["readings"].isel(step=-1).sel(reader="unembed", role="final")
    rows = []
    for layer in read.layer.values:
        for site in read.site.values[1:]:  # what enters a layer is what left the one before
            x = read.sel(layer=layer, site=site)
            right = float(x.accuracy.sel(labels="real", of="all"))
            numbers = [f"{right:.2f}", f"{float(x.logit):.2f}", f"{float(x['rank']):.1f}"]
            rows.append([f"L{layer} {site}", *numbers])
    text = (
        "The right value's first token at final through the unembedding, last step, means over "
        f"n = {int(read.n.sel(of='all'))} facts: share of facts where it is first among the values "
        "of its attribute, logit above their mean, nats, and rank (1 = first)."
    )
    return [Paragraph(text), Table(["", "first", "logit", "rank"], rows)]


def _mean(values: xr.DataArray) -> str:
    return f"{float(values.mean()):.2f} ± {float(margin(values.values)):.2f}"


def _p(p: float, floor: float) -> str:
    return "one attribute only" if np.isnan(p) else format_p(p, floor)


def feeds(found: Localization) -> list[Block]:
    """Which MLPs feed the leading extraction head."""
    head = leaders(found.mechanisms).component["extraction"]
    share = found.depth["feeds"].recovered
    table = share.squeeze([x for x in share.dims if x not in ("layer", "role")]).to_pandas()
    rows = [
        [f"L{layer} MLP", *(f"{x:.2f}" for x in row)]
        for layer, row in table.iterrows()
        if row.notna().any()
    ]
    text = (
        f"Which MLPs feed {head}: share recovered by what each MLP's clean output alone changes in "
        "that head's values, everything else as with the other name."
    )
    return [Paragraph(text), Table(["", *map(str, table.columns)], rows)]


def neurons(found: Localization) -> list[Block]:
    """How the leading memory is spread over neurons."""
    answer = found.depth["neurons"]
    effect = answer.effect
    n_neurons = effect.sizes["layer"] * effect.sizes["neuron"]
    each = {
        "Gini coefficient of |effect| over neurons": gini(effect),
        f"effective number of neurons (of {n_neurons})": effective_number(effect),
    }
    if "agreement" in answer:
        name = "correlation of a neuron's effect with its direct effect on the logit difference"
        each[name] = answer.agreement
    rows = [
        [
            name,
            f"{float(x.mean()):.2f} (facts: {float(x.min()):.2f} to {float(x.max()):.2f})",
        ]
        for name, x in each.items()
    ]
    n = effect.sizes["fact"]
    text = f"Single neurons of all MLPs at the leading memory's position, n = {n} facts."
    return [Paragraph(text), Table([], [*rows, *_overlaps(effect)])]


def _overlaps(effect: xr.DataArray) -> list[list[str]]:
    shared, rows = sharing(effect), []
    for name in shared.relation.values[shared.overlap.notnull()]:
        overlap, low, high = (
            float(shared[x].sel(relation=name)) for x in ("overlap", "low", "high")
        )
        rows.append([
            f"overlap of the 10 strongest neurons of two facts, {name}",
            f"{overlap:.3f} (with permuted labels {low:.3f} to {high:.3f}; all neurons alike "
            f"{float(shared.chance):.3f})",
        ])  # fmt: skip
    return rows


def edits(found: Localization) -> list[Block]:
    """What editing the leading memory does."""
    answer = found.depth["edits"]
    measures = [x for x in answer.data_vars if "edit" in answer[x].dims]
    rows = []
    for where in answer.edited.values:
        for edit in answer.edit.values:
            of_edit = answer.sel(edited=where, edit=edit)
            label = f"{where}, {str(edit).replace('_', ' ')}"
            rows.append([label, *(f"{float(of_edit[x].mean()):.2f}" for x in measures)])
    text = (
        "One fact overwritten by a rank-one change of the MLP (ROME), n = "
        f"{answer.sizes['fact']} facts, each by itself; mean accuracies. Controls: the same vector "
        "at the key of the twin, and along a random key."
    )
    return [Paragraph(text), Table(["", *(x.replace("_", " ") for x in measures)], rows)]


def provenance(found: Localization, command: str) -> list[Block]:
    """What made the results."""
    attrs = found.answers["needs"].attrs
    rows = {
        "command": command,
        "asked": attrs.get("request", ""),
        "made by": attrs.get("made_by", ""),
    }
    return [Table([], list(rows.items()), code=True)]
