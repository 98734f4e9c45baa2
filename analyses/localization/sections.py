"""What the localization page shows of each answer, as blocks for ``interp.report.page``."""

import plotly.graph_objects as go
import xarray as xr

from analyses.localization import tables
from interp.localization.formation import Localization, leading_head, place_of
from interp.localization.mechanisms import MECHANISMS
from interp.report.figures import localization_maps as draw
from interp.report.figures.timeline import timeline
from interp.report.page import Block, Paragraph, Plot, anchor
from interp.results.localize import has_metrics, plateau
from interp.suite import Suite

_TIMES = (
    "Needed (solid): which share of the difference between clean and corrupted run is lost without "
    "the mechanism: with all heads cut along its edge, or with all MLPs at its place given the "
    "output they have with another name. It begins where that difference is ten standard errors. "
    "In place (dotted), known or not: the leading head's attention along the edge; for memory, how "
    "much more often the value can be read off after the MLPs than before them, which follows "
    "accuracy and so is not set in order with attention. The first is a cause, the second is not. "
    "Click on a band for the evidence."
)
_TEXTS = {
    "name attention": "One head's attention from a name token to the earlier ones is cut off "
    "before the softmax.",
    "memory": "One MLP's output at a token is replaced by what it is with another person's name. "
    "It is a memory only if the value can also be read off better after it than before: an MLP "
    "that is needed and fails there works on the name.",
    "extraction": "One head's attention from the answer position to all name tokens is cut off.",
    "relation": "One head's attention from the answer position to the words that say what is asked "
    "for is cut off.",
}
_NO_PLACE = {
    "name attention": "No prompt here has a name of several tokens.",
    "memory": "No prompt here has a place where an MLP could look a value up.",
    "extraction": "No prompt here has a name before its answer position.",
    "relation": "No prompt here has words between the name and the answer position, or before it.",
}
"""What is said of a mechanism for which no prompt has the tokens."""


def heading_of(mechanism: str) -> str:
    """The heading of a mechanism's section."""
    return mechanism.capitalize()


def has_people(found: Localization) -> bool:
    """Whether the facts are about people of a run, on whom probes were fitted."""
    return "probes" in found.answers


def when(suite: Suite, found: Localization) -> list[Block]:
    """The timeline of all mechanisms, and their times as a table."""
    if found.curves.sizes["curve"] == 1:
        return [Paragraph("No component is named at the last step, so there is nothing to time.")]
    metrics = suite.metrics if has_metrics(suite) else None
    links = {mechanism: f"#{anchor(heading_of(mechanism))}" for mechanism in MECHANISMS}
    figure = timeline(
        found.curves, found.formed, metrics=metrics, phases=plateau(suite), links=links
    )
    few = [Paragraph("There are too few checkpoints here to say when anything formed.")]
    times = tables.times(found) if found.formed is not None else few
    return [Paragraph(_TIMES), Plot("timeline", figure), *times]


def needs(found: Localization, mechanism: str) -> list[Block]:
    """What is lost without each component, over training and by attribute."""
    name, table = mechanism.replace(" ", "-"), found.mechanisms
    if not (table.mechanism == mechanism).any():
        return [Paragraph(f"{_TEXTS[mechanism]} {_NO_PLACE[mechanism]}")]
    drawn = {
        f"mechanisms-{name}": draw.lost_over_training(table, mechanism),
        f"attributes-{name}": draw.lost_by_attribute(table, mechanism),
    }
    plots = [Plot(key, figure) for key, figure in drawn.items() if len(figure.data[0].y)]
    none = [] if plots else [Paragraph("No component is named at any step.")]
    return [Paragraph(_TEXTS[mechanism]), *plots, *none]


def attention(found: Localization, mechanism: str) -> list[Block]:
    """Where the leading head of a mechanism attends, over training."""
    leader = leading_head(found.mechanisms, mechanism)
    if leader is None:
        return []
    layer, head = place_of(leader.component)
    pattern = found.answers["attention"].pattern.isel(layer=layer, head=head)
    kept = [x for x in pattern.edge.values if x != "final ← names of all sentences"]
    figure = draw.lines(
        {str(edge): pattern.sel(edge=edge) for edge in kept},
        f"Where {leader.component} attends",
        f"share of attention, mean over n = {pattern.sizes['fact']} facts; not a cause",
        "share of attention",
    )
    return [Plot(f"attention-{mechanism.replace(' ', '-')}", figure)]


def probes(found: Localization) -> list[Block]:
    """Where the value can be read off the residual stream: by the logit lens, by heads' OV
    circuits, and by probes.
    """
    readings = found.answers["readings"].isel(step=-1)
    own = readings.accuracy.sel(of="all")
    heads = own.sel(reader=[x for x in own.reader.values if x != "unembed"]).max("reader")
    unembed = own.sel(reader="unembed", drop=True)
    best = xr.where(own.role == "final", unembed, heads).transpose(
        "labels", "layer", "site", "role"
    )
    panels = {
        "model's own weights": best.sel(labels="real"),
        "the same, shuffled": best.sel(labels="shuffled"),
    }
    how = (
        "own weights: at final the unembedding, at names the best head's OV and the unembedding, "
        f"n = {int(readings.n.sel(of='all'))}"
    )
    if has_people(found):
        probed = found.answers["probes"].isel(step=-1)
        for label, labels in (("linear probe", "real"), ("probe, shuffled", "shuffled")):
            panels[label] = probed.accuracy.sel(of="all", labels=labels)
        how += f"; probes: fitted on other people, n = {int(probed.n.sel(of='all'))}"
    there = best.notnull().any(("labels", "layer", "site"))
    panels = {name: panel.isel(role=there.values) for name, panel in panels.items()}
    title = "How often the value can be read off the residual stream, last step"
    return [Plot("readable", draw.shares(panels, title, how, of_effect=False))]


def severed(found: Localization) -> list[Block]:
    """What a clean residual stream restores while later MLPs or attention are frozen."""
    answer = found.depth["severed"]
    named = [x for x in answer.role.values if x in found.answers["readings"].role.values]
    share = answer.recovered.sel(role=named).expand_dims(site=["resid_pre"])
    share = share.transpose("frozen", "layer", "site", "role")
    figure = draw.shares(
        {f"{x} frozen": share.sel(frozen=x) for x in share.frozen.values},
        "Share recovered by the clean residual stream, last step",
        f"what is frozen stays as with the other name; n = {answer.n}",
        of_effect=True,
    )
    return [Plot("severed", figure)]


def parts(found: Localization) -> list[Block]:
    """Where each part of the name is in the residual stream."""
    answer = found.depth["parts"]
    if "recovered" not in answer:
        return []
    return [Plot("parts", _parts_figure(answer))]


def _parts_figure(answer: xr.Dataset) -> go.Figure:
    kept = [x for x in answer.role.values if x.startswith("name") or x == "final"]
    n = ", ".join(f"{int(answer.n.sel(part=x))} ({x})" for x in answer.part.values)
    panels = {
        f"{part} name swapped": answer.recovered.sel(part=part, role=kept)
        .expand_dims(site=["resid_pre"])
        .transpose("layer", "site", "role")
        for part in answer.part.values
    }
    return draw.shares(
        panels,
        "Where each part of the name is",
        f"share recovered by the clean residual stream, one part of the name swapped; n = {n}",
        of_effect=True,
    )


def direct(found: Localization) -> list[Block]:
    """What each component writes directly towards the right value."""
    return [Plot("direct", draw.parts(found.answers["direct"].isel(step=-1)))]
