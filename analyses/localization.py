"""Which heads and MLPs do the jobs of factual recall, and when did each form?

The picture to be tested (arXiv 2503.21676, section 4.1): early attention gathers the name at its
last token, middle MLPs turn it into what is known of the person, late attention extracts the value
at the answer position. Every checkpoint of a run is asked the questions of
``interp.localization``; at each, ``jobs.roles`` says who has which role; curves of each job over
training say when it formed.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import xarray as xr

from analyses import localization_depth as in_depth
from analyses.options import LocalizationConfig
from analyses.studies import average_metrics
from interp.dynamics.emergence import MIN_CHECKPOINTS, emergence, lag_to, order
from interp.dynamics.plateau import Phases, phases
from interp.localization.localize import QUESTIONS, localize
from interp.localization.roles import ROLES, by_attribute, roles
from interp.model.decoder import device_of
from interp.results.store import join_steps
from interp.results.sweep import digest_of, over_checkpoints
from interp.statistics import gap_is_precise
from interp.suite import load_suite, select_steps

KINDS = {"needed": ROLES, "in place": tuple(role for role in ROLES if role != "memory")}
"""Which curves' midpoints are put in order: causes of all jobs; and attention, of heads alone."""


@dataclass(frozen=True)
class Localization:
    """What was found in a run."""

    answers: dict[str, xr.Dataset]
    """By question, with a leading ``step``."""
    roles: pd.DataFrame
    """One row a (step, attribute, cell), as ``interp.localization.roles.roles`` gives them."""
    curves: xr.DataArray
    """``job_curves``."""
    formed: xr.Dataset | None
    """``interp.dynamics.emergence.emergence`` of the curves; None with too few checkpoints."""
    orders: dict
    """``interp.dynamics.emergence.order`` of the jobs, for each of ``KINDS``."""
    lags: xr.Dataset | None
    """``emergence.lag_to`` of the curves, to the end of the plateau; None without one."""
    by_attribute: pd.DataFrame
    """``interp.localization.roles.by_attribute`` at the last step."""
    depth: dict[str, xr.Dataset]
    """What was asked of the last step only: ``analyses.localization_depth``."""


def run(config: LocalizationConfig, *, command: str = "", on_step=lambda n_done: None):
    """The suite, and what was found in it; result files that are there already are reused."""
    suite = load_suite(config.ckpt)
    if suite.config.parallel:
        raise ValueError(
            f"{config.ckpt} has parallel blocks, whose MLP does not read what its attention wrote; "
            "localization needs sequential ones"
        )
    steps = select_steps(suite, config.steps)
    n = len(config.attributes)
    drawn = {"attribute": config.attributes, "seed": config.seed}
    facts = suite.facts(config.facts * n, **drawn)
    n_people = min(config.people, suite.config.n_people)
    people = suite.facts(n_people * n, **drawn)
    asked = {"people": digest_of(people), "seed": config.seed}
    options = {"seed": config.seed, "max_memory": config.max_memory}
    options["device"] = device_of(config.device)
    where = {
        "out": config.out or suite.path / "results" / "localization",
        "facts": facts,
        "device": options["device"],
        "command": command,
    }
    done = over_checkpoints(
        suite,
        steps,
        QUESTIONS,
        partial(_of_step, facts=facts, people=people, **options),
        options=asked,
        workers=config.workers,
        on_step=on_step,
        **where,
    )
    answers = {name: join_steps({step: done[step][name] for step in steps}) for name in QUESTIONS}
    found = find(answers, plateau(suite).plateau_end)
    led = leaders(found.roles)[["component", "place"]].to_dict("index")
    depth = {}
    for question in in_depth.possible(led):
        compute = partial(in_depth.answer, facts=facts, leading=led, **options)
        asked_now = asked | {"leading": led}
        last = over_checkpoints(suite, steps[-1:], [question], compute, options=asked_now, **where)
        depth[question] = last[steps[-1]][question]
    on_step(len(steps) + 1)
    return suite, replace(found, depth=depth)


def _of_step(suite, step: int, questions: list[str], *, facts, people, device: str, **options):
    model = suite.load(step, device=device)
    return localize(model, facts, people, questions=questions, **options)


def plateau(suite) -> Phases:
    """Of the loss on the people trained on; NaN where the run has no metrics."""
    if not (suite.path / "metrics.parquet").is_file():
        return Phases(np.nan, np.nan)
    metrics = average_metrics(suite.path)
    steps, loss = (metrics[metrics.split == "train"][x].to_numpy() for x in ("step", "loss"))
    return phases(steps, loss, suite.no_knowledge_baseline)


def find(answers: dict[str, xr.Dataset], plateau_end: float) -> Localization:
    """Roles, curves and times from the answers; ``plateau_end`` is NaN where there is none."""
    needed, readings = answers["needs"], answers["readings"]
    steps = needed.step.values
    table = pd.concat(
        [roles(needed.sel(step=s), readings.gain.sel(step=s)).assign(step=int(s)) for s in steps],
        ignore_index=True,
    )
    curves = job_curves(answers, table)
    last = by_attribute(needed.isel(step=-1))
    if len(steps) < MIN_CHECKPOINTS:
        return Localization(answers, table, curves, None, {}, None, last, {})
    formed, orders = emergence(curves), {}
    lags = lag_to(curves, plateau_end) if np.isfinite(plateau_end) else None
    for kind, roles_of_kind in KINDS.items():
        labels = [f"{role}: {kind}" for role in roles_of_kind]
        labels = [x for x in labels if x in curves.curve and bool(formed.emerged.sel(curve=x))]
        if len(labels) > 1:
            orders[kind] = order(curves.sel(curve=labels), between="curve")
    return Localization(answers, table, curves, formed, orders, lags, last, {})


def leaders(table: pd.DataFrame) -> pd.DataFrame:
    """The component with the largest share of each role that somebody has at the last step: one row
    a role.
    """
    last = table[(table.step == table.step.max()) & (table.attribute == "all") & table.named]
    rows = [last[last.role == role].nlargest(1, "share") for role in ROLES]
    return pd.concat(rows).set_index("role")


def job_curves(answers: dict[str, xr.Dataset], table: pd.DataFrame) -> xr.DataArray:
    """(curve, step, fact): ``gap``, nats of clean − corrupted ``logit_diff``; and of each job that
    somebody has at the last step ``needed`` and ``in place``.

    ``needed``: share of the mean gap that is lost when no component of the model does the job (all
    heads cut, or all MLPs swapped, at the leader's place); NaN before ``gap_is_precise`` for good.
    ``in place``: of heads the leader's attention along the job's edge; of MLPs how much more often
    the value can be read off after them than before, summed over layers, which follows the model's
    accuracy.
    """
    found, needed = leaders(table), answers["needs"]
    gap = needed.clean - needed.corrupted
    sure = gap_is_precise(gap.transpose("step", "fact").values)
    sure = np.flip(np.logical_and.accumulate(np.flip(sure)))
    whole = needed.isel(cell=np.flatnonzero(needed.kind == "all"))
    curves = {"gap": gap}
    for role, place in found.place.items():
        at = np.flatnonzero((whole.role.values == role) & (whole.place.values == place))
        lost = whole.effect.isel(cell=int(at[0])) / gap.mean("fact")
        curves[f"{role}: needed"] = lost.where(xr.DataArray(sure, dims="step"))
        if role == "memory":
            curve = answers["readings"].gain.sel(role=place).sum("layer")
        else:
            layer, head = place_of(found.component[role])
            curve = answers["attention"].pattern.sel(edge=place).isel(layer=layer, head=head)
        curves[f"{role}: in place"] = curve
    kept = [
        curve.drop_vars(set(curve.coords) - {"step"}).transpose("step", "fact")
        for curve in curves.values()
    ]
    return xr.concat(kept, dim="curve").assign_coords(curve=list(curves))


def place_of(head: str) -> tuple[int, int]:
    """Layer and number of a head such as L1H3."""
    layer, number = head[1:].split("H")
    return int(layer), int(number)
