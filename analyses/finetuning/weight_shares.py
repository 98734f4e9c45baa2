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
from interp.statistics import margin, share_interval
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


def transplants_of_run(
    run: Path, steps: tuple[int, ...], named: dict[str, str], *, device: str = "cpu"
) -> pd.DataFrame:
    """Of a fine-tuned run: accuracy and loss of old and new people with each group of weights
    transplanted between its first checkpoint and those at ``steps``.

    Args:
        named: groups besides ``transplanted_groups``, by label.

    Returns:
        One row per (step, model, group, set): means over people of ``accuracy`` and ``loss``;
        ``share``: of what fine-tuning lost of old people (or gained of new ones), how much the
        transplant brings back (restored: of old; of new how much it takes) or does alone
        (damaged), with ``share_low`` and ``share_high`` (95 %, bootstrap over the people of this
        run); ``weights``: the group in full; ``relative``: how far it moved, ÷ the norm of its
        weights; ``n_weights``: their number.
    """
    suite = load_suite(run)
    config = replace(suite.config, n_evaluated=min(suite.config.n_evaluated, 256))
    sets = {
        name: evaluation_set(suite.texts, config, split)
        for name, split in {"old": "train", "new": "new"}.items()
    }
    before, tables = suite.load(0, device=device), []
    labels = {group: group for group in transplanted_groups(suite.config.n_layers)} | named
    groups = list(dict.fromkeys(labels.values()))
    for step in steps:
        after = suite.load(step, device=device)
        people = transplants(before, after, groups, sets)
        shares = pd.DataFrame(_shares(people)).rename(columns={"group": "weights"})
        moved = distances(before, after, groups).rename(columns={"group": "weights"})
        found = pd.DataFrame({"group": ["", *labels], "weights": ["", *labels.values()]})
        found = found.merge(shares, on="weights").merge(moved, on="weights", how="left")
        tables.append(found.drop(columns="distance").assign(step=step))
    return pd.concat(tables, ignore_index=True)


def _shares(people: pd.DataFrame) -> list[dict]:
    """One row per (model, group, set): how far a transplant goes from the model that it is made in
    to the other one, with an interval over people.
    """
    rows = []
    for of, table in people.groupby("set", sort=False):
        models = {key: model for key, model in table.groupby(["model", "group"], sort=False)}
        whole = {name: models[name, ""].accuracy.to_numpy() for name in ("before", "after")}
        for (model, group), mine in models.items():
            row = {"model": model, "group": group, "set": of}
            row |= mine[["accuracy", "loss"]].mean().to_dict()
            rows.append(row | _share_of(mine.accuracy.to_numpy(), model, group, whole))
    return rows


def _share_of(accuracy: np.ndarray, model: str, group: str, whole: dict) -> dict[str, float]:
    start, end = ("after", "before") if model == "restored" else ("before", "after")
    part, difference = accuracy - whole[start], whole[end] - whole[start]
    if not group or not difference.mean():
        return dict.fromkeys(("share", "share_low", "share_high"), np.nan)
    low, high = share_interval(part, difference)
    share = part.mean() / difference.mean()
    return {"share": share, "share_low": float(low), "share_high": float(high)}


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
    margins = wide["margin"].map(lambda x: "" if np.isnan(x) else f" ± {x:.2f}")
    text = wide["mean"].map("{:.2f}".format) + margins
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
