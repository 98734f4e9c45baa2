"""What the page of ``analyses.localization`` says in words and tables."""

from html import escape

import numpy as np
import pandas as pd
import xarray as xr

from analyses.localization import Localization, leaders, place_of
from interp.dynamics.emergence import MARKS
from interp.dynamics.plateau import format_step
from interp.localization.neurons import effective_number, gini, sharing
from interp.localization.roles import MIN_SHARE, ROLES
from interp.statistics import format_p, margin

_KEY = ("component", "role", "place")


def lead(found: Localization) -> str:
    """Who has which role at the last step, and in which order the jobs formed."""
    last = found.roles[
        (found.roles.step == found.roles.step.max()) & (found.roles.attribute == "all")
    ]
    rows = ""
    for role in ROLES:
        mine = last[(last.role == role) & last.named].sort_values("share", ascending=False)
        who = "; ".join(
            f"<b>{escape(x.component)}</b> at {escape(x.place)}: {x.share:.2f} "
            f"[{x.low:.2f}, {x.high:.2f}]"
            for x in mine.itertuples()
        )
        rows += f"<tr><th>{role}</th><td>{who or 'nobody'}</td></tr>"
    mlps = last[(last.role == "memory") & (last.kind == "mlp") & ~last.named & last.told_apart]
    others = "; ".join(
        f"{escape(x.component)} at {escape(x.place)} {x.share:.2f}"
        for x in mlps[mlps.share >= MIN_SHARE].itertuples()
    )
    note = f" MLPs that are needed, and were not shown to be a memory: {others}." if others else ""
    orders = "".join(_in_order(kind, x) for kind, x in found.orders.items())
    return (
        f"<p class='lead'>At step {found.roles.step.max()}, n = {found.curves.sizes['fact']} "
        "facts, share of the logit difference that is lost without the component, with its 95 % "
        "interval over facts; named are those that beat their control, the same change scored on "
        f"another fact's pair of values.{note}</p><table>{rows}</table>{orders}"
    )


def _in_order(kind: str, found) -> str:
    names = " → ".join(escape(label.split(": ")[0]) for label in found.labels)
    sure = "" if found.significant else "not "
    return (
        f"<p>In order of midpoints, <b>{kind}</b>: {names}; the same order in {found.share:.0%} of "
        f"bootstrap samples of facts; {sure}every step of it is significant (Holm-adjusted p &lt; "
        "0.05, and the midpoints lie between different checkpoints).</p>"
    )


def times(found: Localization) -> str:
    """When each curve rose."""
    rows = ""
    for label in found.formed.curve.values:
        x = found.formed.sel(curve=label)
        if bool(x.emerged):
            cells = "".join(f"<td>{_mark(x, name)}</td>" for name in MARKS)
            cells += _lag(found.lags, label, float(x.resolution_midpoint))
        else:
            cells = f"<td colspan='4'>no step: {escape(str(x.reason.item()))}</td>"
        name = "logit difference, clean − corrupted" if label == "gap" else escape(str(label))
        rows += f"<tr><th>{name}</th>{cells}</tr>"
    return (
        "<p>Steps, with 95 % bootstrap intervals over facts, and ± the distance of the checkpoints "
        "between which it lies. The last column is positive where the midpoint comes after the end "
        "of the loss's plateau.</p><table><tr><th></th><th>onset</th><th>midpoint</th>"
        f"<th>completion</th><th>midpoint − plateau end</th></tr>{rows}</table>"
    )


def _mark(formed: xr.Dataset, mark: str) -> str:
    spacing = float(formed[f"resolution_{mark}"])
    at, low, high, apart = (
        format_step(float(formed[name]), spacing)
        for name in (mark, f"{mark}_low", f"{mark}_high", f"resolution_{mark}")
    )
    return f"{at} [{low}, {high}] ± {apart}"


def _lag(lags: xr.Dataset | None, label: str, spacing: float) -> str:
    if lags is None:
        return "<td>no plateau end</td>"
    x = lags.sel(curve=label)
    near = "" if bool(x.resolved) else ", between the same checkpoints"
    lag, low, high = (
        format_step(float(x[name]), spacing, sign="+") for name in ("lag", "lag_low", "lag_high")
    )
    return f"<td>{lag} [{low}, {high}]{near}</td>"


def of_role(found: Localization, role: str) -> str:
    """Of those who are named for all facts or for some attribute at the last step: what is lost of
    the whole value, and whether they are for some attributes.
    """
    last = found.roles[found.roles.step == found.roles.step.max()]
    named = last[last.named & (last.role == role)][list(_KEY)].drop_duplicates()
    mine = named.merge(found.by_attribute, on=list(_KEY))
    if mine.empty:
        return ""
    value = found.depth["value"]
    cell = pd.MultiIndex.from_arrays([value[x].values.astype(str) for x in _KEY])
    rows = ""
    for x in mine.itertuples():
        lost = value.isel(cell=cell.get_loc((x.component, x.role, x.place)))
        nats = "".join(
            f"<td>{_mean(lost[name])}</td>" for name in ("effect", "effect_value_logprob")
        )
        rows += (
            f"<tr><th>{escape(x.component)} at {escape(x.place)}</th>{nats}"
            f"<td>{x.least_share:.2f} ({escape(x.least)})</td>"
            f"<td>{x.most_share:.2f} ({escape(x.most)})</td><td>{_p(x.p, x.p_floor)}</td></tr>"
        )
    return (
        "<p>Those who are named for all facts or for some attribute, at the last step. Nats lost "
        f"(n = {value.sizes['fact']} facts, mean ± 95 %) of the logit difference of first tokens, "
        "and of the log-probability of the whole value; and whether a component is needed for some "
        "attributes more than for others: least and largest share, p of a permutation test over "
        f"facts (n = {found.curves.sizes['fact']}, Holm-adjusted over all components).</p>"
        "<table><tr><th></th><th>logit difference</th><th>whole value</th>"
        f"<th>least needed for</th><th>most needed for</th><th>p</th></tr>{rows}</table>"
    )


def looks(found: Localization, role: str) -> str:
    """How a role's leading head attends at the last step, and what it copies."""
    leader = leaders(found.roles).loc[role]
    layer, head = place_of(leader.component)
    at = found.answers["attention"].isel(step=-1, layer=layer, head=head).sel(edge=leader.place)
    copied = found.depth["copying"].share.isel(layer=layer, head=head)
    return (
        f"<p>{escape(leader.component)} at the last step, mean ± 95 %: attention along its edge "
        f"{_mean(at.pattern)}, weighted by what it carries (‖pattern · v · W_O‖) "
        f"{_mean(at.value_weighted)}; normalised entropy of the pattern {_mean(at.entropy)} (0 = "
        "one token, 1 = all alike); share of values it would copy if it looked at them "
        f"{float(copied.mean()):.2f} (chance {float(copied.chance.mean()):.2f}).</p>"
    )


def read_at_final(found: Localization) -> str:
    """How the unembedding ranks the right value at ``final`` at the last step, by layer."""
    read = found.answers["readings"].isel(step=-1).sel(reader="unembed", role="final")
    rows = ""
    for layer in read.layer.values:
        for site in read.site.values[1:]:  # what enters a layer is what left the one before
            x = read.sel(layer=layer, site=site)
            right = float(x.accuracy.sel(labels="real", of="all"))
            rows += (
                f"<tr><th>L{layer} {escape(str(site))}</th><td>{right:.2f}</td>"
                f"<td>{float(x.logit):.2f}</td><td>{float(x['rank']):.1f}</td></tr>"
            )
    return (
        "<p>The right value's first token at final through the unembedding, last step, means over "
        f"n = {int(read.n.sel(of='all'))} facts: share of facts where it is first among the values "
        "of its attribute, logit above their mean, nats, and rank (1 = first).</p><table><tr>"
        f"<th></th><th>first</th><th>logit</th><th>rank</th></tr>{rows}</table>"
    )


def _mean(values: xr.DataArray) -> str:
    return f"{float(values.mean()):.2f} ± {float(margin(values.values)):.2f}"


def _p(p: float, floor: float) -> str:
    return "one attribute only" if np.isnan(p) else escape(format_p(p, floor))


def feeds(found: Localization) -> str:
    """Which MLPs feed the leading extraction head."""
    if "feeds" not in found.depth:
        return "<p>There is no extraction head that an MLP could feed.</p>"
    head, share = leaders(found.roles).component["extraction"], found.depth["feeds"].recovered
    table = share.squeeze([x for x in share.dims if x not in ("layer", "role")]).to_pandas()
    rows = "".join(
        f"<tr><th>L{layer} MLP</th>{''.join(f'<td>{x:.2f}</td>' for x in row)}</tr>"
        for layer, row in table.iterrows()
        if row.notna().any()
    )
    places = "".join(f"<th>{escape(str(x))}</th>" for x in table.columns)
    return (
        f"<p>Which MLPs feed {escape(head)}: share recovered by what each MLP's clean output alone "
        "changes in that head's values, everything else as with the other name.</p>"
        f"<table><tr><th></th>{places}</tr>{rows}</table>"
    )


def neurons_and_edits(found: Localization) -> str:
    """How the leading memory is spread over neurons, and what editing it does."""
    if "neurons" not in found.depth:
        return "<p>Nobody is a memory, so there are no neurons to look at and no edits.</p>"
    return _neurons(found.depth["neurons"]) + _edits(found.depth["edits"])


def _neurons(neurons: xr.Dataset) -> str:
    effect = neurons.effect
    n_neurons = effect.sizes["layer"] * effect.sizes["neuron"]
    each = {
        "Gini coefficient of |effect| over neurons": gini(effect),
        f"effective number of neurons (of {n_neurons})": effective_number(effect),
    }
    if "agreement" in neurons:
        each["correlation of what a neuron does and what it writes"] = neurons.agreement
    rows = "".join(
        f"<tr><th>{name}</th><td>{float(x.mean()):.2f} (facts: {float(x.min()):.2f} to "
        f"{float(x.max()):.2f})</td></tr>"
        for name, x in each.items()
    )
    shared = sharing(effect)
    for name in shared.relation.values[shared.overlap.notnull()]:
        overlap, low, high = (
            float(shared[x].sel(relation=name)) for x in ("overlap", "low", "high")
        )
        rows += (
            f"<tr><th>overlap of the 10 strongest neurons of two facts, {escape(str(name))}</th>"
            f"<td>{overlap:.3f} (if labels are dealt anew {low:.3f} to {high:.3f}; all neurons "
            f"alike {float(shared.chance):.3f})</td></tr>"
        )
    return (
        f"<p>Single neurons where the leading memory works, n = {effect.sizes['fact']} facts.</p>"
        f"<table>{rows}</table>"
    )


def _edits(edits: xr.Dataset) -> str:
    measures = [x for x in edits.data_vars if "edit" in edits[x].dims]
    heads = "".join(f"<th>{escape(x.replace('_', ' '))}</th>" for x in measures)
    rows = ""
    for where in edits.edited.values:
        for edit in edits.edit.values:
            of_edit = edits.sel(edited=where, edit=edit)
            cells = "".join(f"<td>{float(of_edit[x].mean()):.2f}</td>" for x in measures)
            label = f"{where}, {str(edit).replace('_', ' ')}"
            rows += f"<tr><th>{escape(label)}</th>{cells}</tr>"
    return (
        "<p>One fact overwritten by a rank-one change of the MLP (ROME), n = "
        f"{edits.sizes['fact']} facts, each by itself; mean accuracies. Controls: the same vector "
        "at the key of the twin, and along a random key.</p>"
        f"<table><tr><th></th>{heads}</tr>{rows}</table>"
    )


def provenance(found: Localization, command: str) -> str:
    """What made the results."""
    attrs = found.answers["needs"].attrs
    rows = {
        "command": command,
        "asked": attrs.get("request", ""),
        "made by": attrs.get("made_by", ""),
    }
    body = "".join(
        f"<tr><th>{name}</th><td><code>{escape(text)}</code></td></tr>"
        for name, text in rows.items()
    )
    return f"<table>{body}</table>"
