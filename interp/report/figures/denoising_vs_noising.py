"""Denoising against noising: which patches are sufficient, and which activations are necessary."""

import plotly.graph_objects as go
import xarray as xr

from interp.report.figures.controls import add_controls
from interp.report.figures.labels import FONT, by_site, cell_label, dataset_of, site_label, title_of
from interp.results.metrics import distinguishable, recovered


def enough_and_needed(
    results: dict[str, xr.Dataset] | xr.DataTree,
    other: dict[str, xr.Dataset],
    *,
    metric: str = "logit_diff",
) -> go.Figure:
    """Each patch's share recovered by denoising against its share lost by noising.

    On the diagonal both say the same. Right of it a patch is enough and not needed, as one input of
    an OR gate is; left of it, needed and not enough, as one input of an AND gate.
    """
    results = by_site(results)
    first = dataset_of(next(iter(results.values())))
    denoised, noised = results, other
    if first.attrs["direction"] == "noising":
        denoised, noised = other, results
    steps = first.step.values.tolist() if "step" in first.dims else [None]
    traces = {
        step: [_cloud(site, denoised[site], noised[site], step, metric) for site in results]
        for step in steps
    }
    figure = go.Figure(traces[steps[-1]])
    figure.add_trace(
        go.Scatter(
            x=[-2, 2], y=[-2, 2], mode="lines", line={"color": "#999", "dash": "dot"},
            hoverinfo="skip", showlegend=False,
        )
    )  # fmt: skip
    span = {"range": [-0.35, 1.25], "zeroline": True, "zerolinecolor": "#ccc"}
    figure.update_layout(
        title={**title_of("Sufficient, or necessary?", first, metric, other)},
        xaxis={"title": "share recovered (denoising): enough", **span},
        yaxis={"title": "share lost (noising): needed", "scaleanchor": "x", **span},
        height=620,
        template="simple_white",
        font=FONT,
        margin={"t": 90},
    )
    if len(steps) > 1:
        figure.frames = [
            go.Frame(name=str(step), data=of_step, traces=list(range(len(of_step))))
            for step, of_step in traces.items()
        ]
        add_controls(figure, first.step.values.tolist())
    return figure


def _cloud(
    site: str, denoised: xr.Dataset, noised: xr.Dataset, step: int | None, metric: str
) -> go.Scatter:
    """One point per patch."""
    shares = []
    for result in (dataset_of(denoised), dataset_of(noised)):
        values = recovered(result, metric).where(distinguishable(result, metric))
        values = values if step is None else values.sel(step=step)
        shares.append(values.stack(cell=values.dims))
    enough, lost = shares[0], 1 - shares[1]
    index = enough.indexes["cell"]
    names = [cell_label(site, dict(zip(index.names, place))) for place in index]
    return go.Scatter(
        x=enough.values,
        y=lost.values,
        mode="markers",
        name=site_label(site),
        text=names,
        marker={"size": 7, "opacity": 0.75},
        hovertemplate="%{text}<br>recovered %{x:.2f}, lost %{y:.2f}<extra></extra>",
    )
