"""What the circuits of a run say, in words and on a page."""

import numpy as np
import pandas as pd
import xarray as xr

from analyses.agreement import interval_text
from analyses.circuits.takeovers import head_shares, takeovers
from interp.dynamics.emergence import MIN_CHECKPOINTS, emergence
from interp.report.figures.circuit_graph import MOST_DRAWN, circuit_graph
from interp.report.figures.labels import site_label
from interp.report.figures.localization_maps import line_panels, lines
from interp.report.page import Bullets, Paragraph, Plot, Section, Table, anchor, page
from interp.statistics import margin, runs_differ
from interp.suite import Suite

_N_EDGES, _N_HEADS, _N_TOLD = 12, 8, 4
_EDGES = "Its edges over training"
_METHOD = (
    "An edge joins what a component writes at tokens of one role to what reads it: queries, keys "
    "and values of a head, an MLP, the logits. In the run of a circuit all other edges carry what "
    "they carry in the corrupted run. Faithfulness: 0 = as corrupted, 1 = as clean; it can exceed "
    "1, since some edges work against the answer. CPR is the area under faithfulness over the "
    "fraction of edges kept, with the largest signed importance first (perfect: 0.999, and more "
    "where edges work against the answer are left out); CMD the area under |1 − faithfulness|, "
    "with the largest absolute importance first (perfect: 0). Edges are chosen on one half of the "
    "facts; faithfulness, CPR and CMD are measured on the other half."
)


def said(found: xr.Dataset) -> list[str]:
    """The circuit at the last step, how far estimates agree, and which heads hand over."""
    last = found.isel(step=-1)
    step, n, n_others = int(last.step), found.sizes["fact"], found.sizes["measured"]
    if not runs_differ(last.gap.values):
        return [f"step {step}: clean and corrupted run can't be told apart, so there is no circuit"]
    if np.isnan(float(last["size"])):
        return [f"step {step}: no circuit reaches a faithfulness of {found.attrs['target']}"]
    n_all = int(last.n_edges.max())
    size, kept = int(last["size"]), int(last.connected_size)
    text = [
        f"step {step}: {size} of {n_all:,} edges keep {float(last.chosen_faithfulness):.2f} of the "
        f"difference on the {n} facts that choose them, and "
        f"{interval_text(last, 'circuit_faithfulness')} on {n_others} others; without them "
        f"{interval_text(last, 'without_circuit')} is kept. {kept} of the {size} lie on a way from "
        "the embedding to the logits",
        f"its strongest edges, as shares of the difference: {_strongest(last)}",
        _handed_over(takeovers(found), found.sizes["step"]),
    ]
    agree = [
        f"{method} {interval_text(last.sel(estimate=method, measure='pearson'))}"
        for method in found.estimate.values
        if method != "exact"
    ]
    return [*text, f"correlation of estimated with exact effects of edges: {', '.join(agree)}"]


def _strongest(last: xr.Dataset) -> str:
    gap = float((last.clean - last.corrupted).mean())
    shares = (-last.effect.sel(estimate="exact") / gap).where(last.circuit > 0)
    flat = shares.stack(edge=("writer", "reader", "role")).dropna("edge")
    flat = flat.sortby(flat, ascending=False).isel(edge=slice(_N_TOLD))
    return ", ".join(
        f"{writer} → {reader} at {role} ({float(x):.2f})"
        for (writer, reader, role), x in zip(flat.edge.values, flat)
    )


def _handed_over(table: pd.DataFrame, n_steps: int) -> str:
    if n_steps == 1:
        return "one checkpoint: no heads to compare over time"
    if table.empty:
        return "What is known is too little, at all checkpoints but one, to compare heads over time"
    first = table.first_step.iloc[0]
    lost = table[table.falls].sort_values("change")
    gained = table[table.rises].sort_values("rise", ascending=False)
    names = ", ".join(
        f"{x.head} ({x.peak:.2f} at step {x.peak_step}, {x.last:.2f} at the end)"
        for x in lost.itertuples()
    )
    others = ", ".join(f"{x.head} ({x.rise:+.2f})" for x in gained.itertuples())
    return (
        f"Heads that do less of the whole than at their best, from step {first} on: "
        f"{names or 'none is shown to'}; heads that do more at the end than at step {first}: "
        f"{others or 'none is shown to'}"
    )


def report(suite: Suite, found: xr.Dataset, command: str) -> str:
    """The HTML page."""
    n = found.sizes["fact"]
    facts = f"n = {n} facts"
    half = xr.apply_ufunc(margin, found.effect_of_fact, input_core_dims=[["fact"]])
    drawn = xr.Dataset({"importance": -found.effect, "margin": half, "circuit": found.circuit})
    title = f"Smallest circuit that keeps {found.attrs['target']} on the facts that choose it"
    sub = (
        "blue: for the answer, orange: against; dashed: read as queries, dotted: as keys; width: "
        f"size;<br>attention carries values on to later roles; the {MOST_DRAWN} strongest edges at "
        f"most; {facts}"
    )
    sections = [
        Section(
            "The circuit",
            [
                Plot("circuit", circuit_graph(drawn, title, sub, link=f"#{anchor(_EDGES)}")),
                Paragraph("A click on an edge leads to the edges' effects over training.", "note"),
            ],
        ),
        Section("Its size over training", _size(found, facts)),
        Section(_EDGES, _edges(found, facts)),
        Section("Heads that take over from others", _takeovers(found)),
        Section("Where estimates mislead", _estimates(found, facts)),
    ]
    rows = {"command": command, "asked": found.attrs.get("request", "")}
    rows["made by"] = found.attrs.get("made_by", "")
    sections.append(Section("What was run", [Table([], list(rows.items()), code=True)]))
    lead = [Bullets(said(found), "lead"), Paragraph(_METHOD)]
    return page(f"Circuits of {suite.path.resolve().name}", lead, sections)


def _size(found: xr.Dataset, facts: str) -> list:
    sizes = {"edges": found["size"], "connected edges": found.connected_size}
    final = found.circuit.isel(step=-1)
    overlap = {
        "with the checkpoint before": _overlap(found.circuit, found.circuit.shift(step=1)),
        "with the last checkpoint": _overlap(found.circuit, final),
    }
    return [
        Plot("size", lines(sizes, "Edges in the circuit", facts, "edges")),
        Plot(
            "overlap",
            lines(overlap, "Overlap of circuits", "edges in both ÷ edges in either", "share"),
        ),
    ]


def _overlap(one: xr.DataArray, two: xr.DataArray) -> xr.DataArray:
    """Edges in both ÷ edges in either; NaN where one has none."""
    one, two = one > 0, two.fillna(0) > 0
    dims = ("writer", "reader", "role")
    shared = (one & two).sum(dims) / (one | two).sum(dims)
    return shared.where(one.any(dims) & two.any(dims))


def final_edges(found: xr.Dataset) -> list[tuple[str, str, str]]:
    """The most important edges of the last step's circuit: writer, reader, role."""
    mean = -found.effect.sel(estimate="exact").isel(step=-1)
    mean = mean.where(found.circuit.isel(step=-1) > 0).fillna(-np.inf)
    flat = mean.stack(edge=("writer", "reader", "role"))
    flat = flat.where(np.isfinite(flat), drop=True)
    return list(flat.sortby(flat, ascending=False).edge.values[:_N_EDGES])


def when(found: xr.Dataset, edge: tuple[str, str, str]) -> str:
    """When an edge's effect rose, in words."""
    if found.sizes["step"] < MIN_CHECKPOINTS:
        return f"too few checkpoints ({found.sizes['step']})"
    writer, reader, role = edge
    curve = -found.effect_of_fact.sel(writer=writer, reader=reader, role=role).dropna("fact")
    rose = emergence(curve.reset_coords(drop=True))
    if not bool(rose.emerged):
        return f"no time ({rose.reason.item()})"
    low, mid, high = (float(rose[f"midpoint{end}"]) for end in ("_low", "", "_high"))
    return f"{mid:.0f} [{low:.0f}, {high:.0f}]"


def _edges(found: xr.Dataset, facts: str) -> list:
    edges = final_edges(found)
    if not edges:
        return [Paragraph("There is no circuit at the last step.")]
    last = -found.effect.sel(estimate="exact").isel(step=-1)
    rows = [
        [
            f"{writer} → {reader} at {role}",
            f"{float(last.sel(writer=writer, reader=reader, role=role)):+.2f}",
            when(found, (writer, reader, role)),
        ]
        for writer, reader, role in edges
    ]
    curves = {
        f"{writer} → {reader} at {role}": -found.effect_of_fact.sel(
            writer=writer, reader=reader, role=role
        )
        for writer, reader, role in edges
    }
    heads = ["edge", "nats at the last step", "half of its rise at step [95 % interval]"]
    return [
        Plot(
            "edges",
            lines(curves, "What edges of the final circuit do for the answer", facts, "nats"),
        ),
        Table(heads, rows),
    ]


def _takeovers(found: xr.Dataset) -> list:
    table = takeovers(found)
    if table.empty:
        return [Paragraph("Clean − corrupted is precise at fewer than two checkpoints.")]
    shares, curves = head_shares(found), {}
    top = table.sort_values("peak", ascending=False).head(_N_HEADS)
    for name in top["head"]:
        layer, head = name[1:].split("H")
        curves[name] = shares.isel(layer=int(layer), head=int(head))
    rows = [
        [x.head, str(x.peak_step), f"{x.peak:.2f}", f"{x.last:.2f}",
         f"{x.change:+.2f} [{x.low:+.2f}, {x.high:+.2f}]",
         f"{x.rise:+.2f} [{x.rise_low:+.2f}, {x.rise_high:+.2f}]",
         ", ".join(["falls"] * x.falls + ["rises"] * x.rises)]
        for x in top.itertuples()
    ]  # fmt: skip
    first, n = table.first_step.iloc[0], found.sizes["any_fact"]
    heads = ["head", "step of its largest share", "share then", "share at the end", "change"]
    return [
        Plot(
            "head-shares",
            lines(
                curves,
                "What is lost without a head",
                f"n = {n} facts",
                "share of clean − corrupted",
            ),
        ),
        Paragraph(
            f"Shares of the difference that is lost when all of a head's output is that of the "
            f"corrupted run, from step {first}, at which the difference is ten standard errors. "
            "Each head's step is found on one half of the facts and its shares are of the other; "
            "intervals are 95 % for all heads of a column together."
        ),
        Table([*heads, f"change since step {first}", ""], rows),
    ]


def _estimates(found: xr.Dataset, facts: str) -> list:
    others = [method for method in found.estimate.values if method != "exact"]
    pearson = {method: found.agreement.sel(estimate=method, measure="pearson") for method in others}
    faithful = {method: found.cmd.sel(estimate=method) for method in found.estimate.values}
    last = found.isel(step=-1)
    rows = [
        [method, f"{float(at.cpr):.3f}", f"{float(at.cmd):.3f}",
         *(interval_text(at.sel(measure=measure)) for measure in found.measure.values)]
        for method in found.estimate.values
        for at in [last.sel(estimate=method)]
    ]  # fmt: skip
    return [
        Plot(
            "agreement",
            lines(
                pearson, "Correlation of estimated with exact effects of edges", facts, "Pearson"
            ),
        ),
        Plot("cmd", lines(faithful, "CMD of circuits by each method (0 is perfect)", facts, "CMD")),
        Paragraph("At the last step, 95 % intervals over facts:"),
        Table(["method", "CPR", "CMD", *found.measure.values], rows),
        *_node_estimates(found, facts),
    ]


def _node_estimates(found: xr.Dataset, facts: str) -> list:
    methods, sites = found.node_estimate.values.tolist(), found.site.values.tolist()
    pearson = found.sel(measure="pearson").node_agreement
    panels = {
        site_label(site): {name: pearson.sel(site=site, node_estimate=name) for name in methods}
        for site in sites
    }
    last = found.isel(step=-1)
    rows = [
        [
            site_label(site),
            *(_pearson_and_sign(last.sel(site=site, node_estimate=name)) for name in methods),
        ]
        for site in sites
    ]
    title = "Correlation of estimated with exact effects of patching nodes"
    sub = f"over layers, heads, token roles and facts; noising; {facts}"
    return [
        Plot("node-agreement", line_panels(panels, title, sub, "Pearson")),
        Paragraph("Nodes at the last step: Pearson correlation, and share of the same sign."),
        Table(["site", *methods], rows),
    ]


def _pearson_and_sign(at: xr.Dataset) -> str:
    sign = float(at.node_agreement.sel(measure="same_sign"))
    return f"{interval_text(at.sel(measure='pearson'), 'node_agreement')}, {sign:.0%}"
