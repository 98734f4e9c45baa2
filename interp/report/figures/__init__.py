"""Results in, plotly figures out: no model, no torch. Labels, units and n come from the data."""

from interp.report.figures.curves import effect_over_training, training_curves
from interp.report.figures.denoising_vs_noising import enough_and_needed
from interp.report.figures.heatmaps import patch_heatmap, patch_heatmaps
from interp.report.figures.labels import (
    by_site,
    cell_label,
    site_explanation,
    site_heading,
    site_label,
)

__all__ = [
    "by_site",
    "cell_label",
    "effect_over_training",
    "enough_and_needed",
    "patch_heatmap",
    "patch_heatmaps",
    "site_explanation",
    "site_heading",
    "site_label",
    "training_curves",
]
