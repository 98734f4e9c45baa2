"""Which heads and MLPs implement the mechanisms of factual recall, and when did each form?

The picture to be tested (arXiv 2503.21676, section 4.1): early attention gathers the name at its
last token, middle MLPs turn it into what is known of the person, late attention extracts the value
at the answer position. Every checkpoint of a run is asked the questions of
``interp.localization.localize``; at each, ``interp.localization.mechanisms`` says which components
implement which mechanism; curves of each mechanism over training say when it formed.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from analyses.studies import average_metrics
from interp.dynamics.emergence import MIN_CHECKPOINTS, emergence, lag_to, order
from interp.dynamics.plateau import Phases, phases
from interp.localization.mechanisms import MECHANISMS, by_attribute, mechanisms
from interp.statistics import gap_is_precise

KINDS = {"needed": MECHANISMS, "in place": tuple(x for x in MECHANISMS if x != "memory")}
"""Curves whose midpoints are put in order: causes of all mechanisms; and attention, of heads."""


@dataclass(frozen=True)
class Localization:
    """Answers for all checkpoints of a run, and the mechanisms and times that follow from them."""

    answers: dict[str, xr.Dataset]
    """By question, with a leading ``step``."""
    mechanisms: pd.DataFrame
    """One row per (step, attribute, cell), as ``interp.localization.mechanisms`` gives them."""
    curves: xr.DataArray
    """``mechanism_curves``."""
    formed: xr.Dataset | None
    """``interp.dynamics.emergence.emergence`` of the curves; None with too few checkpoints."""
    orders: dict
    """``interp.dynamics.emergence.order`` of the mechanisms, for each of ``KINDS``."""
    lags: xr.Dataset | None
    """``emergence.lag_to`` of the curves, to the end of the plateau; None without one."""
    by_attribute: pd.DataFrame
    """``interp.localization.mechanisms.by_attribute`` at the last step."""
    depth: dict[str, xr.Dataset]
    """Answers of the last step, by question: ``analyses.localization.in_depth``."""


def plateau(suite) -> Phases:
    """Phases of the loss on people trained on; NaN where the run has no metrics."""
    if not (suite.path / "metrics.parquet").is_file():
        return Phases(np.nan, np.nan)
    metrics = average_metrics(suite.path)
    steps, loss = (metrics[metrics.split == "train"][x].to_numpy() for x in ("step", "loss"))
    return phases(steps, loss, suite.no_knowledge_baseline)


def find(answers: dict[str, xr.Dataset], plateau_end: float) -> Localization:
    """Mechanisms, curves and times from the answers; ``plateau_end`` is NaN where there is none."""
    needed, readings = answers["needs"], answers["readings"]
    steps = needed.step.values
    table = pd.concat(
        [
            mechanisms(needed.sel(step=s), readings.gain.sel(step=s)).assign(step=int(s))
            for s in steps
        ],
        ignore_index=True,
    )
    curves = mechanism_curves(answers, table)
    last = by_attribute(needed.isel(step=-1))
    if len(steps) < MIN_CHECKPOINTS:
        return Localization(answers, table, curves, None, {}, None, last, {})
    formed, orders = emergence(curves), {}
    lags = lag_to(curves, plateau_end) if np.isfinite(plateau_end) else None
    for kind, of_kind in KINDS.items():
        labels = [f"{mechanism}: {kind}" for mechanism in of_kind]
        labels = [x for x in labels if x in curves.curve and bool(formed.emerged.sel(curve=x))]
        if len(labels) > 1:
            orders[kind] = order(curves.sel(curve=labels), between="curve")
    return Localization(answers, table, curves, formed, orders, lags, last, {})


def leaders(table: pd.DataFrame) -> pd.DataFrame:
    """One row per mechanism that is implemented at the last step: the component with its largest
    share.
    """
    last = table[(table.step == table.step.max()) & (table.attribute == "all") & table.named]
    rows = [last[last.mechanism == x].nlargest(1, "share") for x in MECHANISMS]
    return pd.concat(rows).set_index("mechanism")


def leading_head(table: pd.DataFrame, mechanism: str) -> pd.Series | None:
    """The row of ``leaders`` of a mechanism of heads; None if no head implements it."""
    found = leaders(table)
    return None if mechanism == "memory" or mechanism not in found.index else found.loc[mechanism]


def mechanism_curves(answers: dict[str, xr.Dataset], table: pd.DataFrame) -> xr.DataArray:
    """(curve, step, fact): ``gap``, nats of clean − corrupted ``logit_diff``; and of each mechanism
    that is implemented at the last step ``needed`` and ``in place``.

    ``needed``: share of the mean gap that is lost without the mechanism (all heads cut, or all MLPs
    swapped, at the leader's place); NaN before ``gap_is_precise`` for good. ``in place``: of heads
    the leader's attention along the mechanism's edge; of MLPs how much more often the value can be
    read off after them than before, summed over layers, which follows the model's accuracy.
    """
    found, needed = leaders(table), answers["needs"]
    gap = needed.clean - needed.corrupted
    sure = gap_is_precise(gap.transpose("step", "fact").values)
    sure = np.flip(np.logical_and.accumulate(np.flip(sure)))
    whole = needed.isel(cell=np.flatnonzero(needed.kind == "all"))
    curves = {"gap": gap}
    for mechanism, place in found.place.items():
        at = np.flatnonzero((whole.role.values == mechanism) & (whole.place.values == place))
        lost = whole.effect.isel(cell=int(at[0])) / gap.mean("fact")
        curves[f"{mechanism}: needed"] = lost.where(xr.DataArray(sure, dims="step"))
        if mechanism == "memory":
            curve = answers["readings"].gain.sel(role=place).sum("layer")
        else:
            layer, head = place_of(found.component[mechanism])
            curve = answers["attention"].pattern.sel(edge=place).isel(layer=layer, head=head)
        curves[f"{mechanism}: in place"] = curve
    kept = [
        curve.drop_vars(set(curve.coords) - {"step"}).transpose("step", "fact")
        for curve in curves.values()
    ]
    return xr.concat(kept, dim="curve").assign_coords(curve=list(curves))


def place_of(head: str) -> tuple[int, int]:
    """Layer and number of a head such as L1H3."""
    layer, number = head[1:].split("H")
    return int(layer), int(number)
