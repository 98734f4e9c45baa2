"""Heat maps of patch grids."""

import re
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp.report.figures.controls import add_controls
from interp.report.figures.labels import (
    FONT,
    SHARES,
    by_site,
    dataset_of,
    site_label,
    title_of,
)
from interp.results.metrics import distinguishable, recovered

_SPANS = (0.05, 0.1, 0.25, 0.5, 1)
"""Of the colour scale, on either side of 0."""
_STOPS = re.compile(r"(?:layer|head|neuron)(_\d+)?")
_ACROSS = {
    "head": "head",
    "pos": "position (0 = bos)",
    "src": "source",
    "neuron": "first neuron of the group",
    "to": "stops after",
}


def patch_heatmap(result: xr.Dataset | xr.DataTree, *, metric: str = "logit_diff") -> go.Figure:
    """Share recovered (noising: lost) of every cell of one site, layer by role or position
    (z: layer by head, one panel per role).

    With a ``step`` of several checkpoints the figure has a slider and a play button. A step is left
    grey where clean and corrupted run can't be told apart (the 95 % interval of their mean
    difference holds 0): there is nothing to recover.
    """
    result = dataset_of(result)
    return patch_heatmaps({result.attrs["site"]: result}, metric=metric)


def patch_heatmaps(
    results: dict[str, xr.Dataset] | xr.DataTree,
    *,
    other: dict[str, xr.Dataset] | None = None,
    metric: str = "logit_diff",
) -> go.Figure:
    """``patch_heatmap`` of several sites side by side under one slider; with ``other``, each beside
    the same site's result in the other direction.
    """
    results = by_site(results)
    panels = []
    for site, result in results.items():
        panels += (
            _beside(site, result, other[site], metric) if other else _panels(site, result, metric)
        )
    if not panels:
        raise ValueError("no results to show; patch at least one site")
    first = next(iter(results.values()))
    steps = sorted({s for _, v in panels if "step" in v.dims for s in v.step.values.tolist()})
    panels = [(title, v.reindex(step=steps) if steps else v) for title, v in panels]
    n_columns = min(3, len(panels)) if len(panels) != 4 and not other else 2
    figure, height = _grid(panels, n_columns)
    for i, (_, values) in enumerate(panels):
        figure.add_trace(_heatmap(values, -1), i // n_columns + 1, i % n_columns + 1)
        place = {"row": i // n_columns + 1, "col": i % n_columns + 1}
        _label_axes(figure, values, place)
    figure.add_trace(_color_bar_holder(), 1, 1)
    largest = max(np.nan_to_num(np.abs(v)).max() for _, v in panels)
    span = next((x for x in _SPANS if x >= largest), 1)
    figure.update_layout(
        title=title_of(f"Patched: {', '.join(results)}", first, metric, other),
        coloraxis={
            "colorscale": "RdBu",
            "cmid": 0,
            "cmin": -span,
            "cmax": span,
            "colorbar": {"title": "moved" if other else SHARES[first.attrs["direction"]]},
        },
        height=height,
        font=FONT,
        margin={"t": 150 if other else 120, "b": 40},
        plot_bgcolor="#ddd",
    )
    figure.update_xaxes(showgrid=False, zeroline=False)
    figure.update_yaxes(showgrid=False, zeroline=False)
    if len(steps) > 1:
        _add_slider(figure, panels, steps)
    return figure


def _grid(panels: list[tuple[str, xr.DataArray]], n_columns: int) -> tuple[go.Figure, int]:
    """Empty panels under their titles, and the height of all in pixels."""
    n_rows = -(-len(panels) // n_columns)
    heights = [
        max(_panel_height(v) for _, v in panels[i : i + n_columns])
        for i in range(0, len(panels), n_columns)
    ]
    long = any(len(str(x)) > 4 for _, v in panels for x in v[v.dims[-1]].values)
    gap = 140 if long else 105  # between rows of panels; long labels are slanted
    figure = make_subplots(
        n_rows,
        n_columns,
        subplot_titles=[title for title, _ in panels],
        horizontal_spacing=0.11,
        vertical_spacing=gap / (sum(heights) + gap * n_rows),
        row_heights=heights,
    )
    return figure, 190 + sum(heights) + gap * n_rows


def _beside(
    site: str, result: xr.Dataset, other: xr.Dataset, metric: str
) -> list[tuple[str, xr.DataArray]]:
    """Panels of one direction, each followed by that of the other."""
    found = [dict(_panels(site, way, metric)) for way in (result, other)]
    panels = []
    for title in dict.fromkeys([*found[0], *found[1]]):
        missing = (found[1] | found[0])[title].where(False)
        for way, own in zip((result, other), found):
            panels.append((f"{title}, {way.attrs['direction']}", own.get(title, missing)))
    return panels


def _panels(site: str, result: xr.Dataset, metric: str) -> list[tuple[str, xr.DataArray]]:
    shares = recovered(result, metric)
    if result.attrs["direction"] == "noising":
        shares = 1 - shares
    known = distinguishable(result, metric)
    by = "dest" if "dest" in shares.dims else result.attrs["by"]
    for axis in ("layer", by):  # one of them may have been selected
        if axis not in shares.dims and axis in shares.coords:
            shares = shares.expand_dims(axis)
    if "-" in site:
        shares = _first_and_later_stops(shares)
    across = next((dim for dim in ("to", "src", "head", "neuron") if dim in shares.dims), by)
    if across == by:
        whole = shares.where(known).transpose(..., "layer", by)
        return [(f"{site_label(site)} ({site})", whole)]
    if {"head", "src"} <= set(shares.dims):  # a row per head
        names = [f"L{a}H{b}" for a in shares.layer.values for b in shares["head"].values]
        shares = shares.stack(row=("layer", "head")).drop_vars(("row", "layer", "head"))
        shares = shares.rename(row="layer").assign_coords(layer=names)
    panels = [
        (f"{site_label(site) if '-' in site else site} at {label}", panel.where(known))
        for label in shares[by].values
        for panel in [shares.sel({by: label}).transpose(..., "layer", across)]
        if panel.notnull().any()
    ]
    arriving = [(title, panel) for title, panel in panels if panel.fillna(0).any()]
    return arriving if "-" in site and arriving else panels


def _first_and_later_stops(shares: xr.DataArray) -> xr.DataArray:
    """Axes ``layer`` and, where two or more stops have layers, ``to`` for all but the first."""
    stops: dict[str, list[str]] = {}
    for dim in map(str, shares.dims):
        if match := _STOPS.fullmatch(dim):
            stops.setdefault(match[1] or "", []).append(dim)
    if not stops:
        return shares.expand_dims(layer=["all"])
    if len(stops) == 1:
        (names,) = stops.values()
        return shares.rename({name: name.split("_")[0] for name in names})
    first, *later = stops.values()
    for axis, group in (("layer", first), ("to", [name for names in later for name in names])):
        shares = shares.stack({f"all_{axis}": group})
        labels = [_stop_names(group, place) for place in shares.indexes[f"all_{axis}"]]
        shares = shares.drop_vars((f"all_{axis}", *group)).rename({f"all_{axis}": axis})
        shares = shares.assign_coords({axis: labels})
        others = [dim for dim in shares.dims if dim != axis]
        shares = shares.isel({axis: shares.notnull().any(others).values.nonzero()[0]})
    return shares


def _stop_names(names: list[str], place: tuple) -> str:
    """Names of stops such as ``L0H1``, or ``L0H1 L2`` for two stops."""
    text = ""
    for name, value in zip(names, place):
        kind = name.split("_")[0]
        text += f" L{value}" if kind == "layer" else f"H{value}" if kind == "head" else f" {value}…"
    return text.strip()


def _panel_height(values: xr.DataArray) -> int:
    """Height in pixels; one row for each head."""
    return max(148, 15 * values.sizes["layer"])


def _label_axes(figure: go.Figure, values: xr.DataArray, place: dict[str, int]) -> None:
    """Sets axis labels explicitly, because a frame with missing values only would leave the axes
    without any.
    """
    labels = [str(x) for x in values[values.dims[-1]].values]
    heads = values.layer.dtype.kind not in "iu"
    figure.update_yaxes(
        title_text="head" if heads else "layer",
        type="category",
        categoryarray=[str(x) for x in values.layer.values],
        range=_span(values.sizes["layer"]),
        **place,
    )
    figure.update_xaxes(
        title_text=_ACROSS.get(str(values.dims[-1])),
        type="category",
        categoryarray=labels,
        range=_span(len(labels)),
        **place,
    )


def _heatmap(values: xr.DataArray, index: int) -> go.Heatmap:
    at = values.isel(step=index) if "step" in values.dims else values
    across = at.dims[-1]
    return go.Heatmap(
        z=at.values,
        x=[str(x) for x in at[across].values],
        y=[str(x) for x in at.layer.values],
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
    add_controls(figure, steps)
