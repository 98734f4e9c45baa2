"""A circuit as a graph, with a slider over training."""

import re

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from interp.report.figures.controls import add_controls
from interp.report.figures.labels import FONT

MOST_DRAWN = 60
"""Edges; more can't be told apart."""
_FOR, _AGAINST = "#1f4e9c", "#c2571a"
_DASHES = {"q": "dash", "k": "dot"}


def circuit_graph(found: xr.Dataset, title: str, subtitle: str, *, link: str) -> go.Figure:
    """The circuit of every step: a column per token role, in it the components from the embedding
    up to the logits, heads side by side. An edge joins what its writer writes at tokens of the role
    to what reads it there: queries dashed, keys dotted.

    Args:
        found: ``importance`` (estimate, step, writer, reader, role) in nats, positive = for the
            answer, ``exact`` and others to compare with; ``margin`` and ``circuit`` (step, writer,
            reader, role): half of the exact one's 95 % interval, and 1 for the edges of the step's
            circuit, of which the ``MOST_DRAWN`` most important are drawn.
        link: place on the page to which a click on an edge leads, such as ``#edges``.
    """
    steps, roles = found.step.values.tolist(), found.role.values.tolist()
    names = [*found.writer.values.tolist(), "logits"]
    heads = [int(head[1]) for name in names if (head := re.fullmatch(r"L\d+H(\d+)", name))]
    at = {name: _place(name, max(heads) + 1, names) for name in names}
    frames = [
        go.Frame(name=str(step), data=_drawn(found.sel(step=step), at, link)) for step in steps
    ]
    figure = go.Figure(frames[-1].data, frames=frames)
    rows = {y: name if "H" not in name else f"{name[: name.index('H')]} heads"
            for name, (_, y) in at.items()}  # fmt: skip
    figure.update_layout(
        title={"text": f"{title}<br><sup>{subtitle}</sup>", "x": 0.02},
        xaxis={"tickvals": list(range(len(roles))), "ticktext": roles, "title": "token role",
               "range": [-0.6, len(roles) - 0.4], "zeroline": False},
        yaxis={"tickvals": list(rows), "ticktext": list(rows.values()), "showgrid": True,
               "range": [-0.5, max(rows) + 0.5], "zeroline": False},
        template="simple_white",
        font=FONT,
        height=200 + 55 * len(rows),
        margin={"t": 110},
        showlegend=False,
    )  # fmt: skip
    add_controls(figure, steps)
    return figure


def _place(name: str, n_heads: int, names: list[str]) -> tuple[float, int]:
    """Horizontal place within a role's column, and row, of a component."""
    if name == "embed":
        return 0.0, 0
    if name == "logits":
        return 0.0, 1 + 2 * (1 + int(names[-2][1:].split("-")[0]))
    layer = int(re.split(r"H|-", name[1:])[0])
    if name.endswith("MLP"):
        return 0.0, 2 + 2 * layer
    head = int(name.split("H")[1])
    return 0.7 * ((head + 0.5) / n_heads - 0.5), 1 + 2 * layer


def _drawn(found: xr.Dataset, at: dict[str, tuple[float, int]], link: str) -> list[go.Scatter]:
    """Every frame has as many traces: edges, the components they join, and the points that explain
    them.
    """
    dims = ("writer", "reader", "role")
    scores = found.importance.sel(estimate="exact").transpose(*dims).values
    margins = found.margin.transpose(*dims).values
    others = found.importance.drop_sel(estimate="exact").transpose("estimate", *dims)
    kept = found.circuit.transpose(*dims).values > 0
    places = np.argwhere(kept)[np.argsort(-np.abs(scores[kept]), kind="stable")][:MOST_DRAWN]
    largest = np.abs(scores[kept]).max(initial=1e-9)
    roles, lines, texts = found.role.values, [], []
    ends: dict[tuple, str] = {}
    for writer, reader, role in places.tolist():
        source, name = str(found.writer.values[writer]), str(found.reader.values[reader])
        target, _, kind = name.partition(".")
        score = float(scores[writer, reader, role])
        (x, y), (to_x, to_y) = at[source], at[target]
        line = {
            "width": 0.7 + 7 * abs(score) / largest,
            "color": _FOR if score > 0 else _AGAINST,
            "dash": _DASHES.get(kind, "solid"),
        }
        xs = [role + x, role + to_x]
        lines.append(go.Scatter(x=xs, y=[y, to_y], mode="lines", hoverinfo="skip", line=line))
        ends |= {(xs[0], y): source, (xs[1], to_y): target}
        middle = sum(xs) / 2, (y + to_y) / 2
        half, estimates = margins[writer, reader, role], others.values[:, writer, reader, role]
        texts.append((
            *middle,
            f"{source} → {name} at {roles[role]}<br>{score:+.2f} ± {half:.2f} nats, exact<br>"
            + ", ".join(f"{x} {y:+.2f}" for x, y in zip(others.estimate.values, estimates)),
        ))  # fmt: skip
    lines += [go.Scatter(x=[None], y=[None], mode="lines")] * (MOST_DRAWN - len(lines))
    components = go.Scatter(
        x=[x for x, _ in ends],
        y=[y for _, y in ends],
        mode="markers",
        marker={"size": 9, "color": "#333"},
        text=list(ends.values()),
        hovertemplate="%{text}<extra></extra>",
    )
    if not texts:
        center = (len(roles) - 1) / 2, max(y for _, y in at.values()) / 2
        nothing = go.Scatter(
            x=[center[0]], y=[center[1]], mode="text", text=["no circuit at this step"]
        )
        return [*lines, components, nothing]
    explained = go.Scatter(
        x=[x for x, *_ in texts],
        y=[y for _, y, _ in texts],
        mode="markers",
        marker={"size": 14, "opacity": 0},
        hoverlabel={"bgcolor": "white"},
        text=[text for *_, text in texts],
        customdata=[link] * len(texts),
        hovertemplate="%{text}<extra></extra>",
    )
    return [*lines, components, explained]
