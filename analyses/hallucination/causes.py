"""Which components make a confident falsehood, and is it the circuit of recall?

Activations are patched between a prompt about an unknown person, of whom the model says something
wrong with confidence, and the same prompt about a known one, both ways
(``interp.localization.pairs_of_people``). The shares moved are compared, cell by cell, with those
of pairs of two known people in the same sentences. Two maps that are alike show that the same
components at the same tokens carry both answers, not that they compute them in the same way.
Intervals are over facts of one run; several facts can be about the same person.

Controls: a second set of pairs of known people (how alike two maps of recall are at best), the same
falsehoods in the untrained model, and the recall map scored on another fact's pair of values.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from analyses.beside_paper import across_seeds, with_title
from analyses.hallucination.mlp_ablation import falls_without_mlps
from analyses.studies import mean_in_words
from interp.data.facts import FactSet
from interp.localization.map_similarity import map_similarity, share_difference
from interp.localization.pairs_of_people import PAIRS, falsehood_pairs, with_other_answers
from interp.localization.probes import PLACES
from interp.model.decoder import HookedDecoder
from interp.patching import patch_sites
from interp.results.localize import plateau
from interp.results.metrics import effect, moved
from interp.suite import Suite, load_suite

N_FACTS, FEWEST = 96, 12
"""Facts asked for, and without which a checkpoint is passed over."""
SITES = ("resid_pre", "attn_out", "mlp_out", "z")
DIRECTIONS = ("denoising", "noising")
COMPARED = {"attention and MLPs": ("attn_out", "mlp_out"), "heads": ("z",)}
NAME = "name_first+name_middle+name_last"
PATCHED = {NAME: "name", "cue": "cue", "final": "answer position"}
UNTRAINED, OTHERS = "falsehood in the untrained model", "recall of another fact's values"
COMPARISONS = (
    ("falsehood", "recall"),
    ("recall", "recall again"),
    ("falsehood", OTHERS),
    ("falsehood", UNTRAINED),
)
"""Maps that are held against each other; the last two are controls."""
N_SAID, LEAST_SAID = 2, 0.1
"""How many ablations are put into words, those with the largest fall on known people; the smallest
share moved that is."""
NOTHING = 1e-9
"""Nats; a cell whose effect is below it for every fact cannot reach the answer."""


def causes_of_run(run: Path, device: str) -> dict[str, pd.DataFrame]:
    """Tables by CSV name, all with ``step``; those of a run without enough confident falsehoods are
    empty but for ``hallucination_cause_ablation``.

    ``hallucination_cause_maps``: the share that each cell moves, of each of ``PAIRS``, in both
    directions. ``hallucination_cause_groups``: the same for all attention or all MLPs of a range of
    layers together; ``difference``: falsehood minus recall. ``hallucination_cause_similarity``: how
    alike two maps are. ``hallucination_cause_ablation``: the fall of the maximum probability with
    an MLP's output replaced by its mean.
    """
    suite = load_suite(run)
    tables: dict[str, list[pd.DataFrame]] = {"maps": [], "groups": [], "similarity": []}
    for step in _steps(suite):
        model = suite.load(step, device=device)
        pairs = falsehood_pairs(model, suite, n=N_FACTS)
        if not pairs or len(pairs["falsehood"]) < FEWEST:
            continue
        results = _results(model, pairs)
        at = {"step": step, "n": len(pairs["falsehood"])}
        tables["maps"].append(_maps(results).assign(**at))
        tables["groups"].append(_groups(model, pairs).assign(**at))
        if step == suite.steps[-1]:
            untrained = suite.load(suite.steps[0], device=device)
            results |= _results(untrained, {UNTRAINED: pairs["falsehood"]})
            results |= _results(model, {OTHERS: with_other_answers(pairs["recall"])})
            tables["similarity"].append(_similarities(results).assign(**at))
    last = suite.load(suite.steps[-1], device=device)
    named = {f"hallucination_cause_{name}": _joined(parts) for name, parts in tables.items()}
    ablated = falls_without_mlps(last, suite).assign(step=suite.steps[-1])
    return named | {"hallucination_cause_ablation": ablated}


def _joined(parts: list[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _steps(suite: Suite) -> list[int]:
    """The last step and two before it, evenly spaced after the end of the plateau."""
    end = plateau(suite).plateau_end
    after = [step for step in suite.steps if step >= end]
    return sorted({suite.steps[-1], *(after[len(after) * i // 3] for i in (1, 2) if after)})


Results = dict[tuple[str, str], dict[str, xr.Dataset]]
"""By (pairs, direction) and site."""


def _of_pairs(model: HookedDecoder, facts: FactSet, direction: str) -> dict[str, xr.Dataset]:
    return patch_sites(model, facts, sites=list(SITES), direction=direction, whole_value=False)


def _results(model: HookedDecoder, pairs: dict[str, FactSet]) -> Results:
    return {
        (of, direction): _of_pairs(model, facts, direction)
        for of, facts in pairs.items()
        for direction in DIRECTIONS
    }


def _maps(results: Results) -> pd.DataFrame:
    """One row per (pairs, direction, site, cell): share moved with its interval; mean effect."""
    tables = []
    for (of, direction), by_site in results.items():
        for site, result in by_site.items():
            shares = moved(result).assign(effect=effect(result).mean("fact"))
            table = shares.to_dataframe().reset_index().rename(columns={"estimate": "share"})
            tables.append(table.assign(pairs=of, direction=direction, site=site))
    table = pd.concat(tables, ignore_index=True).dropna(subset="share")
    columns = ["pairs", "direction", "site", "layer", "head", "role"]
    return table[[*columns, "share", "low", "high", "effect"]]


def _groups(model: HookedDecoder, pairs: dict[str, FactSet]) -> pd.DataFrame:
    """One row per (direction, site, layers, place): shares of falsehood and recall, all layers of
    the range patched together, and their difference, with intervals.
    """
    rows = []
    for layers, window in _ranges(model.cfg.n_layers).items():
        for direction in DIRECTIONS:
            how = {"direction": direction, "whole_value": False, "groups": tuple(PATCHED)} | window
            sites = list(COMPARED["attention and MLPs"])
            results = [patch_sites(model, pairs[x], sites=sites, **how) for x in PAIRS[:2]]
            for site in sites:
                for role, place in PATCHED.items():
                    at = {"direction": direction, "site": site, "layers": layers, "place": place}
                    cells = [x[site].sel(role=role).isel(layer=0) for x in results]
                    rows.append(at | share_difference(*cells))
    return pd.DataFrame(rows)


def _ranges(n_layers: int) -> dict[str, dict]:
    """Layers patched together, as options of ``patch``."""
    half = n_layers // 2
    ranges = {"all": {"window": 2 * n_layers, "layers": (0,)}}
    if half:
        ranges["early"] = {"window": half, "layers": (half // 2,)}
        ranges["late"] = {"window": n_layers - half, "layers": (half + (n_layers - half) // 2,)}
    return ranges


def _similarities(results: Results) -> pd.DataFrame:
    """One row per (direction, cells, comparison): ``map_similarity`` of effects in nats."""
    rows = []
    for direction in DIRECTIONS:
        for cells, sites in COMPARED.items():
            maps = {
                of: _effects(by_site, sites)
                for (of, way), by_site in results.items()
                if way == direction
            }
            whole = maps["falsehood"]
            there = (np.abs(whole) > NOTHING).any(1) & np.isfinite(whole).all(1)
            for one, other in COMPARISONS:
                at = {"direction": direction, "cells": cells, "comparison": f"{one} and {other}"}
                rows.append(at | map_similarity(maps[one][there], maps[other][there]))
    return pd.DataFrame(rows)


def _effects(by_site: dict[str, xr.Dataset], sites: tuple[str, ...]) -> np.ndarray:
    """Effects of all cells of ``sites`` (cell, fact), nats."""
    values = [effect(by_site[site]).transpose(..., "fact").to_numpy() for site in sites]
    return np.concatenate([x.reshape(-1, x.shape[-1]) for x in values]).astype(float)


def figures(tables: dict[str, pd.DataFrame]) -> dict[str, go.Figure]:
    """Figures, by heading; tables with a column ``seed``. None without confident falsehoods."""
    maps, groups = tables["hallucination_cause_maps"], tables["hallucination_cause_groups"]
    if maps.empty:
        return {}
    last = maps[(maps.step == maps.step.max()) & (maps.direction == "denoising")]
    note = (
        f"known person's prompt ← unknown person's activation; mean over {last.seed.nunique()} "
        f"seeds, {last.n.min()} to {last.n.max()} facts each, last step"
    )
    mean = last.groupby(["pairs", "site", "layer", "role"], sort=False).share.mean().reset_index()
    mean = mean[mean.site.isin(COMPARED["attention and MLPs"])]
    mean["component"] = "L" + mean.layer.astype(str) + mean.site.map(_WRITERS)
    return {
        "Causes: what carries a confident falsehood": _heatmaps(mean, note),
        "Causes: falsehood against recall": _scatter(mean, note),
        "Causes: all layers of a range together": _ranges_figure(groups),
    }


_WRITERS = {"attn_out": " attention", "mlp_out": " MLP"}


def _heatmaps(mean: pd.DataFrame, note: str) -> go.Figure:
    figure = make_subplots(1, 2, subplot_titles=["falsehood", "recall"], shared_yaxes=True)
    roles = [role for role in (*PLACES[:-1], "cue", "final") if role in set(mean.role)]
    for column, pairs in enumerate(PAIRS[:2], 1):
        wide = mean[mean.pairs == pairs].pivot(index="component", columns="role", values="share")
        figure.add_trace(
            go.Heatmap(
                z=wide[roles].to_numpy(), x=roles, y=wide.index.tolist(), coloraxis="coloraxis",
                texttemplate="%{z:.2f}", xgap=1, ygap=1,
            ), 1, column,
        )  # fmt: skip
    title = "Share of the difference in logit_diff that each component moves"
    scale = {"colorscale": "RdBu", "cmin": -1, "cmax": 1, "colorbar": {"title": "share"}}
    return with_title(figure, title, note, coloraxis=scale, width=1000, height=480)


def _scatter(mean: pd.DataFrame, note: str) -> go.Figure:
    wide = mean.pivot(index=["component", "role"], columns="pairs", values="share").reset_index()
    ends = [wide[list(PAIRS[:2])].min().min(), wide[list(PAIRS[:2])].max().max()]
    figure = go.Figure(go.Scatter(x=ends, y=ends, mode="lines", line_dash="dot", name="equal"))
    figure.add_trace(
        go.Scatter(
            x=wide.recall, y=wide.falsehood, mode="markers", name="component at a role",
            text=wide.component + " at " + wide.role, hovertemplate="%{text}<extra></extra>",
        )
    )  # fmt: skip
    axes = {"xaxis_title": "share moved, recall", "yaxis_title": "share moved, falsehood"}
    return with_title(figure, "Is it the circuit of recall?", note, **axes, width=700, height=560)


def _ranges_figure(groups: pd.DataFrame) -> go.Figure:
    last = groups[(groups.step == groups.step.max()) & (groups.direction == "denoising")]
    figure = go.Figure()
    for pairs in PAIRS[:2]:
        of = last.assign(series=_range_label(last))
        found = across_seeds(of, series="series", x="step", y=pairs)
        figure.add_trace(
            go.Scatter(
                x=found.y, y=found.series, name=pairs, mode="markers",
                error_x={"array": found.margin.fillna(0)},
            )
        )  # fmt: skip
    note = f"mean and 95 % interval over {last.seed.nunique()} seeds, last step, denoising"
    axes = {"xaxis_title": "share moved", "height": 640, "width": 900}
    return with_title(figure, "All layers of a range patched together", note, **axes)


def _range_label(groups: pd.DataFrame) -> pd.Series:
    what = groups.site.map({"attn_out": "attention", "mlp_out": "MLPs"})
    return what + ", " + groups.layers + " layers, at the " + groups.place


def said(tables: dict[str, pd.DataFrame]) -> str:
    """The findings of the last step in words, denoising, one line each; tables with a column
    ``seed``; ± are 95 % intervals over seeds.
    """
    groups, alike = tables["hallucination_cause_groups"], tables["hallucination_cause_similarity"]
    ablated = tables["hallucination_cause_ablation"]
    lines = []
    if groups.empty:
        lines.append(f"no run has {FEWEST} confident falsehoods to patch from")
    else:
        last = groups[(groups.step == groups.step.max()) & (groups.direction == "denoising")]
        last = last[(last.place != "cue") & (last.layers != "all")]
        shares = [
            f"{mean_in_words(of.falsehood.to_numpy(), 2)} of a confident falsehood and "
            f"{mean_in_words(of.recall.to_numpy(), 2)} of a recalled answer by {label}"
            for label, of in last.assign(label=_range_label(last)).groupby("label", sort=False)
            if max(of.falsehood.mean(), of.recall.mean()) >= LEAST_SAID
        ]
        lines.append(f"moved are {'; '.join(shares)}")
        alike = alike[(alike.direction == "denoising") & (alike.cells == "attention and MLPs")]
        correlations = [
            f"{mean_in_words(of.pearson.to_numpy(), 2)} ({pair})"
            for pair, of in alike.groupby("comparison", sort=False)
        ]
        lines.append(f"maps of attention and MLPs correlate with {', '.join(correlations)}")
    falls = ablated.groupby(["layer", "role"]).known.mean()
    for layer, role in falls.nlargest(N_SAID).index:
        of = ablated[(ablated.layer == layer) & (ablated.role == role)]
        lines.append(
            f"mean-ablated L{layer} MLP at {role}: the maximum probability falls by "
            f"{mean_in_words(of.known.to_numpy(), 3)} on known people, "
            f"{mean_in_words(of.unknown.to_numpy(), 3)} on unknown ones"
        )
    return "\n".join(lines)
