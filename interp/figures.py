"""Results in, plotly figures out: no model, no torch. Labels, units and n come from the data."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from plotly.colors import qualitative
from plotly.subplots import make_subplots

from interp.dynamics import Phases
from interp.results import distinguishable, moved, recovered

SITE_LABELS = {
    "embed": "embeddings",
    "resid_pre": "residual stream before the block",
    "resid_mid": "residual stream between attention and MLP",
    "resid_post": "residual stream after the block",
    "attn_out": "attention output",
    "mlp_out": "MLP output",
    "mlp_post": "groups of neurons",
    "z": "attention heads (z)",
    "q": "queries (q)",
    "k": "keys (k)",
    "v": "values (v)",
    "pattern": "attention patterns",
    "edge": "attention edges",
    "knockout": "attention cut",
}
_DIRECTIONS = {
    "denoising": "corrupted run ← clean activation",
    "noising": "clean run ← corrupted activation",
}
_ACROSS = {
    "head": "head",
    "pos": "position (0 = bos)",
    "src": "source",
    "neuron": "first neuron of the group",
}
_SHARES = {"denoising": "recovered", "noising": "lost"}
_FONT = {"family": "system-ui, sans-serif", "size": 13}


def patch_heatmap(result: xr.Dataset | xr.DataTree, *, metric: str = "logit_diff") -> go.Figure:
    """Share recovered (noising: lost) of every cell of one site, layer by role or position
    (z: layer by head, a panel a role).

    With a ``step`` of several checkpoints the figure has a slider and a play button. A step is left
    grey where clean and corrupted run can't be told apart (the 95 % interval of their mean
    difference holds 0): there is nothing to recover.
    """
    result = _dataset(result)
    return patch_heatmaps({result.attrs["site"]: result}, metric=metric)


def patch_heatmaps(
    results: dict[str, xr.Dataset] | xr.DataTree, *, metric: str = "logit_diff"
) -> go.Figure:
    """``patch_heatmap`` of several sites side by side under one slider."""
    results = by_site(results)
    panels = [
        panel
        for site, result in results.items()
        for panel in _panels(site, _dataset(result), metric)
    ]
    if not panels:
        raise ValueError("no results to show; patch at least one site")
    first = _dataset(next(iter(results.values())))
    steps = sorted({s for _, v in panels if "step" in v.dims for s in v.step.values.tolist()})
    panels = [(title, v.reindex(step=steps) if steps else v) for title, v in panels]
    n_columns = min(3, len(panels)) if len(panels) != 4 else 2
    n_rows = -(-len(panels) // n_columns)
    figure = make_subplots(
        n_rows,
        n_columns,
        subplot_titles=[title for title, _ in panels],
        horizontal_spacing=0.11,
        vertical_spacing=0.42 / n_rows,
    )
    for i, (_, values) in enumerate(panels):
        figure.add_trace(_heatmap(values, -1), i // n_columns + 1, i % n_columns + 1)
        place = {"row": i // n_columns + 1, "col": i % n_columns + 1}
        # Said outright, since a frame of missing values alone would leave the axes without any.
        labels = [str(x) for x in values[values.dims[-1]].values]
        figure.update_yaxes(
            title_text="layer", dtick=1, range=_span(values.sizes["layer"]), **place
        )
        figure.update_xaxes(
            title_text=_ACROSS.get(values.dims[-1]),
            type="category",
            categoryarray=labels,
            range=_span(len(labels)),
            **place,
        )
    figure.add_trace(_color_bar_holder(), 1, 1)
    figure.update_layout(
        title=_title(f"Patched: {', '.join(results)}", first, metric),
        coloraxis={
            "colorscale": "RdBu",
            "cmid": 0,
            "cmin": -1,
            "cmax": 1,
            "colorbar": {"title": _SHARES[first.attrs["direction"]]},
        },
        height=190 + 255 * n_rows,
        font=_FONT,
        margin={"t": 120, "b": 40},
        plot_bgcolor="#ddd",
    )
    figure.update_xaxes(showgrid=False, zeroline=False)
    figure.update_yaxes(showgrid=False, zeroline=False)
    if len(steps) > 1:
        _add_slider(figure, panels, steps)
    return figure


def effect_over_training(
    results: dict[str, xr.Dataset] | xr.DataTree,
    *,
    metric: str = "logit_diff",
    n_cells: int = 10,
    phases: Phases | None = None,
) -> go.Figure:
    """Share recovered over training of the strongest components (at most four a site; residual
    streams only if nothing else was patched), with 95 %
    bootstrap intervals over facts.
    """
    results = by_site(results)
    components = {site: r for site, r in results.items() if not site.startswith("resid")}
    shown = {site: _dataset(result) for site, result in (components or results).items()}
    cells = _strongest(shown, metric, n_cells)
    figure = go.Figure()
    for i, (label, line) in enumerate(cells):
        color = qualitative.Dark24[i % 24]
        shown = line.dropna("step", subset=["estimate"])
        steps = shown.step.values
        band = {
            "x": np.concatenate((steps, steps[::-1])),
            "y": np.concatenate((shown.high, shown.low[::-1])),
        }
        figure.add_trace(
            go.Scatter(
                **band,
                fill="toself",
                fillcolor=color,
                opacity=0.15,
                line={"width": 0},
                hoverinfo="skip",
                legendgroup=label,
                showlegend=False,
            )
        )
        figure.add_trace(
            go.Scatter(
                x=steps,
                y=shown.estimate,
                name=label,
                legendgroup=label,
                mode="lines+markers",
                line={"color": color},
                customdata=np.stack((shown.low, shown.high), -1),
                hovertemplate="step %{x}: %{y:.2f} [%{customdata[0]:.2f}, %{customdata[1]:.2f}]",
            )
        )
    first = _dataset(next(iter(results.values())))
    _shade_plateau(figure, phases)
    figure.update_layout(
        title=_title("When the strongest cells came to matter", first, metric),
        height=520,
        font=_FONT,
        hovermode="closest",
        xaxis_title="optimizer step",
        yaxis={
            "title": f"share of clean − corrupted {_SHARES[first.attrs['direction']]}",
            "range": [-0.3, 1.3],
        },
        template="simple_white",
        margin={"t": 90},
    )
    return figure


def training_curves(
    metrics: pd.DataFrame, no_knowledge_baseline: float, phases: Phases
) -> go.Figure:
    """Attribute loss and accuracy over training, of people trained on and of held-out people, with
    baseline and phases.
    """
    figure = make_subplots(
        1,
        2,
        subplot_titles=["attribute loss (nats per value)", "attribute accuracy (share of values)"],
        horizontal_spacing=0.1,
    )
    colors = {"train": "#1f4e9c", "held-out": "#c2571a"}
    names = {"train": "people trained on, new sentences", "held-out": "held-out people"}
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
    _shade_plateau(figure, phases)
    figure.update_xaxes(title_text="optimizer step")
    figure.update_yaxes(type="log", dtick=1, row=1, col=1)
    figure.update_layout(
        height=430,
        template="simple_white",
        font=_FONT,
        legend={"orientation": "h", "y": -0.25},
        margin={"t": 60},
    )
    return figure


def by_site(results: dict[str, xr.Dataset] | xr.DataTree) -> dict[str, xr.Dataset]:
    """What ``patch_suite`` returns, as a data set a site; so is a single site's result."""
    if isinstance(results, xr.DataTree):
        children = results.children or {results.attrs.get("site", ""): results}
        return {site: node.to_dataset() for site, node in children.items()}
    return {site: _dataset(result) for site, result in results.items()}


def _panels(site: str, result: xr.Dataset, metric: str) -> list[tuple[str, xr.DataArray]]:
    shares = recovered(result, metric)
    if result.attrs["direction"] == "noising":
        shares = 1 - shares
    shares = shares.where(distinguishable(result, metric))
    by = "dest" if "dest" in shares.dims else result.attrs["by"]
    across = next((dim for dim in ("src", "head", "neuron") if dim in shares.dims), by)
    if across == by:
        return [(f"{SITE_LABELS[site]} ({site})", shares.transpose(..., "layer", by))]
    if {"head", "src"} <= set(shares.dims):  # a row a head
        names = [f"L{a}H{b}" for a in shares.layer.values for b in shares["head"].values]
        shares = shares.stack(row=("layer", "head")).drop_vars(("row", "layer", "head"))
        shares = shares.rename(row="layer").assign_coords(layer=names)
    return [
        (f"{site} at {label}", shares.sel({by: label}).transpose(..., "layer", across))
        for label in result[by].values
        if shares.sel({by: label}).notnull().any() or site == "z"
    ]


def _heatmap(values: xr.DataArray, index: int) -> go.Heatmap:
    at = values.isel(step=index) if "step" in values.dims else values
    across = at.dims[-1]
    return go.Heatmap(
        z=at.values,
        x=[str(x) for x in at[across].values],
        y=at.layer.values,
        coloraxis="coloraxis",
        xgap=1,
        ygap=1,
        hovertemplate=f"layer %{{y}}, {across} %{{x}}<br>share %{{z:.3f}}<extra></extra>",
    )


def _span(n: int) -> list[float]:
    return [-0.5, n - 0.5]


def _color_bar_holder() -> go.Scatter:
    """An invisible point, without which a frame of missing values has no colour bar."""
    return go.Scatter(
        x=[0],
        y=[0],
        mode="markers",
        marker={"color": [0], "coloraxis": "coloraxis", "opacity": 0, "size": 0.1},
        showlegend=False,
        hoverinfo="skip",
    )


def _add_slider(
    figure: go.Figure, panels: list[tuple[str, xr.DataArray]], steps: Sequence[int]
) -> None:
    figure.frames = [
        go.Frame(
            name=str(step),
            data=[_heatmap(values, i) for _, values in panels],
            traces=list(range(len(panels))),
        )
        for i, step in enumerate(steps)
    ]
    now = {
        "mode": "immediate",
        "frame": {"duration": 0, "redraw": True},
        "transition": {"duration": 0},
    }
    play = {
        "mode": "immediate",
        "fromcurrent": True,
        "frame": {"duration": 450, "redraw": True},
        "transition": {"duration": 0},
    }
    figure.update_layout(
        sliders=[
            {
                "active": len(steps) - 1,
                "currentvalue": {"prefix": "step "},
                "pad": {"t": 62},
                "x": 0.1,
                "len": 0.9,
                "steps": [
                    {"label": str(s), "method": "animate", "args": [[str(s)], now]} for s in steps
                ],
            }
        ],
        updatemenus=[
            {
                "type": "buttons",
                "direction": "left",
                "x": 0.08,
                "y": 0,
                "xanchor": "right",
                "yanchor": "top",
                "pad": {"t": 67},
                "buttons": [
                    {"label": "▶", "method": "animate", "args": [[str(s) for s in steps], play]},
                    {"label": "❚❚", "method": "animate", "args": [[None], now]},
                ],
            }
        ],
        margin={"b": 137},
    )
    figure.update_layout(height=figure.layout.height + 97)


def _strongest(
    results: dict[str, xr.Dataset], metric: str, n_cells: int
) -> list[tuple[str, xr.Dataset]]:
    """The ``n_cells`` cells that moved the run most, in the mean over the later half of training,
    at most four a site; cells that can't be judged are left out.
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
            label = _cell_label(site, place)
            found.append((float(later[i]), label, cells.isel(cell=i)))
    return [(label, line) for _, label, line in sorted(found, key=lambda item: -item[0])[:n_cells]]


def _cell_label(site: str, place: dict) -> str:
    """Such as ``L1H3 at final``, ``L0 mlp_out at name_last``, ``L2H0 edge final ← name_first``."""
    head = f"H{place['head']}" if "head" in place else ""
    of = "" if site == "z" else f" {site}"
    if "neuron" in place:
        of += f" {place['neuron']}…"
    if "dest" in place:
        return f"L{place['layer']}{head}{of} {place['dest']} ← {place['src']}"
    at = next(place[by] for by in ("role", "pos") if by in place)
    return f"L{place['layer']}{head}{of} at {at}"


def _shade_plateau(figure: go.Figure, phases: Phases | None) -> None:
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


def _title(text: str, result: xr.Dataset, metric: str) -> dict:
    run, n = _DIRECTIONS[result.attrs["direction"]], result.sizes["fact"]
    ends = (
        "0 = corrupted, 1 = clean"
        if run == _DIRECTIONS["denoising"]
        else "0 = clean, 1 = corrupted"
    )
    how = f"{run}; {metric}; n = {n} facts; {ends}"
    return {
        "text": f"{text[0].upper()}{text[1:]}<br><sup>{how}</sup>",
        "x": 0.02,
        "y": 0.97,
        "yanchor": "top",
    }


def _dataset(result: xr.Dataset | xr.DataTree) -> xr.Dataset:
    return result.to_dataset() if isinstance(result, xr.DataTree) else result
