"""The page of ``analyses.localization``: when each job formed, who does it, and the evidence."""

import xarray as xr

from analyses import localization_tables as tables
from analyses.localization import Localization, leaders, place_of, plateau
from interp.localization.roles import ROLES
from interp.report.figures import localization_maps as draw
from interp.report.figures.timeline import timeline
from interp.report.page import anchor, figure_html, page, repeats_note


def report(suite, found: Localization, command: str) -> str:
    """HTML page that leads with when each job formed."""
    sections = [("When", _when(suite, found))]
    for role in ROLES:
        kind = role.replace(" ", "-")
        content = _TEXTS[role] + figure_html(
            f"roles-{kind}", draw.roles_over_training(found.roles, role)
        )
        content += figure_html(f"attributes-{kind}", draw.roles_by_attribute(found.roles, role))
        content += tables.of_role(found, role)
        if role == "memory":
            content += _memory_figures(found) + tables.read_at_final(found)
        elif role in leaders(found.roles).index:
            content += figure_html(f"attention-{kind}", _attention_figure(found, role))
            content += tables.looks(found, role)
        sections.append((_HEADINGS[role], content))
    direct = found.answers["direct"].isel(step=-1)
    swapped = "recovered" in found.depth["parts"]
    parts = figure_html("parts", _parts_figure(found)) if swapped else ""
    sections += [
        ("Which part of the name, and what feeds extraction", parts + tables.feeds(found)),
        ("Neurons and edits", tables.neurons_and_edits(found)),
        ("Direct effects", figure_html("direct", draw.parts(direct))),
        ("What was run", tables.provenance(found, command)),
    ]
    name = suite.path.resolve().name
    lead = tables.lead(found) + repeats_note(found.answers)
    return page(f"Who recalls facts in {name}, and since when", lead, sections)


def _when(suite, found: Localization) -> str:
    if found.curves.sizes["curve"] == 1:
        return "<p>Nobody has a role at the last step, so there is nothing to time.</p>"
    metrics = suite.metrics if (suite.path / "metrics.parquet").is_file() else None
    links = {role: f"#{anchor(_HEADINGS[role])}" for role in ROLES}
    figure = timeline(
        found.curves, found.formed, metrics=metrics, phases=plateau(suite), links=links
    )
    times = tables.times(found) if found.formed is not None else _TOO_FEW
    return _WHEN + figure_html("timeline", figure) + times


_HEADINGS = {
    "name attention": "Name attention",
    "memory": "Memory",
    "extraction": "Extraction",
    "relation": "Relation",
}
_WHEN = """
<p><b>Needed</b> (solid): which share of the difference between clean and corrupted run is lost when
no component does the job: all heads cut along the job's edge, or all MLPs at its place given the
output they have with another name. It begins where that difference is ten standard errors. <b>In
place</b> (dotted), known or not: the leading head's attention along the edge; for memory, how much
more often the value can be read off after the MLPs than before them, which follows accuracy and so
is not set in order with attention. The first is a cause, the second is not. Click on a band
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
    readable = draw.shares(
        panels,
        "How often the value can be read off the residual stream, last step",
        f"own weights: at final the unembedding, at names the best head's OV and the unembedding, "
        f"n = {n}; probes: fitted on other people, n = {n_people}",
        of_effect=False,
    )
    severed = found.depth["severed"]
    share = severed.recovered
    share = share.sel(role=[x for x in share.role.values if x in best.role.values])
    share = share.expand_dims(site=["resid_pre"]).transpose("frozen", "layer", "site", "role")
    frozen = draw.shares(
        {f"{x} frozen": share.sel(frozen=x) for x in share.frozen.values},
        "Share recovered by the clean residual stream, last step",
        f"what is frozen stays as with the other name; n = {severed.n}",
        of_effect=True,
    )
    return figure_html("readable", readable) + figure_html("severed", frozen)


def _attention_figure(found: Localization, role: str):
    leader = leaders(found.roles).loc[role]
    layer, head = place_of(leader.component)
    pattern = found.answers["attention"].pattern.isel(layer=layer, head=head)
    kept = [x for x in pattern.edge.values if x != "final ← names of all sentences"]
    return draw.lines(
        {str(edge): pattern.sel(edge=edge) for edge in kept},
        f"Where {leader.component} looks",
        f"share of attention, mean over n = {pattern.sizes['fact']} facts; not a cause",
        "share of attention",
    )


def _parts_figure(found: Localization):
    parts = found.depth["parts"]
    kept = [x for x in parts.role.values if x.startswith("name") or x == "final"]
    n = ", ".join(f"{int(parts.n.sel(part=x))} ({x})" for x in parts.part.values)
    panels = {
        f"{part} name swapped": parts.recovered.sel(part=part, role=kept)
        .expand_dims(site=["resid_pre"])
        .transpose("layer", "site", "role")
        for part in parts.part.values
    }
    return draw.shares(
        panels,
        "Where each part of the name is",
        f"share recovered by the clean residual stream, one part of the name swapped; n = {n}",
        of_effect=True,
    )
