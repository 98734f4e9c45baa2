"""Which components implement which mechanism of factual recall, and the evidence."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from plotly.colors import qualitative
from plotly.subplots import make_subplots

from interp.report.figures.labels import FONT
from interp.statistics import margin


def lost_over_training(table: pd.DataFrame, mechanism: str) -> go.Figure:
    """Share lost without each component for a mechanism, over training; a dot where the component
    is named. Rows: components that are named at some step, or have a share of 0.1 at the last.
    """
    mine = table[(table.mechanism == mechanism) & (table.attribute == "all")]
    mine = mine[mine.kind.isin(["head", "mlp"])]
    mine = mine.assign(label=mine.component + " at " + mine.place)
    mine["share"] = mine.share.where(mine.told_apart)
    last = mine[mine.step == mine.step.max()]
    kept = set(mine[mine.named].label) | set(last[last.share >= 0.1].label)
    shown = [x for x in dict.fromkeys(mine.label) if x in kept][::-1]
    steps = sorted(mine.step.unique())
    wide = {
        name: mine.pivot(index="label", columns="step", values=name).reindex(shown)
        for name in ("share", "low", "high", "control", "p", "named", "gain")
        if name in mine
    }
    readable = "" if mechanism != "memory" else "<br>readable gain %{customdata[4]:.2f}"
    details = [wide[x] for x in ("low", "high", "control", "p", "gain") if x in wide]
    figure = go.Figure(
        go.Heatmap(
            z=wide["share"].to_numpy(),
            x=[str(s) for s in steps],
            y=shown,
            text=np.where(wide["named"].fillna(False).to_numpy().astype(bool), "●", ""),
            texttemplate="%{text}",
            customdata=np.stack([x.to_numpy(float) for x in details], -1),
            colorscale="RdBu",
            zmid=0,
            zmin=-1,
            zmax=1,
            xgap=1,
            ygap=1,
            colorbar={"title": "share<br>lost"},
            hovertemplate=(
                "%{y}, step %{x}<br>share lost %{z:.2f} [%{customdata[0]:.2f}, "
                "%{customdata[1]:.2f}], control %{customdata[2]:.2f}<br>p %{customdata[3]:.1e}"
                f"{readable}<extra></extra>"
            ),
        )
    )
    return _laid_out(
        figure,
        f"{mechanism.capitalize()}: what is lost without each component",
        "share of clean − corrupted logit difference; ● named by the rule; grey: the two can't be "
        "told apart yet",
        height=170 + 34 * max(1, len(shown)),
        x="optimizer step",
    )


def lost_by_attribute(table: pd.DataFrame, mechanism: str) -> go.Figure:
    """Share lost without each component at the last step, by attribute."""
    last = table[(table.step == table.step.max()) & (table.mechanism == mechanism)]
    last = last[last.kind.isin(["head", "mlp"])]
    last = last.assign(label=last.component + " at " + last.place)
    shown = [x for x in dict.fromkeys(last.label) if last[last.label == x].named.any()][::-1]
    attributes = list(dict.fromkeys(last.attribute))
    share, named = (
        last.pivot(index="label", columns="attribute", values=x).reindex(shown)[attributes]
        for x in ("share", "named")
    )
    text = share.map(lambda x: f"{x:.2f}").to_numpy(object)
    text = text + np.where(named.fillna(False).to_numpy().astype(bool), " ●", "")
    figure = go.Figure(
        go.Heatmap(
            z=share.to_numpy(),
            x=[x.replace("_", " ") for x in attributes],
            y=shown,
            text=text,
            texttemplate="%{text}",
            colorscale="RdBu",
            zmid=0,
            zmin=-1,
            zmax=1,
            xgap=1,
            ygap=1,
            showscale=False,
        )
    )
    return _laid_out(
        figure,
        f"{mechanism.capitalize()} by attribute, step {last.step.max()}",
        "share lost; ● named by the rule for this attribute alone",
        height=170 + 34 * max(1, len(shown)),
    )


def shares(
    panels: dict[str, xr.DataArray], title: str, subtitle: str, *, of_effect: bool
) -> go.Figure:
    """Heat maps side by side on one scale: shares of an effect, which may be negative or above 1,
    centred on 0; accuracies from 0 to 1.

    Args:
        panels: (layer, site, role) each.
    """
    figure = make_subplots(1, len(panels), subplot_titles=list(panels), shared_yaxes=True)
    for i, values in enumerate(panels.values()):
        rows = [f"L{a} {b}" for a in values.layer.values for b in values.site.values]
        stacked = values.stack(row=("layer", "site"), create_index=False).transpose("row", "role")
        figure.add_trace(
            go.Heatmap(
                z=stacked.values,
                x=values.role.values.tolist(),
                y=rows,
                text=[
                    [f"{x:.2f}" if np.isfinite(x) else "" for x in row] for row in stacked.values
                ],
                texttemplate="%{text}",
                coloraxis="coloraxis",
                xgap=1,
                ygap=1,
            ),
            1,
            i + 1,
        )
    scale = {"colorscale": "RdBu", "cmin": -1} if of_effect else {"colorscale": "Blues", "cmin": 0}
    figure.update_layout(coloraxis={**scale, "cmax": 1, "colorbar": {"title": "share"}})
    return _laid_out(figure, title, subtitle, height=230 + 24 * len(rows))


def parts(direct: xr.Dataset) -> go.Figure:
    """What each component writes towards the right value, with 95 % intervals over facts."""
    bars: list[tuple[str, np.ndarray]] = [("embedding", direct.embed.values)]
    for layer in range(direct.sizes["layer"]):
        heads = direct["head"].isel(layer=layer)
        bars += [(f"L{layer}H{h}", x) for h, x in enumerate(heads.transpose("head", "fact").values)]
        bars.append((f"L{layer} MLP", direct.mlp.isel(layer=layer).values))
    n = direct.sizes["fact"]
    figure = go.Figure(
        go.Bar(
            x=[name for name, _ in bars],
            y=[x.mean() for _, x in bars],
            error_y={"array": [float(margin(x)) for _, x in bars]},
            marker_color=["#d62728" if "MLP" in name else "#1f77b4" for name, _ in bars],
        )
    )
    figure.update_yaxes(title_text="nats")
    return _laid_out(
        figure,
        "What each component writes directly towards the right value",
        f"at final, last LayerNorm's scale held; n = {n} facts; the bars add up to the logit "
        "difference",
        height=420,
    )


def lines(curves: dict[str, xr.DataArray], title: str, subtitle: str, unit: str) -> go.Figure:
    """Lines of means over facts, by step."""
    figure = go.Figure()
    for name, curve in curves.items():
        mean = curve.mean("fact") if "fact" in curve.dims else curve
        figure.add_trace(
            go.Scatter(x=mean.step.values, y=mean.values, name=name, mode="lines+markers")
        )
    figure.update_yaxes(title_text=unit)
    return _laid_out(figure, title, subtitle, height=400, x="optimizer step")


def line_panels(
    panels: dict[str, dict[str, xr.DataArray]], title: str, subtitle: str, unit: str
) -> go.Figure:
    """A panel for each group of curves by step; curves of the same name have the same colour."""
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    n_columns = 3
    n_rows = -(-len(panels) // n_columns)
    figure = make_subplots(
        n_rows, n_columns, subplot_titles=list(panels), shared_xaxes=True, shared_yaxes=True
    )
    for i, curves in enumerate(panels.values()):
        for name, curve in curves.items():
            at = names.index(name)
            line = go.Scatter(
                x=curve.step.values,
                y=curve.values,
                name=name,
                legendgroup=name,
                showlegend=not i,
                mode="lines+markers",
                marker={"size": 4},
                line={"color": qualitative.D3[at % len(qualitative.D3)]},
            )
            figure.add_trace(line, row=i // n_columns + 1, col=i % n_columns + 1)
    for row in range(n_rows):
        figure.update_yaxes(title_text=unit, row=row + 1, col=1)
    height = 140 + 240 * n_rows
    return _laid_out(figure, title, subtitle, height=height, x="optimizer step")


def _laid_out(
    figure: go.Figure, title: str, subtitle: str, *, height: int, x: str | None = None
) -> go.Figure:
    if x:
        figure.update_xaxes(title_text=x)
    return figure.update_layout(
        title={"text": f"{title}<br><sup>{subtitle}</sup>", "x": 0.02},
        height=height,
        template="simple_white",
        plot_bgcolor="#ddd" if isinstance(figure.data[0], go.Heatmap) else None,
        font=FONT,
        margin={"t": 90},
    )
