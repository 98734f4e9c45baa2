"""Which groups of weights carry what fine-tuning destroys and what it adds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses.beside_paper import with_title
from analyses.studies import mean_in_words
from interp.data.batches import evaluation_set
from interp.localization.transplants import distances, transplants
from interp.statistics import margin
from interp.suite import load_suite

KINDS = ("attention", "mlp", "qk", "ov", "embed+unembed", "norms")


def transplanted_groups(n_layers: int) -> list[str]:
    """Groups of which weights are transplanted: kinds, layers, and attention and MLP of each."""
    layers = [f"L{i}" for i in range(n_layers)]
    parts = [f"L{i}-{part}" for i in range(n_layers) for part in ("attention", "MLP")]
    return [*KINDS, *layers, *(layer_halves(n_layers) if n_layers > 2 else []), *parts]


def restricted_groups(n_layers: int) -> list[str]:
    """Groups that fine-tuning is restricted to, or kept from."""
    return ["attention", "mlp", *(layer_halves(n_layers) if n_layers > 1 else [])]


def layer_halves(n_layers: int) -> list[str]:
    """The earlier and the later half of the layers."""
    layers = [f"L{i}" for i in range(n_layers)]
    return ["+".join(layers[: n_layers // 2]), "+".join(layers[n_layers // 2 :])]


def transplants_of_run(run: Path, steps: tuple[int, ...]) -> pd.DataFrame:
    """Of a fine-tuned run: accuracy and loss of old and new people with each group of weights
    transplanted between its first checkpoint and those at ``steps``.

    Returns:
        One row per (step, model, group, set): means over people of ``accuracy`` and ``loss``;
        ``share``: of what fine-tuning lost of old people (or gained of new ones), how much the
        transplant brings back (restored: of old; of new how much it takes) or does alone
        (damaged); ``relative``: how far the group moved, ÷ the norm of its weights.
    """
    suite = load_suite(run)
    config = replace(suite.config, n_evaluated=min(suite.config.n_evaluated, 256))
    sets = {
        name: evaluation_set(suite.texts, config, split)
        for name, split in {"old": "train", "new": "new"}.items()
    }
    groups, before, rows = transplanted_groups(suite.config.n_layers), suite.load(0), []
    for step in steps:
        after = suite.load(step)
        people = transplants(before, after, groups, sets)
        found = people.groupby(["model", "group", "set"], sort=False)[["accuracy", "loss"]].mean()
        found = found.reset_index().assign(step=step)
        moved = distances(before, after, groups).set_index("group").relative
        whole = found[found.group == ""].set_index(["model", "set"]).accuracy
        found["share"] = [_share(row, whole) for row in found.itertuples()]
        rows.append(found.assign(relative=found.group.map(moved)))
    return pd.concat(rows, ignore_index=True)


def _share(row, whole: pd.Series) -> float:
    """How far a transplant goes from the model that it is made in to the other one."""
    if not row.group:
        return np.nan
    start, end = ("after", "before") if row.model == "restored" else ("before", "after")
    difference = whole[end, row.set] - whole[start, row.set]
    return (row.accuracy - whole[start, row.set]) / difference if difference else np.nan


def across_runs(table: pd.DataFrame, by: list[str], value: str) -> pd.DataFrame:
    """Mean over seeds of ``value``, half of its 95 % interval, and n."""
    return (
        table.groupby(by, sort=False)[value]
        .agg(mean="mean", margin=lambda x: float(margin(x.to_numpy())), n="count")
        .reset_index()
    )


def group_figure(table: pd.DataFrame, *, model: str, of: str, title: str, note: str) -> go.Figure:
    """Share of the change that each group of weights carries, by step of fine-tuning: a heatmap of
    means over seeds.
    """
    mine = table[(table.model == model) & (table.set == of) & (table.group != "")]
    found = across_runs(mine, ["group", "step"], "share")
    wide = {
        name: found.pivot(index="group", columns="step", values=name).reindex(
            list(dict.fromkeys(found.group))[::-1]
        )
        for name in ("mean", "margin")
    }
    text = wide["mean"].map("{:.2f}".format) + " ± " + wide["margin"].map("{:.2f}".format)
    figure = go.Figure(
        go.Heatmap(
            z=wide["mean"].to_numpy(),
            x=[str(step) for step in wide["mean"].columns],
            y=wide["mean"].index.tolist(),
            text=text.to_numpy(),
            texttemplate="%{text}",
            colorscale="RdBu",
            zmid=0,
            zmin=-1,
            zmax=1,
            xgap=1,
            ygap=1,
            colorbar={"title": "share"},
            hovertemplate="%{y}, step %{x}: %{text}<extra></extra>",
        )
    )
    return with_title(
        figure,
        title,
        note,
        xaxis={"title": "step of fine-tuning", "type": "category"},
        height=180 + 30 * len(wide["mean"]),
        width=900,
    )


def largest_shares(table: pd.DataFrame) -> list[str]:
    """Groups by their mean share over seeds, in words, the largest first."""
    shares = {group: of.share.to_numpy() for group, of in table.groupby("group", sort=False)}
    order = sorted(shares, key=lambda group: -np.nanmean(shares[group]))
    return [f"{group} ({mean_in_words(shares[group], 2)})" for group in order]
