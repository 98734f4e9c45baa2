"""Lines over training: effects of patches, losses and accuracies."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from plotly.colors import qualitative
from plotly.subplots import make_subplots

from interp.dynamics.plateau import Phases
from interp.report.figures.labels import (
    FONT,
    SHARES,
    by_site,
    cell_label,
    components,
    dataset_of,
    title_of,
)
from interp.results.metrics import distinguishable, moved


def effect_over_training(
    results: dict[str, xr.Dataset] | xr.DataTree,
    *,
    metric: str = "logit_diff",
    n_cells: int = 10,
    phases: Phases | None = None,
) -> go.Figure:
    """Share recovered over training by the strongest patches (at most four per site; of residual
    streams only if nothing else was patched), with 95 % bootstrap intervals over facts.
    """
    results = by_site(results)
    shown = {site: dataset_of(result) for site, result in components(results).items()}
    cells = _strongest(shown, metric, n_cells)
    figure = go.Figure()
    for i, (label, line) in enumerate(cells):
        color = qualitative.Dark24[i % 24]
        known = line.dropna("step", subset=["estimate"])
        steps, low, high = known.step.values, known.low.values, known.high.values
        figure.add_trace(band(steps, low, high, color, group=label))
        figure.add_trace(
            go.Scatter(
                x=steps,
                y=known.estimate,
                name=label,
                legendgroup=label,
                mode="lines+markers",
                line={"color": color},
                customdata=np.stack((low, high), -1),
                hovertemplate="step %{x}: %{y:.2f} [%{customdata[0]:.2f}, %{customdata[1]:.2f}]",
            )
        )
    first = dataset_of(next(iter(results.values())))
    shade_plateau(figure, phases)
    figure.update_layout(
        title=title_of("When the strongest patches came to matter", first, metric),
        height=520,
        font=FONT,
        hovermode="closest",
        xaxis_title="optimizer step",
        yaxis={
            "title": f"share of clean − corrupted {SHARES[first.attrs['direction']]}",
            "range": [-0.3, 1.3],
        },
        template="simple_white",
        margin={"t": 90},
    )
    return figure


def training_curves(
    metrics: pd.DataFrame, no_knowledge_baseline: float, phases: Phases
) -> go.Figure:
    """Attribute loss and accuracy over training, on people trained on and on held-out people, with
    baseline and phases.
    """
    figure = make_subplots(
        1,
        2,
        subplot_titles=["attribute loss (nats per value)", "attribute accuracy (share of values)"],
        horizontal_spacing=0.1,
    )
    colors = {"train": "#1f4e9c", "held-out": "#c2571a", "new": "#2a7f3e", "unknown": "#777777"}
    names = {
        "train": "people trained on, new sentences",
        "held-out": "held-out people",
        "new": "new people, whom fine-tuning adds",
        "unknown": "people met with other values in every biography",
    }
    average = metrics[metrics.attribute == "average"]
    for split, table in average.groupby("split", sort=False):
        style = {
            "mode": "lines+markers",
            "line": {"color": colors[split]},
            "name": names[split],
            "legendgroup": split,
        }
        figure.add_trace(go.Scatter(x=table.step, y=table.loss, **style), 1, 1)
        figure.add_trace(
            go.Scatter(x=table.step, y=table.accuracy, showlegend=False, **style), 1, 2
        )
    trained = metrics[(metrics.split == "train") & (metrics.attribute != "average")]
    for attribute, table in trained.groupby("attribute", sort=False):
        style = {
            "mode": "lines",
            "line": {"color": colors["train"], "width": 1},
            "opacity": 0.35,
            "showlegend": False,
        }
        figure.add_trace(
            go.Scatter(x=table.step, y=table.accuracy, name=attribute.replace("_", " "), **style),
            1,
            2,
        )
    figure.add_trace(
        go.Scatter(
            x=[metrics.step.min(), metrics.step.max()],
            y=[no_knowledge_baseline] * 2,
            mode="lines",
            line={"dash": "dot", "color": "#777"},
            name="no-knowledge baseline",
        ),
        1,
        1,
    )
    shade_plateau(figure, phases)
    figure.update_xaxes(title_text="optimizer step")
    figure.update_yaxes(type="log", dtick=1, row=1, col=1)
    figure.update_layout(
        height=430,
        template="simple_white",
        font=FONT,
        legend={"orientation": "h", "y": -0.25},
        margin={"t": 60},
    )
    return figure


def _strongest(
    results: dict[str, xr.Dataset], metric: str, n_cells: int
) -> list[tuple[str, xr.Dataset]]:
    """The ``n_cells`` patches with the largest mean effect over the later half of training, at most
    four per site; steps at which the clean and the corrupted run cannot be told apart are left out.
    """
    found = []
    for site, result in results.items():
        lines = moved(result, metric).where(distinguishable(result, metric))
        cells = lines.stack(cell=[d for d in lines.dims if d != "step"])
        later = cells.estimate.isel(step=slice(result.sizes["step"] // 2, None)).mean("step")
        rank = later.dropna("cell").argsort().values[::-1]
        known = np.flatnonzero(later.notnull())
        for i in known[rank[:4]]:
            place = dict(zip(cells.indexes["cell"].names, cells.indexes["cell"][i]))
            label = cell_label(site, place)
            found.append((float(later[i]), label, cells.isel(cell=i)))
    return [(label, line) for _, label, line in sorted(found, key=lambda item: -item[0])[:n_cells]]


def band(
    x: np.ndarray, low: np.ndarray, high: np.ndarray, color: str, *, group: str | None = None
) -> go.Scatter:
    """The area between two lines, shown and hidden with its legend group."""
    return go.Scatter(
        x=np.concatenate((x, x[::-1])),
        y=np.concatenate((high, low[::-1])),
        mode="lines",
        fill="toself",
        fillcolor=color,
        opacity=0.15,
        line={"width": 0},
        hoverinfo="skip",
        legendgroup=group,
        showlegend=False,
    )


def shade_plateau(figure: go.Figure, phases: Phases | None) -> None:
    """A grey band over the plateau in all panels, labelled in the first."""
    if phases and phases.plateau_start < phases.plateau_end:
        figure.add_vrect(
            phases.plateau_start, phases.plateau_end, fillcolor="#999", opacity=0.15, line_width=0
        )
        figure.add_annotation(
            x=phases.plateau_end,
            y=1,
            yref="y domain",
            text="plateau",
            showarrow=False,
            xanchor="right",
            font={"color": "#555"},
        )
