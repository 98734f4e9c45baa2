"""When each mechanism of factual recall formed."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.dynamics.emergence import MARKS
from interp.dynamics.plateau import Phases, format_step
from interp.report.figures.curves import band, shade_plateau
from interp.report.figures.labels import FONT
from interp.statistics import margin

COLORS = {
    "name attention": "#1f77b4",
    "memory": "#d62728",
    "extraction": "#2ca02c",
    "relation": "#9467bd",
}
_STYLE = {"needed": "solid", "in place": "dot"}
_BAR = {"needed": -0.14, "in place": -0.3}


def timeline(
    curves: xr.DataArray,
    formed: xr.Dataset | None,
    *,
    metrics: pd.DataFrame | None,
    phases: Phases,
    links: dict[str, str],
) -> go.Figure:
    """When each mechanism formed: accuracy and plateau on top, one panel per mechanism below.

    Args:
        curves: (curve, step, fact), shares, with labels such as ``memory: needed``.
        metrics: of the run, as ``suite.metrics``; None if it has none.
        formed: ``interp.dynamics.emergence.emergence`` of them, or None.
        links: place of the page that a click on a mechanism's band leads to, by mechanism.
    """
    labels = [str(label) for label in curves.curve.values if ": " in str(label)]
    mechanisms = list(dict.fromkeys(label.split(": ")[0] for label in labels))
    figure = make_subplots(
        1 + len(mechanisms),
        1,
        shared_xaxes=True,
        vertical_spacing=0.03,
        row_heights=[1.2, *[1] * len(mechanisms)],
    )
    if metrics is not None:
        _add_accuracies(figure, metrics)
    for row, mechanism in enumerate(mechanisms, 2):
        for kind in _STYLE:
            if f"{mechanism}: {kind}" in labels:
                at = {"curve": f"{mechanism}: {kind}"}
                _add_curve(figure, curves.sel(at), row, mechanism, kind, links.get(mechanism, ""))
                if formed is not None:
                    _add_band(
                        figure, formed.sel(at), row, mechanism, kind, links.get(mechanism, "")
                    )
        figure.update_yaxes(
            title_text=mechanism, range=[-0.42, 1.15], tickvals=[0, 0.5, 1], row=row, col=1
        )
    figure.update_yaxes(title_text="knowledge", range=[-0.05, 1.05], row=1, col=1)
    figure.update_xaxes(title_text="optimizer step", row=1 + len(mechanisms), col=1)
    shade_plateau(figure, phases)
    n = curves.sizes["fact"]
    how = (
        f"n = {n} facts; lines: means with 95 % intervals; bars: from onset "
        "(10 % of the rise)<br>to completion (90 %), diamond: midpoint with 95 % bootstrap "
        "interval;<br>no bar: no step was found"
    )
    figure.update_layout(
        title={"text": f"When each mechanism formed<br><sup>{how}</sup>", "x": 0.02},
        height=200 + 150 * (1 + len(mechanisms)),
        template="simple_white",
        font=FONT,
        legend={"orientation": "h", "y": -0.09},
        margin={"t": 120},
    )
    return figure


def _add_accuracies(figure: go.Figure, metrics: pd.DataFrame) -> None:
    average = metrics[metrics.attribute == "average"]
    names = {"train": "accuracy, people trained on", "held-out": "accuracy, held-out people"}
    for split, table in average.groupby("split", sort=False):
        style = {"color": "#333", "dash": "solid" if split == "train" else "dot"}
        figure.add_trace(
            go.Scatter(x=table.step, y=table.accuracy, name=names[split], line=style), 1, 1
        )


def _add_curve(
    figure: go.Figure, curve: xr.DataArray, row: int, mechanism: str, kind: str, link: str
) -> None:
    curve = curve.isel(step=np.flatnonzero(curve.notnull().any("fact")))
    steps, mean, error = curve.step.values, curve.mean("fact").values, margin(curve.values)
    color = COLORS[mechanism]
    figure.add_trace(band(steps, mean - error, mean + error, color), row, 1)
    figure.add_trace(
        go.Scatter(
            x=steps,
            y=mean,
            name=f"{mechanism}: {kind}",
            mode="lines+markers",
            marker={"size": 4},
            line={"color": color, "dash": _STYLE[kind]},
            customdata=[link] * len(steps),
            text=[f"{m:.3f} ± {e:.3f}" for m, e in zip(mean, error)],
            hovertemplate=(
                f"{mechanism}, {kind}<br>step %{{x}}: %{{text}}<extra>click: evidence</extra>"
            ),
        ),
        row,
        1,
    )


def _add_band(
    figure: go.Figure, formed: xr.Dataset, row: int, mechanism: str, kind: str, link: str
) -> None:
    if not bool(formed.emerged):
        return
    at = {str(name): float(x) for name, x in formed.data_vars.items() if x.dtype.kind == "f"}
    said = "<br>".join(_mark_in_words(at, mark) for mark in MARKS)
    figure.add_trace(
        go.Scatter(
            x=[at["onset"], at["completion"]],
            y=[_BAR[kind]] * 2,
            mode="lines",
            line={"width": 9, "color": COLORS[mechanism]},
            opacity=0.35 if kind == "needed" else 0.2,
            hoverinfo="skip",
            showlegend=False,
        ),
        row,
        1,
    )
    figure.add_trace(
        go.Scatter(
            x=[at["midpoint"]],
            y=[_BAR[kind]],
            mode="markers",
            marker={"symbol": "diamond", "size": 10, "color": COLORS[mechanism]},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [at["midpoint_high"] - at["midpoint"]],
                "arrayminus": [at["midpoint"] - at["midpoint_low"]],
            },
            customdata=[link],
            hovertemplate=f"{mechanism}, {kind}<br>{said}<extra>click: evidence</extra>",
            showlegend=False,
        ),
        row,
        1,
    )


def _mark_in_words(at: dict[str, float], mark: str) -> str:
    spacing = at[f"resolution_{mark}"]
    step, low, high, apart = (
        format_step(at[name], spacing)
        for name in (mark, f"{mark}_low", f"{mark}_high", f"resolution_{mark}")
    )
    return f"{mark} {step} [{low}, {high}], between checkpoints {apart} steps apart"
