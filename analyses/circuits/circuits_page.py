"""What the circuits of a run say, in words and on a page."""

import numpy as np
import xarray as xr

from analyses.agreement import interval_text
from interp.dynamics.emergence import MIN_CHECKPOINTS, emergence
from interp.report.figures.circuit_graph import MOST_DRAWN, circuit_graph
from interp.report.figures.localization_maps import lines
from interp.report.page import Bullets, Paragraph, Plot, Section, Table, page
from interp.suite import Suite

_N_EDGES = 12
_METHOD = (
    "An edge joins what a component writes at tokens of one role to what reads it: queries, keys "
    "and values of a head, an MLP, the logits. In the run of a circuit all other edges carry what "
    "they carry in the corrupted run. Faithfulness: 0 = as corrupted, 1 = as clean; it can exceed "
    "1, since some edges work against the answer. CPR is the area under faithfulness over the "
    "fraction of edges kept, with the largest signed importance first (perfect: 0.999, and more "
    "where edges work against the answer are left out); CMD the area under |1 − faithfulness|, "
    "with the largest absolute importance first (perfect: 0). Edges are chosen and measured on the "
    "same facts, which makes circuits look somewhat more faithful than they are on others."
)


def said(found: xr.Dataset) -> list[str]:
    """The circuit at the last step, what its edges are, and how far estimates agree."""
    last = found.isel(step=-1)
    step, n = int(last.step), found.sizes["fact"]
    if np.isnan(float(last["size"])):
        return [f"step {step}: no circuit reaches a faithfulness of {found.attrs['target']}"]
    n_all = int(last.n_edges.max())
    size, kept = int(last["size"]), int(last.connected_size)
    text = [
        f"step {step}: {size} of {n_all:,} edges ({kept} of them on a way from the embedding to "
        f"the logits) have a faithfulness of {_interval(last, 'circuit_faithfulness')}; without "
        f"them it is {_interval(last, 'without_circuit')} (n = {n} facts)"
    ]
    for method in found.estimate.values:
        at = last.sel(estimate=method)
        areas = f"{method}: CPR {float(at.cpr):.3f}, CMD {float(at.cmd):.3f}"
        pearson = interval_text(at.sel(measure="pearson"))
        agrees = f", Pearson correlation with exact effects {pearson}"
        text.append(areas if method == "exact" else areas + agrees)
    return text


def _interval(at: xr.Dataset, name: str) -> str:
    low, mid, high = (float(at[f"{name}{end}"]) for end in ("_low", "", "_high"))
    return f"{mid:.2f} [{low:.2f}, {high:.2f}]"


def report(suite: Suite, found: xr.Dataset, command: str) -> str:
    """The HTML page."""
    n = found.sizes["fact"]
    facts = f"n = {n} facts"
    drawn = xr.Dataset(
        {"importance": -found.effect.sel(estimate="exact"), "circuit": found.circuit}
    )
    title = f"Smallest circuit with a faithfulness of {found.attrs['target']}"
    sub = f"blue: for the answer, orange: against; at most {MOST_DRAWN} edges drawn; {facts}"
    sections = [
        Section("The circuit", [Plot("circuit", circuit_graph(drawn, title=title, subtitle=sub))]),
        Section("Its size over training", _size(found, facts)),
        Section("Its edges over training", _edges(found, facts)),
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
    """Edges in both ÷ edges in either; NaN where neither has any."""
    one, two = one > 0, two.fillna(0) > 0
    dims = ("writer", "reader", "role")
    either = (one | two).sum(dims)
    return ((one & two).sum(dims) / either).where(either > 0)


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
    ]
