"""How alike the maps of effects of two sets of paired facts are, and whether one cell differs."""

import numpy as np
import xarray as xr
from jaxtyping import Float
from scipy.stats import pearsonr, spearmanr

from interp.statistics import percentiles, resampled_means

TOP = 10
"""Cells with the largest |mean effect| that are compared."""


def map_similarity(
    one: Float[np.ndarray, "cell fact"],
    other: Float[np.ndarray, "cell fact"],
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """Of two maps whose facts are paired: ``pearson`` and ``spearman`` correlation over cells of
    the mean effects, and ``overlap``, the share of the ``TOP`` cells that they have in common
    (``chance``: of random ones). ``pearson_low``, ``overlap_low`` and so on are 95 % percentile
    intervals over facts, of which both maps are resampled alike. ``size_ratio``: the root of the
    mean square of ``other``'s mean effects ÷ that of ``one``'s, which no correlation tells.
    ``n_cells``, ``n_facts``.

    Correlations of maps with noise are pulled towards 0: compare that of two maps of one kind.
    """
    if one.shape != other.shape or len(one) <= TOP:
        raise ValueError(
            f"got maps of {one.shape} and {other.shape}; give both more than {TOP} cells"
        )
    draws = [resampled_means(x, n_resamples=n_resamples, seed=seed).T for x in (one, other)]
    means = [x.mean(1) for x in (one, other)]
    found = {"pearson": float(pearsonr(*means).statistic)}
    found["spearman"] = float(spearmanr(*means).statistic)
    found["overlap"] = _overlap(*means)
    sizes = [np.square(x).mean() ** 0.5 for x in means]
    found["size_ratio"] = float(sizes[1] / sizes[0])
    resampled = {
        "pearson": pearsonr(*draws, axis=1).statistic,
        "overlap": np.array([_overlap(*pair) for pair in zip(*draws)]),
    }
    for name, values in resampled.items():
        found |= _ends(name, values)
    return found | {"chance": TOP / len(one), "n_cells": len(one), "n_facts": one.shape[1]}


def share_difference(falsehood: xr.Dataset, recall: xr.Dataset) -> dict[str, float]:
    """Shares that one cell moves from the base run to the other, of two sets of paired facts, and
    falsehood − recall: each with ``_low`` and ``_high``, 95 % bootstrap intervals over facts, of
    which both are resampled alike.
    """
    row, draws = {}, []
    for name, of in (("falsehood", falsehood), ("recall", recall)):
        gap = (of.clean - of.corrupted).to_numpy()
        toward = of.patched - of.corrupted, of.clean - of.patched
        part = toward[of.attrs["direction"] == "noising"].to_numpy()
        both = resampled_means(np.stack((part, gap)), n_resamples=1000, seed=0)
        draws.append(both[0] / both[1])
        row |= {name: float(part.mean() / gap.mean())} | _ends(name, draws[-1])
    row["difference"] = row["falsehood"] - row["recall"]
    return row | _ends("difference", draws[0] - draws[1])


def _overlap(one: Float[np.ndarray, " cell"], other: Float[np.ndarray, " cell"]) -> float:
    tops = [set(np.argsort(-np.abs(x), kind="stable")[:TOP].tolist()) for x in (one, other)]
    return len(tops[0] & tops[1]) / TOP


def _ends(name: str, draws: np.ndarray) -> dict[str, float]:
    low, high = percentiles(draws, 0.95)
    return {f"{name}_low": float(low), f"{name}_high": float(high)}
