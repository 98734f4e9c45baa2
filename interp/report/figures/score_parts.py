"""Attention score contrasts by the parts of the residual stream that wrote query and key."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from interp.report.figures.controls import add_controls
from interp.report.figures.labels import FONT

_SHOWN = 10


def score_by_pairs(parts: xr.Dataset, *, title: str, subtitle: str) -> go.Figure:
    """One head's score contrast as a sum over pairs of query and key part, with a slider over
    training: the ten pairs that are largest at some step, all others together, and the sum.

    Args:
        parts: ``terms`` and ``terms_margin`` (step, query_part, key_part), ``score`` and
            ``score_margin`` (step): means over facts and halves of their 95 % intervals.
    """
    pairs = parts[["terms", "terms_margin"]].stack(pair=("query_part", "key_part"))
    size = np.abs(pairs.terms.fillna(0)).max("step")
    order = np.argsort(-size.values, kind="stable")[: min(_SHOWN, int((size > 0).sum()))]
    first = pairs.isel(pair=order)
    names = [f"{query} · {key}" for query, key in first.pair.values]
    frames = [
        go.Frame(name=str(step), data=[_bars(parts.sel(step=step), first.sel(step=step), names)])
        for step in parts.step.values
    ]
    figure = go.Figure(frames[-1].data, frames=frames)
    reach = 1.1 * float(np.nanmax([np.abs(bar.data[0].x).max() for bar in frames]))
    figure.update_layout(
        title={"text": f"{title}<br><sup>{subtitle}</sup>", "x": 0.02},
        xaxis={"title": "attention score (before the softmax)", "range": [-reach, reach]},
        yaxis={"title": "query part · key part", "autorange": "reversed"},
        template="simple_white",
        font=FONT,
        height=480,
        margin={"t": 90},
    )
    add_controls(figure, parts.step.values.tolist())
    return figure


def _bars(parts: xr.Dataset, first: xr.Dataset, names: list[str]) -> go.Bar:
    terms = first.terms.fillna(0).values
    score = float(parts.score)
    values = [*terms, score - terms.sum(), score]
    margins = [*first.terms_margin.fillna(0).values, 0, float(parts.score_margin)]
    colors = ["#1f4e9c" if x > 0 else "#c2571a" for x in terms]
    return go.Bar(
        x=np.array(values),
        y=[*names, "all other pairs", "score"],
        error_x={"array": margins},
        marker_color=[*colors, "#999", "#333"],
        orientation="h",
    )
