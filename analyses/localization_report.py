"""The page of ``analyses.localization``: when each job formed, who does it, and the evidence."""

from html import escape

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import t as student

from analyses.localization import Localization, leaders, plateau
from interp.figures import localization as draw
from interp.localization.jobs import ROLES
from interp.localization.neurons import effective_number, gini, sharing
from interp.report import anchor, figure_html, page


def report(suite, found: Localization, command: str) -> str:
    """HTML page that leads with when each job formed."""
    links = {role: f"#{anchor(_HEADINGS[role])}" for role in ROLES}
    first = draw.timeline(
        found.curves, found.formed, metrics=suite.metrics, phases=plateau(suite), links=links
    )
    times = _times(found) if found.formed is not None else _TOO_FEW
    sections = [("When", _WHEN + figure_html("timeline", first) + times)]
    for role in ROLES:
        content = _TEXTS[role] + figure_html(
            f"roles-{role.replace(' ', '-')}", draw.roles_over_training(found.roles, role)
        )
        content += figure_html(
            f"attributes-{role.replace(' ', '-')}", draw.roles_by_attribute(found.roles, role)
        )
        content += _of_role(found, role)
        if role == "memory":
            content += _memory_figures(found)
        else:
            content += figure_html(
                f"attention-{role.replace(' ', '-')}", _attention_figure(found, role)
            )
        sections.append((_HEADINGS[role], content))
    direct = found.answers["direct"].isel(step=-1)
    sections.append(("Which part of the name, and what feeds extraction", _parts_and_feeds(found)))
    sections.append(("Neurons and edits", _neurons_and_edits(found)))
    sections.append(("Direct effects", figure_html("direct", draw.parts(direct))))
    sections.append(("What was run", _provenance(found, command)))
    return page(
        f"Who recalls facts in {suite.path.resolve().name}, and since when", _lead(found), sections
    )


_HEADINGS = {
    "name attention": "Name attention",
    "memory": "Memory",
    "extraction": "Extraction",
    "relation": "Relation",
}
_KEY = ("component", "role", "place")
_WHEN = """
<p><b>Needed</b> (solid): how much is lost when no component does the job: all heads cut along the
job's edge, or all MLPs at its place given the output they have with another name. It can only rise
once something is known. <b>In place</b> (dotted): how far the part looks as it does later, known or
not: the leading head's attention along the edge; for memory, how much more often the value can be
read off after the MLPs than before them. The first is a cause, the second is not. Click on a band
for the evidence.</p>"""
_TOO_FEW = "<p>There are too few checkpoints here to say when anything formed.</p>"
_TEXTS = {
    "name attention": "<p>One head's attention from a name token to the earlier ones is cut off "
    "before the softmax.</p>",
    "memory": "<p>One MLP's output at a token is replaced by what it is with another person's "
    "name. It is a memory only if the value can also be read off better after it than before: an "
    "MLP that is needed and fails there works on the name.</p>",
    "extraction": "<p>One head's attention from the answer position to all name tokens is cut "
    "off.</p>",
    "relation": "<p>One head's attention from the answer position to the words that say what is "
    "asked for is cut off.</p>",
}


def _lead(found: Localization) -> str:
    last = found.roles[
        (found.roles.step == found.roles.step.max())
        & (found.roles.attribute == "all")
        & found.roles.named
    ]
    rows = ""
    for role in ROLES:
        of_role = last[last.role == role].sort_values("share", ascending=False)
        who = "; ".join(
            f"<b>{escape(x.component)}</b> at {escape(x.place)}: {x.share:.2f} "
            f"[{x.low:.2f}, {x.high:.2f}]"
            for x in of_role.itertuples()
        )
        rows += f"<tr><th>{role}</th><td>{who or 'nobody'}</td></tr>"
    unnamed = found.roles[
        (found.roles.step == found.roles.step.max())
        & (found.roles.attribute == "all")
        & (found.roles.role == "memory")
        & (found.roles.kind == "mlp")
        & ~found.roles.named
        & (found.roles.share >= 0.05)
    ]
    others = "; ".join(
        f"{escape(x.component)} at {escape(x.place)} {x.share:.2f}" for x in unnamed.itertuples()
    )
    note = (
        f" MLPs that are needed, after which no value can be read off: {others}." if others else ""
    )
    n = found.curves.sizes["fact"]
    orders = "".join(_in_order(kind, x) for kind, x in found.orders.items())
    return (
        f"<p class='lead'>At step {found.roles.step.max()}, n = {n} facts, share of the logit "
        "difference that is lost without the component, with its 95 % interval over facts; named "
        f"are those that beat their shuffled control.{note}</p><table>{rows}</table>{orders}"
    )


def _in_order(kind: str, found) -> str:
    names = " → ".join(escape(label.split(": ")[0]) for label in found.labels)
    sure = "" if found.significant else "not "
    return (
        f"<p>In order of midpoints, <b>{kind}</b>: {names}; the same order in {found.share:.0%} of "
        f"bootstrap samples of facts; {sure}every step of it is significant (Holm-adjusted p &lt; "
        "0.05, and apart by more than the distance of checkpoints).</p>"
    )


def _times(found: Localization) -> str:
    rows = ""
    for label in found.formed.curve.values:
        x = found.formed.sel(curve=label)
        if bool(x.emerged):
            cells = "".join(
                f"<td>{float(x[name]):.0f} [{float(x[f'{name}_low']):.0f}, "
                f"{float(x[f'{name}_high']):.0f}] ± {float(x[f'resolution_{name}']):.0f}</td>"
                for name in ("onset", "midpoint", "completion")
            )
            cells += _lag(found.lags, label)
        else:
            cells = f"<td colspan='4'>no step: {escape(str(x.reason.item()))}</td>"
        rows += f"<tr><th>{escape(str(label))}</th>{cells}</tr>"
    return (
        "<p>Steps, with 95 % bootstrap intervals over facts, and ± the distance of the checkpoints "
        "between which it lies. The last column is positive where the midpoint comes after the end "
        "of the loss's plateau.</p><table><tr><th></th><th>onset</th><th>midpoint</th>"
        f"<th>completion</th><th>midpoint − plateau end</th></tr>{rows}</table>"
    )


def _lag(lags: xr.Dataset | None, label: str) -> str:
    if lags is None:
        return "<td>no plateau end</td>"
    x = lags.sel(curve=label)
    near = "" if bool(x.resolved) else ", between the same checkpoints"
    lag, low, high = (float(x[name]) for name in ("lag", "lag_low", "lag_high"))
    return f"<td>{lag:+.0f} [{low:+.0f}, {high:+.0f}]{near}</td>"


def _of_role(found: Localization, role: str) -> str:
    """What else there is to say of who has a role at the last step."""
    mine = found.by_attribute[found.by_attribute.role == role]
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
            f"<td>{x.most_share:.2f} ({escape(x.most)})</td><td>{_p(x.p)}</td></tr>"
        )
    return (
        "<p>Those who are named for all facts or for some attribute, at the last step. Nats lost "
        f"(n = {value.sizes['fact']} facts, mean ± 95 %) of the logit difference of first tokens, "
        "and of the log-probability of the whole value; and whether a component is needed for some "
        "attributes more than for others: least and largest share, p of a permutation test over "
        f"facts (n = {found.curves.sizes['fact']}, Holm-adjusted).</p><table><tr><th></th>"
        "<th>logit difference</th><th>whole value</th><th>least needed for</th>"
        f"<th>most needed for</th><th>p</th></tr>{rows}</table>"
    )


def _mean(values: xr.DataArray) -> str:
    n = values.sizes["fact"]
    margin = float(student.ppf(0.975, n - 1) * values.std(ddof=1) / n**0.5) if n > 1 else np.nan
    return f"{float(values.mean()):.2f} ± {margin:.2f}"


def _p(p: float) -> str:
    return "one attribute only" if np.isnan(p) else f"{p:.3f}" if p >= 0.001 else "&lt; 0.001"


def _memory_figures(found: Localization) -> str:

    readings, probes = (found.answers[x].isel(step=-1) for x in ("readings", "probes"))
    own = readings.accuracy.sel(of="all")
    heads = own.sel(reader=[x for x in own.reader.values if x != "unembed"]).max("reader")
    unembed = own.sel(reader="unembed", drop=True)
    best = xr.where(own.role == "final", unembed, heads).transpose(
        "labels", "layer", "site", "role"
    )
    probed = probes.accuracy.sel(of="all")
    panels = {
        "model's own weights": best.sel(labels="real"),
        "the same, shuffled": best.sel(labels="shuffled"),
        "linear probe": probed.sel(labels="real"),
        "probe, shuffled": probed.sel(labels="shuffled"),
    }
    n, n_people = (int(x.n.sel(of="all")) for x in (readings, probes))
    readable = draw.accuracies(
        panels,
        "How often the value can be read off the residual stream, last step",
        f"own weights: at final the unembedding, at names the best head's OV and the unembedding, "
        f"n = {n}; probes: fitted on other people, n = {n_people}",
    )
    severed = found.answers["severed"]
    share = (severed.patched - severed.corrupted).mean("fact") / (
        severed.clean - severed.corrupted
    ).mean("fact")
    last = share.isel(step=-1).sel(role=[x for x in share.role.values if x in best.role.values])
    last = last.expand_dims(site=["resid_pre"]).transpose("frozen", "layer", "site", "role")
    frozen = draw.accuracies(
        {f"{x} frozen": last.sel(frozen=x) for x in last.frozen.values},
        "Share recovered by the clean residual stream, last step",
        f"what is frozen stays as with the other name; n = {severed.sizes['fact']}",
    )
    return figure_html("readable", readable) + figure_html("severed", frozen)


def _attention_figure(found: Localization, role: str):

    leader = leaders(found.roles).loc[role]
    layer, head = (int(x) for x in leader.component[1:].split("H"))
    pattern = found.answers["attention"].pattern.isel(layer=layer, head=head)
    kept = [x for x in pattern.edge.values if x != "final ← names of all sentences"]
    return draw.lines(
        {str(edge): pattern.sel(edge=edge) for edge in kept},
        f"Where {leader.component} looks",
        f"share of attention, mean over n = {pattern.sizes['fact']} facts; not a cause",
        "share of attention",
    )


def _provenance(found: Localization, command: str) -> str:
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


def _parts_and_feeds(found: Localization) -> str:
    parts = found.depth["parts"].recovered
    kept = [x for x in parts.role.values if x.startswith("name") or x == "final"]
    panels = {
        f"{part} name swapped": parts.sel(part=part, role=kept)
        .expand_dims(site=["resid_pre"])
        .transpose("layer", "site", "role")
        for part in parts.part.values
    }
    figure = draw.accuracies(
        panels,
        "Where each part of the name is",
        "share recovered by the clean residual stream, one part of the name swapped",
    )
    feeds = found.depth["feeds"].recovered
    head = leaders(found.roles).component["extraction"]
    if not feeds.dims:
        return figure_html("parts", figure) + f"<p>No MLP comes before {escape(head)}.</p>"
    table = feeds.squeeze([x for x in feeds.dims if x not in ("layer", "role")]).to_pandas()
    rows = "".join(
        f"<tr><th>L{layer} MLP</th>{''.join(f'<td>{x:.2f}</td>' for x in row)}</tr>"
        for layer, row in table.iterrows()
        if row.notna().any()
    )
    heads = "".join(f"<th>{escape(str(x))}</th>" for x in table.columns)
    return figure_html("parts", figure) + (
        f"<p>Which MLPs feed {escape(head)}: share recovered by what each MLP's clean output alone "
        "changes in that head's values, everything else as with the other name.</p>"
        f"<table><tr><th></th>{heads}</tr>{rows}</table>"
    )


def _neurons_and_edits(found: Localization) -> str:
    effect = found.depth["neurons"].effect
    each = {
        "Gini coefficient of |effect| over neurons": gini(effect),
        "effective number of neurons (of "
        f"{effect.sizes['layer'] * effect.sizes['neuron']})": effective_number(effect),
    }
    rows = "".join(
        f"<tr><th>{name}</th><td>{float(x.mean()):.2f} (facts: {float(x.min()):.2f} to "
        f"{float(x.max()):.2f})</td></tr>"
        for name, x in each.items()
    )
    shared = sharing(effect)
    rows += "".join(
        f"<tr><th>overlap of the 10 strongest neurons of two facts, {escape(str(name))}</th>"
        f"<td>{float(shared.overlap.sel(relation=name)):.3f} (chance "
        f"{float(shared.chance):.3f})</td></tr>"
        for name in shared.relation.values
        if shared.overlap.sel(relation=name).notnull()
    )
    edits = found.depth["edits"]
    measures = [x for x in edits.data_vars if "edit" in edits[x].dims]
    heads = "".join(f"<th>{escape(x.replace('_', ' '))}</th>" for x in measures)
    body = "".join(
        f"<tr><th>{escape(str(where))}, {escape(str(edit).replace('_', ' '))}</th>"
        + "".join(
            f"<td>{float(edits[x].sel(edited=where, edit=edit).mean()):.2f}</td>" for x in measures
        )
        + "</tr>"
        for where in edits.edited.values
        for edit in edits.edit.values
    )
    n = edits.sizes["fact"]
    return (
        f"<p>Single neurons where the leading memory works, n = {effect.sizes['fact']} facts.</p>"
        f"<table>{rows}</table><p>One fact overwritten by a rank-one change of the MLP (ROME), n = "
        f"{n} facts, each by itself; mean accuracies. Controls: the same vector at the key of the "
        f"twin, and along a random key.</p><table><tr><th></th>{heads}</tr>{body}</table>"
    )
