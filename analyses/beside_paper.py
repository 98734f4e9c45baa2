"""Figures of studies: our curves on the left, the paper's on the right, each in its own units."""

from textwrap import wrap

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import qualitative, sample_colorscale
from plotly.subplots import make_subplots

from interp.report.figures.curves import band
from interp.report.figures.labels import FONT
from interp.statistics import margin

_LEGEND = {"bgcolor": "rgba(0,0,0,0)", "tracegroupgap": 0}


def across_seeds(table: pd.DataFrame, *, series: str, x: str, y: str) -> pd.DataFrame:
    """One row per (series, x): mean ``y`` over seeds, its 95 % interval (NaN for one seed), n."""
    rows = []
    for (of, at), group in table.groupby([series, x], sort=False)[y]:
        values = group.to_numpy()
        rows.append({"series": of, "x": at, "y": values.mean(), "n": len(values)})
        rows[-1]["margin"] = float(margin(values))
    return pd.DataFrame(rows, columns=["series", "x", "y", "n", "margin"])


def beside_paper(
    ours: pd.DataFrame,
    paper: pd.DataFrame,
    *,
    title: str,
    here: str,
    there: str,
    x: tuple[str, str] = ("optimizer step", "optimizer step"),
    y: str = "attribute loss (nats per value)",
    legend: str,
    names: dict | None = None,
    log_y: bool = True,
    baselines: tuple[float | None, float | None] = (None, None),
    markers: bool = False,
) -> go.Figure:
    """Lines of two tables with the columns series, x, y; ours may have a margin, drawn as a band.

    Args:
        here, there: what the panels show, sizes and n included.
        x: titles of the two x axes.
        legend: what the series are.
        names: of our series, where they are not to be shown as they are.
        log_y: else a share, from 0 to 1.
        baselines: no-knowledge baselines, dotted.
    """
    titles = [_lines(text, 48) for text in (here, there)]
    figure = make_subplots(1, 2, subplot_titles=titles)
    figure.update_xaxes(domain=[0, 0.33], col=1)
    figure.update_xaxes(domain=[0.53, 0.86], col=2)
    for annotation, at in zip(figure.layout.annotations, (0, 0.53)):
        annotation.update(x=at, xanchor="left", align="left", font_size=14)
    for column, table in enumerate((ours, paper), 1):
        order = list(dict.fromkeys(table.series))
        colors = _colors(len(order))
        for series, color in zip(order, colors):
            line = table[table.series == series].sort_values("x")
            name = (names or {}).get(series, str(series)) if column == 1 else str(series)
            _add(figure, line, column, name, color, log_y, "lines+markers" if markers else "lines")
        if (baseline := baselines[column - 1]) is not None:
            ends = pd.DataFrame({"x": [table.x.min(), table.x.max()], "y": baseline})
            _add(figure, ends, column, "no knowledge", "#777", log_y, "lines", dash="dot")
        figure.update_xaxes(title_text=x[column - 1], row=1, col=column)
    figure.update_yaxes(type="log" if log_y else "linear", title_text=y, col=1)
    figure.update_yaxes(type="log" if log_y else "linear", col=2)
    if not log_y:
        figure.update_yaxes(range=[-0.02, 1.02])
    for column, table in enumerate((ours, paper) if log_y else (), 1):
        ticks = "D1" if _decades(table) < 1 else "D2" if _decades(table) < 3 else 1
        figure.update_yaxes(exponentformat="power", dtick=ticks, col=column)
    figure.update_layout(
        title={"text": title, "x": 0.02, "y": 0.97},
        template="simple_white",
        font=FONT,
        width=1100,
        height=470,
        margin={"t": 100},
        legend={"x": 0.34, "title": _lines(legend, 16), **_LEGEND},
        legend2={"x": 0.87, "title": "paper", **_LEGEND},
    )
    return figure


def with_title(figure: go.Figure, title: str, note: str, **layout: object) -> go.Figure:
    """The figure with its title, a note in small letters below it, and ``layout``."""
    text = {"text": f"{title}<br><sup>{note}</sup>", "x": 0.02}
    return figure.update_layout(title=text, template="simple_white", font=FONT, **layout)


def _add(
    figure: go.Figure,
    line: pd.DataFrame,
    column: int,
    name: str,
    color: str,
    log_y: bool,
    mode: str,
    dash: str = "solid",
) -> None:
    group = f"{column}-{name}"
    legend = "legend" if column == 1 else "legend2"
    if "margin" in line and line.margin.notna().any():
        low, high = line.y - line.margin.fillna(0), line.y + line.margin.fillna(0)
        low = np.maximum(low, line.y / 10) if log_y else low  # a log axis has no 0
        x, low, high = (values.to_numpy() for values in (line.x, low, high))
        figure.add_trace(band(x, low, high, color, group=group), 1, column)
    figure.add_trace(
        go.Scatter(
            x=line.x,
            y=line.y,
            mode=mode,
            name=name,
            line={"color": color, "dash": dash},
            legendgroup=group,
            legend=legend,
        ),
        1,
        column,
    )


def _lines(text: str, width: int) -> str:
    return "<br>".join(wrap(text, width, break_on_hyphens=False))


def _colors(n: int) -> list[str]:
    if n <= 3:
        return list(qualitative.D3[:n])
    return sample_colorscale("viridis", np.linspace(0, 0.92, n))


def _decades(table: pd.DataFrame) -> float:
    y = table.y[table.y > 0]
    return float(np.log10(y.max() / y.min())) if len(y) else 0.0
