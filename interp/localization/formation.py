"""Which heads and MLPs implement the mechanisms of factual recall, and when did each form?

The picture to be tested (arXiv 2503.21676, section 4.1): early attention gathers the name at its
last token, middle MLPs turn it into what is known of the person, late attention extracts the value
at the answer position. ``checkpoint_answers`` are what every checkpoint of a run is asked; from
them ``mechanisms`` says which components implement which mechanism at a checkpoint, and curves of
each mechanism over training say when it formed. All intervals are over the facts of one run: they
say nothing about other seeds.
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import xarray as xr

from interp.dynamics.emergence import MARKS, MIN_CHECKPOINTS, emergence, lag_to, order
from interp.dynamics.plateau import format_step
from interp.jupyter import html_table
from interp.localization.mechanisms import MECHANISMS, by_attribute, mechanisms
from interp.statistics import gap_is_precise

KINDS = {"needed": MECHANISMS, "in place": tuple(x for x in MECHANISMS if x != "memory")}
"""Curves whose midpoints are put in order: causes of all mechanisms; and attention, of heads."""
_CELL = ["component", "mechanism", "place"]
_COLUMNS = [
    *("mechanism", "component", "place", "share", "low", "high", "control", "p", "stability"),
]


@dataclass(frozen=True)
class Localization:
    """Answers for all checkpoints of a run, and the mechanisms and times that follow from them."""

    answers: dict[str, xr.Dataset]
    """By question, with a leading ``step``."""
    mechanisms: pd.DataFrame
    """One row per (step, cell), as ``interp.localization.mechanisms`` gives them; at the last step
    of facts of each attribute, too."""
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
    depth: dict[str, xr.Dataset] = field(default_factory=dict)
    """Answers to further questions that an analysis asks of the last step only."""

    @property
    def steps(self) -> list[int]:
        """Steps of the checkpoints, sorted."""
        return self.curves.step.values.tolist()

    def to_dataframe(self) -> pd.DataFrame:
        """One row per component that implements a mechanism at the last step, on facts of all
        attributes, by mechanism and with the largest share first; see ``named_components``.
        """
        return named_components(self.mechanisms)

    def __repr__(self) -> str:
        return f"Localization({_span(self)}; {_in_words(self.to_dataframe())})"

    def _repr_html_(self) -> str:
        return _components_html(self) + _times_html(self)


def find(answers: dict[str, xr.Dataset], plateau_end: float) -> Localization:
    """Mechanisms, curves and times from the answers; ``plateau_end`` is NaN where there is none."""
    needed, readings = answers["needs"], answers["readings"]
    steps = needed.step.values
    tables = []
    for step in steps:
        here = needed.sel(step=step), readings.gain.sel(step=step)
        of_step = mechanisms(*here, each_attribute=bool(step == steps[-1]))
        tables.append(of_step.assign(step=int(step)))
    table = pd.concat(tables, ignore_index=True)
    curves = mechanism_curves(answers, table)
    last = by_attribute(needed.isel(step=-1))
    if len(steps) < MIN_CHECKPOINTS:
        return Localization(answers, table, curves, None, {}, None, last)
    formed, orders = emergence(curves), {}
    lags = lag_to(curves, plateau_end) if np.isfinite(plateau_end) else None
    for kind, of_kind in KINDS.items():
        labels = [f"{mechanism}: {kind}" for mechanism in of_kind]
        labels = [x for x in labels if x in curves.curve and bool(formed.emerged.sel(curve=x))]
        if len(labels) > 1:
            orders[kind] = order(curves.sel(curve=labels), between="curve")
    return Localization(answers, table, curves, formed, orders, lags, last)


def leaders(table: pd.DataFrame) -> pd.DataFrame:
    """One row per mechanism that is implemented at the last step: the component with its largest
    share.
    """
    last = table[(table.step == table.step.max()) & (table.attribute == "all") & table.named]
    rows = [last[last.mechanism == x].nlargest(1, "share") for x in MECHANISMS]
    return pd.concat(rows).set_index("mechanism")


def named_components(table: pd.DataFrame) -> pd.DataFrame:
    """The components that implement a mechanism at the last step of a table of ``mechanisms`` with
    ``step``, on facts of all attributes.

    Returns:
        mechanism, component, place, ``share`` of the logit difference that is lost without the
        component, with ``low`` and ``high`` (95 %, over facts), ``control`` (share), ``p``
        (Holm-adjusted), ``stability`` (share of resamples of the facts in which it reaches
        the thresholds), ``since``: the first step from which every later checkpoint names it too.
    """
    of_all = table[table.attribute == "all"]
    last = of_all[(of_all.step == of_all.step.max()) & of_all.named]
    named = of_all.pivot(index="step", columns=_CELL, values="named").astype(int)
    for_good = named[::-1].cummin()[::-1]
    found = last.merge(for_good.idxmax().rename("since").reset_index(), on=_CELL)
    found = found.sort_values("share", ascending=False, kind="stable")
    found = found.sort_values("mechanism", key=lambda x: x.map(MECHANISMS.index), kind="stable")
    return found[[*_COLUMNS, "since"]].reset_index(drop=True)


def borderline_components(table: pd.DataFrame) -> pd.DataFrame:
    """The components that pass the tests at the last step, on facts of all attributes, but have a
    threshold of ``mechanisms`` inside an interval. Columns of ``named_components`` but ``since``,
    and ``gain`` with ``gain_low`` and ``gain_high`` (share of facts; NaN for heads).
    """
    last = table[(table.step == table.step.max()) & (table.attribute == "all") & table.borderline]
    return (
        last.sort_values("share", ascending=False)
        .reset_index(drop=True)
        .reindex(columns=[*_COLUMNS, "gain", "gain_low", "gain_high"])
    )


def time_text(formed: xr.Dataset, mark: str) -> str:
    """A time of one curve of ``emergence``: step, 95 % interval, ± the distance of the checkpoints
    between which it lies.
    """
    spacing = float(formed[f"resolution_{mark}"])
    at, low, high, apart = (
        format_step(float(formed[name]), spacing)
        for name in (mark, f"{mark}_low", f"{mark}_high", f"resolution_{mark}")
    )
    return f"{at} [{low}, {high}] ± {apart}"


def _span(found: Localization) -> str:
    steps = found.steps
    checkpoints = f"{len(steps)} checkpoint{'s' * (len(steps) > 1)}"
    span = f"steps {steps[0]} to {steps[-1]}" if len(steps) > 1 else f"at step {steps[0]}"
    return f"{checkpoints}, {span}, {found.curves.sizes['fact']} facts"


def _in_words(named: pd.DataFrame) -> str:
    by = named.groupby("mechanism", sort=False).component
    return "; ".join(f"{x}: {', '.join(dict.fromkeys(of))}" for x, of in by) or "no component"


def _components_html(found: Localization) -> str:
    rows = [
        (x.mechanism, x.component, x.place, f"{x.share:.2f} [{x.low:.2f}, {x.high:.2f}]", x.since)
        for x in found.to_dataframe().itertuples()
    ]
    caption = (
        f"{_span(found)}. Components that the last checkpoint needs for a mechanism: the share of "
        "the logit difference that is lost without one, with its 95 % interval over facts, and the "
        "step from which it passes the test at every later checkpoint: the fewer the facts, the "
        "later that is."
    )
    heads = ("mechanism", "component", "at", "share lost", "since step")
    return html_table(caption, rows or [("no component",)], heads=heads)


def _times_html(found: Localization) -> str:
    if found.formed is None:
        few = f"Fewer than {MIN_CHECKPOINTS} checkpoints: too few to say when a mechanism formed."
        return html_table(few, [])
    rows = []
    for label in found.formed.curve.values:
        of_curve = found.formed.sel(curve=label)
        if bool(of_curve.emerged):
            rows.append((label, *(time_text(of_curve, mark) for mark in MARKS)))
        else:
            rows.append((label, f"no step: {of_curve.reason.item()}"))
    caption = (
        "When each curve had made 10, 50 and 90 % of its rise: step, 95 % interval over facts, ± "
        "the distance of the checkpoints around it. gap: logit difference, clean − corrupted. "
        "needed: share of it that is lost without the mechanism. in place: attention of the "
        "leading head; for memory, how much more often the value can be read after the MLPs."
    )
    return html_table(caption, rows, heads=("curve", *MARKS))


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
            curve = curve.fillna(0)  # a prompt that lacks the destination
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
