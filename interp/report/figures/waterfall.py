"""A sum of parts as a waterfall, with a slider over training."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from interp.report.figures.controls import add_controls
from interp.report.figures.labels import FONT

_SHOWN = 10
_UP, _DOWN, _SUM = "#1f4e9c", "#c2571a", "#333"


def waterfall(
    parts: xr.Dataset,
    by: Sequence[str],
    *,
    title: str,
    subtitle: str,
    unit: str,
    joined: str = " · ",
) -> go.Figure:
    """The ten parts that are largest at some step, one after another, all others together, and the
    sum.

    Args:
        parts: ``term`` and ``term_margin`` (step, and the dims ``by``), ``total`` and
            ``total_margin`` (step): means over facts and halves of their 95 % intervals.
        by: dims whose labels, joined, name a part.
    """
    flat = parts[["term", "term_margin"]].stack(place=list(by))
    size = np.abs(flat.term.fillna(0)).max("step")
    order = np.argsort(-size.values, kind="stable")[: min(_SHOWN, int((size > 0).sum()))]
    first = flat.isel(place=order)
    names = [joined.join(map(str, np.atleast_1d(place))) for place in first.place.values.tolist()]
    frames = [
        go.Frame(
            name=str(step), data=_steps_down(parts.sel(step=step), first.sel(step=step), names)
        )
        for step in parts.step.values
    ]
    figure = go.Figure(frames[-1].data, frames=frames)
    points = [frame.data[1] for frame in frames]
    low, high = (
        sign * np.nanmax([0, *(np.nanmax(sign * x.x + x.error_x.array) for x in points)])
        for sign in (-1, 1)
    )
    room = 0.08 * (high - low) or 1.0
    figure.update_layout(
        title={"text": f"{title}<br><sup>{subtitle}</sup>", "x": 0.02},
        xaxis={"title": unit, "range": [low - room, high + room]},
        yaxis={"title": joined.join(x.replace("_", " ") for x in by), "autorange": "reversed"},
        template="simple_white",
        font=FONT,
        height=480,
        margin={"t": 90},
        showlegend=False,
    )
    add_controls(figure, parts.step.values.tolist())
    return figure


def _steps_down(
    parts: xr.Dataset, first: xr.Dataset, names: list[str]
) -> list[go.Waterfall | go.Scatter]:
    """The bars, and the 95 % intervals of their lengths at their ends."""
    terms, total = first.term.fillna(0).values, float(parts.total)
    values = np.array([*terms, total - terms.sum(), total])
    ends = np.array([*np.cumsum(values[:-1]), total])
    margins = [*first.term_margin.fillna(0).values, 0, float(parts.total_margin)]
    labels = [*names, "all others", "sum"]
    text = [f"{x:+.2f}" + (f" ± {half:.2f}" if half else "") for x, half in zip(values, margins)]
    bars = go.Waterfall(
        x=values,
        y=labels,
        measure=["relative"] * (len(values) - 1) + ["total"],
        orientation="h",
        increasing={"marker": {"color": _UP}},
        decreasing={"marker": {"color": _DOWN}},
        totals={"marker": {"color": _SUM}},
        connector={"line": {"color": "#bbb", "width": 1}},
        customdata=text,
        hovertemplate="%{y}: %{customdata}<extra></extra>",
    )
    intervals = go.Scatter(
        x=ends,
        y=labels,
        mode="markers",
        marker={"size": 1, "color": "#777"},
        error_x={"array": margins, "color": "#777", "thickness": 1.2},
        hoverinfo="skip",
    )
    return [bars, intervals]
