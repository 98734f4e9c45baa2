"""A patching sweep as files for other programs: an image or a table for each site."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from interp.dynamics.plateau import phases
from interp.report.figures import (
    effect_over_training,
    enough_and_needed,
    patch_heatmaps,
    training_curves,
)
from interp.results.tidy_table import tidy_table

Results = dict[str, xr.Dataset]


def figures_of(
    results: Results, other: Results | None, run: dict | None, metrics: pd.DataFrame | None
) -> dict[str, go.Figure]:
    """Figures by name: each site's heat maps, in both directions where ``other`` holds the other
    one, and what the report shows over all sites.
    """
    found, figures = None, {}
    if run and metrics is not None:
        baseline = float(np.mean(list(run["no_knowledge_baseline"].values())))
        average = metrics[(metrics.split == "train") & (metrics.attribute == "average")]
        found = phases(average.step.to_numpy(), average.loss.to_numpy(), baseline)
        figures["training"] = training_curves(metrics, baseline, found)
    for site, result in results.items():
        figures[site] = patch_heatmaps({site: result}, other=other)
    if other is not None:
        figures["enough-and-needed"] = enough_and_needed(results, other)
    if any(result.sizes["step"] > 1 for result in results.values()):
        figures["over-training"] = effect_over_training(results, phases=found)
    return figures


def tables_of(
    results: Results, other: Results | None, metrics: pd.DataFrame | None
) -> dict[str, pd.DataFrame]:
    """Tables by name: each site's shares, of both directions where ``other`` holds the other one,
    and ``training``, the run's metrics with one value a row.
    """
    tables = {}
    for site, result in results.items():
        ways = [result] if other is None else [result, other[site]]
        tables[site] = pd.concat([tidy_table(way) for way in ways], ignore_index=True)
    if metrics is not None:
        keys = ["step", "split", "attribute"]
        tables["training"] = metrics.melt(keys, list(_UNITS), "metric", "mean")
        tables["training"]["units"] = tables["training"].metric.map(_UNITS)
    return tables


_UNITS = {
    "loss": "nats per value",
    "accuracy": "share of values",
    "max_probability": "probability",
    "entropy": "nats per token",
}
