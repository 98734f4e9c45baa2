"""The frontier of old and new accuracy: what of old knowledge a way of fine-tuning can keep for so
much new knowledge.

The points of a method are its evaluations, at every step and strength. With K(x) the highest old
accuracy among points whose new accuracy is at least x, and 0 where there is none, the area under
the frontier is ∫₀¹ K(x) dx: 1 if everything new is learned before anything old is lost. More
strengths are more points, so a method can only gain by them.
"""

import numpy as np
import pandas as pd
from jaxtyping import Float

from analyses.studies import difference, paired, with_holm

KNOWN = 0.95
"""New accuracy from which new people count as known."""
ALL = "all"
"""All strengths of a method together."""
COMPARED = ("plain", "replay")
MEASURES = ("area", "old_where_known")
GRID = np.round(np.linspace(0, 1, 101), 2)


def best_old(
    new: Float[np.ndarray, " point"],
    old: Float[np.ndarray, " point"],
    at: Float[np.ndarray, " x"],
) -> Float[np.ndarray, " x"]:
    """K of each x in ``at``: the highest old accuracy with at least that new accuracy."""
    reached = new[:, None] >= at - 1e-9  # accuracies are sums of few numbers, rounded
    return np.where(reached, old[:, None], 0.0).max(axis=0)


def area(new: Float[np.ndarray, " point"], old: Float[np.ndarray, " point"]) -> float:
    """∫₀¹ K(x) dx: K is constant between the points' new accuracies, and exact."""
    order = np.argsort(-new)
    falling = new[order]
    widths = falling - np.append(falling[1:], 0.0)
    return float(widths @ np.maximum.accumulate(old[order]))


def accuracies(found: pd.DataFrame) -> pd.DataFrame:
    """One row per (method, strength, seed, step): accuracy on old and on new people."""
    by = ["method", "strength", "seed", "step"]
    old, new = (
        found[found.split == split][[*by, "accuracy"]].rename(columns={"accuracy": name})
        for split, name in (("train", "old"), ("new", "new"))
    )
    return old.merge(new, on=by, validate="one_to_one")


def measures(points: pd.DataFrame) -> pd.DataFrame:
    """One row per (method, strength, seed) and, with the strength ``ALL``, per (method, seed):
    ``area`` under the frontier; ``old_where_known``, the highest old accuracy at a new accuracy of
    ``KNOWN`` or more (NaN: never reached); and of single strengths ``known_step``, the first step
    of that, ``old_when_known``, old accuracy then, and ``final_old`` and ``final_new``.
    """
    rows = []
    for (method, seed), of_method in points.groupby(["method", "seed"], sort=False):
        at = {"method": method, "seed": seed}
        for strength, one in of_method.groupby("strength", sort=False):
            rows.append(at | {"strength": strength} | _of_points(one) | _of_run(one))
        rows.append(at | {"strength": ALL} | _of_points(of_method))
    return pd.DataFrame(rows)


def _of_points(points: pd.DataFrame) -> dict:
    known = points[points.new >= KNOWN]
    return {
        "area": area(points.new.to_numpy(), points.old.to_numpy()),
        "old_where_known": known.old.max(),
    }


def _of_run(points: pd.DataFrame) -> dict:
    in_order = points.sort_values("step")
    known, last = in_order[in_order.new >= KNOWN], in_order.iloc[-1]
    first = known.iloc[0] if len(known) else None
    return {
        "known_step": np.nan if first is None else float(first.step),
        "old_when_known": np.nan if first is None else first.old,
        "final_old": last.old,
        "final_new": last.new,
    }


def mean_frontiers(points: pd.DataFrame) -> pd.DataFrame:
    """K on a grid of new accuracies: one row per (method, seed, new), all strengths together."""
    tables = []
    for (method, seed), of in points.groupby(["method", "seed"], sort=False):
        old = best_old(of.new.to_numpy(), of.old.to_numpy(), GRID)
        tables.append(pd.DataFrame({"method": method, "seed": seed, "new": GRID, "old": old}))
    return pd.concat(tables, ignore_index=True)


def differences(measured: pd.DataFrame) -> pd.DataFrame:
    """Each method minus plain fine-tuning and minus replay, all strengths together, paired by seed:
    one row per (measure, method, other). p values of a measure are adjusted for their number.
    """
    whole = measured[measured.strength == ALL]
    by_method = dict(list(whole.groupby("method", sort=False)))
    tables = []
    for measure in MEASURES:
        rows = [
            {"measure": measure, "method": method, "other": other}
            | difference(paired(table, by_method[other], measure))
            for other in COMPARED
            if other in by_method
            for method, table in by_method.items()
            if method != other
        ]
        if rows:
            tables.append(with_holm(rows))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
