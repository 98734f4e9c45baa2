"""Figures of the toy associative memory's tables: means over seeds with 95 % intervals."""

from math import log

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from analyses.associative_memory.forgetting import Size
from analyses.beside_paper import across_seeds, with_title
from analyses.studies import sample_in_words
from interp.report.figures.curves import band

_GREY = {"color": "#777", "dash": "dot", "width": 1}


def figures(tables: dict[str, pd.DataFrame], size: Size) -> dict[str, go.Figure]:
    """Figures, by section heading."""
    table = tables["associative_memory"]
    n, baseline = sample_in_words(table.seed.nunique()), log(size.shape.n_values)
    panels = _panels(table, size)
    return {
        "Old and new loss": _loss_plane(panels, baseline, n),
        "Accuracy over fine-tuning": _over_steps(panels, "accuracy", n),
        "Loss over fine-tuning": _over_steps(panels, "loss", n, baseline),
        "Which layer": _by_layer(tables["associative_memory_layers"], n),
        "Near and far keys": _by_cosine(tables["associative_memory_cosine"], size, n),
    }


def _panels(table: pd.DataFrame, size: Size) -> dict[str, pd.DataFrame]:
    """Rows of the two comparisons, with what tells their lines apart in the column series."""
    without = table[table.replay_weight == 0]
    replayed = table[table.n_new == size.n_new_with_replay]
    by_n = without.assign(series=without.n_new.map("{} new".format))
    by_weight = replayed.assign(series=replayed.replay_weight.map(weight_in_words))
    return {
        "without replay, by number of new pairs": by_n,
        f"{size.n_new_with_replay} new pairs, by replay weight": by_weight,
    }


def _loss_plane(panels: dict[str, pd.DataFrame], baseline: float, n: str) -> go.Figure:
    figure = make_subplots(1, 2, subplot_titles=list(panels), horizontal_spacing=0.08)
    for column, table in enumerate(panels.values(), 1):
        for series, color in _colored(table):
            alike = table[table.series == series]
            mean = alike.groupby("step")[["old_loss", "new_loss"]].mean().reset_index()
            seeds = [line for _, line in alike.groupby("seed")]
            for line, width in [(mean, 2.5), *((line, 0.5) for line in seeds)]:
                figure.add_trace(
                    go.Scatter(
                        x=line.old_loss,
                        y=line.new_loss,
                        mode="lines",
                        line={"color": color, "width": width},
                        name=series,
                        legendgroup=series,
                        showlegend=width > 1,
                        customdata=line.step,
                        hovertemplate="step %{customdata}: old %{x:.3g}, new %{y:.3g}",
                        legend="legend" if column == 1 else "legend2",
                    ),
                    1,
                    column,
                )
    figure.add_hline(baseline, line=_GREY)
    figure.add_vline(baseline, line=_GREY)
    figure.update_xaxes(type="log", dtick=1, exponentformat="power", title="loss on old pairs")
    figure.update_yaxes(type="log", dtick=1, exponentformat="power")
    figure.update_yaxes(title_text="loss on new pairs (nats per pair)", col=1)
    note = f"{n.replace(', bands 95 %', '')}; thick: means, thin: single seeds; fine-tuning starts "
    note += f"at the top left; dotted: no knowledge, ln {np.exp(baseline):.0f} = {baseline:.2f}"
    return _titled(figure, "Loss on new pairs against loss on old pairs", note, 640)


def _over_steps(
    panels: dict[str, pd.DataFrame], measure: str, n: str, baseline: float | None = None
) -> go.Figure:
    titles = [f"{kind} pairs, {name}" for kind in ("old", "new") for name in panels]
    figure = make_subplots(2, 2, subplot_titles=titles, shared_xaxes=True, vertical_spacing=0.1)
    for column, table in enumerate(panels.values(), 1):
        for row, kind in enumerate(("old", "new"), 1):
            lines = across_seeds(table, series="series", x="step", y=f"{kind}_{measure}")
            for series, color in _colored(table):
                line = lines[(lines.series == series) & (lines.x > 0)]
                legend = "legend" if column == 1 else "legend2"
                _add(figure, line, row, column, color, legend, row == 1, log_y=measure == "loss")
    if baseline is not None:
        figure.add_hline(baseline, line=_GREY)
        figure.update_yaxes(type="log", dtick=1, exponentformat="power")
        unit = "loss (nats per pair)"
    else:
        figure.update_yaxes(range=[-0.02, 1.02])
        unit = "accuracy (share of pairs)"
    figure.update_xaxes(type="log", dtick=1)
    figure.update_xaxes(title="fine-tuning step, from 1", row=2)
    figure.update_yaxes(title_text=unit, col=1)
    dotted = "" if baseline is None else "; dotted: no knowledge"
    title = f"{measure.capitalize()} on old and new pairs over fine-tuning"
    return _titled(figure, title, f"{n}{dotted}", 720)


def _by_layer(table: pd.DataFrame, n: str) -> go.Figure:
    shown = table[table.replay_weight == 0]
    last = shown[shown.step == shown.step.max()]
    figure = make_subplots(1, 2, subplot_titles=["old pairs", "new pairs"])
    colors = {"both": "#444", "first": "#1f4e9c", "second": "#c2571a"}
    for column, kind in enumerate(("old", "new"), 1):
        lines = across_seeds(last, series="fine_tuned", x="n_new", y=f"{kind}_accuracy")
        for series, color in colors.items():
            line = lines[lines.series == series]
            _add(figure, line, 1, column, color, "legend", column == 1, log_y=False)
    figure.update_xaxes(type="log", title="new pairs", tickvals=sorted(set(last.n_new)))
    figure.update_yaxes(range=[-0.02, 1.02])
    figure.update_yaxes(title_text="accuracy (share of pairs)", col=1)
    note = f"no replay, step {last.step.iloc[0]}, {n}; the other layer is the pre-trained one"
    return _titled(
        figure, "Pre-trained memory with fine-tuned layers", note, 430, "fine-tuned layer"
    )


def _by_cosine(table: pd.DataFrame, size: Size, n: str) -> go.Figure:
    shown = table[table.n_new == size.n_new_with_replay]
    figure = go.Figure()
    for color, (step, alike) in zip(_scale(shown.step.nunique()), shown.groupby("step")):
        found = across_seeds(alike, series="step", x="fifth", y="old_accuracy")
        cosine = alike.groupby("fifth").largest_cosine.mean()
        line = found.assign(x=cosine[found.x].to_numpy(), series=f"step {step}")
        _add(figure, line, None, None, color, "legend", True, log_y=False)
    figure.update_xaxes(title="largest cosine of an old key with a new one (mean of a fifth)")
    figure.update_yaxes(title="accuracy on old pairs (share of pairs)")
    note = f"{size.n_new_with_replay} new pairs, no replay, {n}; fifths of all old pairs"
    return _titled(figure, "Old accuracy by nearness to new keys", note, 430)


def _add(
    figure: go.Figure,
    line: pd.DataFrame,
    row: int | None,
    column: int | None,
    color: str,
    legend: str,
    in_legend: bool,
    *,
    log_y: bool,
) -> None:
    """A line of means with its band."""
    name, group = line.series.iloc[0], f"{legend}-{line.series.iloc[0]}"
    if line.margin.notna().any():
        low, high = line.y - line.margin.fillna(0), line.y + line.margin.fillna(0)
        low = np.maximum(low, line.y / 10) if log_y else low  # a log axis has no 0
        x, low, high = (values.to_numpy() for values in (line.x, low, high))
        figure.add_trace(band(x, low, high, color, group=group), row, column)
    figure.add_trace(
        go.Scatter(
            x=line.x,
            y=line.y,
            mode="lines+markers",
            marker={"size": 4},
            line={"color": color},
            name=name,
            legendgroup=group,
            legend=legend,
            showlegend=in_legend,
        ),
        row,
        column,
    )


def _titled(figure: go.Figure, title: str, note: str, height: int, legend: str = "") -> go.Figure:
    legends = {
        "legend": {"title": legend, "x": 1.02, "y": 1},
        "legend2": {"title": "replay weight", "x": 1.02, "y": 0.45},
    }
    return with_title(figure, title, note, width=1100, height=height, margin={"t": 100}, **legends)


def _colored(table: pd.DataFrame) -> list[tuple[str, str]]:
    series = list(dict.fromkeys(table.series))
    return list(zip(series, _scale(len(series))))


def _scale(n: int) -> list[str]:
    return sample_colorscale("viridis", np.linspace(0, 0.92, n))


def weight_in_words(weight: float) -> str:
    if weight == 0:
        return "no replay"
    return f"w = {weight:g}" if weight >= 1 else f"w = 1/{1 / weight:g}"
