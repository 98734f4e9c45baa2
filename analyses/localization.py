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

from analyses.config import LocalizationConfig
from interp.dynamics import Phases, phases
from interp.emergence import MIN_CHECKPOINTS, emergence, lag_to, order
from interp.localization.checkpoint import QUESTIONS, localize
from interp.localization.direct import copying
from interp.localization.edit import edit_facts
from interp.localization.jobs import ROLES, by_attribute, needs, roles
from interp.localization.neurons import written
from interp.model import device_of
from interp.patching import patch
from interp.results import effect, join_steps, recovered
from interp.suite import load_suite, select_steps
from interp.sweep import digest_of, over_checkpoints
from interp.training.evaluation import AVERAGE

KINDS = ("needed", "in place")
DEPTH = ("neurons", "edits", "parts", "feeds", "copying", "value")
PARTS = ("first", "middle", "last")
N_IN_DEPTH, N_EDITED, N_SCORED = 96, 24, 384
"""Facts asked in depth, facts overwritten, and facts whose whole value is scored."""


@dataclass(frozen=True)
class Localization:
    """What was found in a run."""

    answers: dict[str, xr.Dataset]
    """By question, with a leading ``step``."""
    roles: pd.DataFrame
    """One row a (step, attribute, cell), as ``interp.localization.jobs.roles`` gives them."""
    curves: xr.DataArray
    """(curve, step, fact): each job ``needed`` and ``in place``."""
    formed: xr.Dataset | None
    """``interp.emergence.emergence`` of the curves; None with too few checkpoints."""
    orders: dict
    """``interp.emergence.order`` of the jobs, for each of ``KINDS``."""
    lags: xr.Dataset | None
    """``interp.emergence.lag_to`` of the curves, to the end of the plateau; None without one."""
    by_attribute: pd.DataFrame
    """``interp.localization.jobs.by_attribute`` at the last step."""
    depth: dict[str, xr.Dataset]
    """What was asked of the last step only: ``DEPTH``."""


def run(config: LocalizationConfig, *, command: str = "", on_step=lambda n_done: None):
    """The suite, and what was found in it; result files that are there already are reused."""
    suite = load_suite(config.ckpt)
    steps = select_steps(suite, config.steps)
    n = len(config.attributes)
    drawn = {"attribute": config.attributes, "seed": config.seed}
    facts = suite.facts(config.facts * n, **drawn)
    n_people = min(config.people, suite.config.n_people)
    people = suite.facts(n_people * n, **drawn)
    asked = {
        "facts": digest_of(facts),
        "people": digest_of(people),
        "n_facts": len(facts),
        "seed": config.seed,
    }
    options = {"seed": config.seed, "max_memory": config.max_memory}
    options["device"] = device_of(config.device)
    where = {
        "out": config.out or suite.path / "results" / "localization",
        "command": command,
    }
    done = over_checkpoints(
        suite,
        steps,
        QUESTIONS,
        partial(_of_step, facts=facts, people=people, **options),
        asked=asked,
        workers=config.workers,
        on_step=on_step,
        **where,
    )
    answers = {name: join_steps({step: done[step][name] for step in steps}) for name in QUESTIONS}
    found = find(answers, plateau(suite).plateau_end)
    led = leaders(found.roles)[["component", "place"]].to_dict("index")
    last = over_checkpoints(
        suite,
        steps[-1:],
        DEPTH,
        partial(_in_depth, facts=facts, leading=led, **options),
        asked=asked | {"leading": led},
        **where,
    )
    on_step(len(steps) + 1)
    return suite, replace(found, depth=last[steps[-1]])


def _of_step(suite, step: int, questions: list[str], *, facts, people, device: str, **options):
    model = suite.load(step, device=device)
    return localize(model, facts, people, questions=questions, **options)


def _in_depth(
    suite,
    step: int,
    questions: list[str],
    *,
    facts,
    leading: dict[str, dict[str, str]],
    seed: int,
    max_memory: float,
    device: str,
) -> dict[str, xr.Dataset]:
    """Of one checkpoint, what takes too long to ask of all: the functions below, by name."""
    model = suite.load(step, device=device)
    few, to_edit = (facts[_spread(facts, n)] for n in (N_IN_DEPTH, N_EDITED))
    memory = leading["memory"]
    layer, place = int(memory["component"][1:].split()[0]), memory["place"]
    how = {"whole_value": False, "max_memory": max_memory}
    ask = {
        "neurons": lambda: _neurons(model, few, layer, place, how),
        "edits": lambda: _edits(model, suite, to_edit, layer, place, seed),
        "parts": lambda: _parts(model, suite, few, seed, how),
        "feeds": lambda: _feeds(model, few, leading["extraction"]["component"], how),
        "copying": lambda: xr.Dataset({"share": copying(model, facts)}),
        "value": lambda: needs(
            model, facts[_spread(facts, N_SCORED)], whole_value=True, max_memory=max_memory
        ),
    }
    return {question: _plain(ask[question]()) for question in questions}


def _neurons(model, facts, layer: int, place: str, how: dict) -> xr.Dataset:
    """``effect`` (layer, neuron, fact) of single neurons where the leading memory works, noising,
    nats, negative = needed; at ``final`` also ``written`` (neuron, fact), what those of its layer
    write.
    """
    single = {"groups": (place,), "n_neurons": 1, "direction": "noising"}
    result = effect(patch(model, facts, site="mlp_post", **single, **how))
    answer = xr.Dataset({"effect": result.isel(role=0, drop=True)})
    if place == "final":
        own = written(model, facts, layer=layer)
        answer["written"] = own.drop_vars("layer", errors="ignore")
    return answer


def _edits(model, suite, facts, layer: int, place: str, seed: int) -> xr.Dataset:
    """``edit_facts`` in the leading memory, and in the first MLP at name_middle, which works on
    names.
    """
    where = {
        f"L{layer} MLP at {place}": (layer, place),
        "L0 MLP at name_middle": (0, "name_middle"),
    }
    tables = [
        edit_facts(model, suite, facts, layer=at, role=role, seed=seed)
        for at, role in where.values()
    ]
    return xr.concat(tables, "edited").assign_coords(edited=list(where))


def _parts(model, suite, facts, seed: int, how: dict) -> xr.Dataset:
    """``recovered`` (part, layer, role): by the residual stream, one part of the name swapped."""
    attributes = list(dict.fromkeys(facts.texts.attribute))
    shares = []
    for part in PARTS:
        drawn = {"attribute": attributes, "seed": seed, "corruption": f"swap-{part}"}
        swapped = suite.facts(len(facts), **drawn)
        shares.append(recovered(patch(model, swapped, site="resid_pre", **how)))
    return xr.Dataset({"recovered": xr.concat(shares, "part").assign_coords(part=list(PARTS))})


def _feeds(model, facts, head: str, how: dict) -> xr.Dataset:
    """``recovered`` (layer, role, ...): through each MLP's output into one head's values."""
    if head.startswith("L0"):  # no MLP comes before
        return xr.Dataset({"recovered": xr.DataArray(np.nan)})
    return xr.Dataset(
        {"recovered": recovered(patch(model, facts, site=f"mlp_out-{head}.v", **how))}
    )


def _spread(facts, n: int) -> np.ndarray:
    """About ``n`` facts, as many of each attribute."""
    attribute = facts.texts.attribute.to_numpy()
    names = list(dict.fromkeys(attribute))
    each = max(1, n // len(names))
    return np.concatenate([np.flatnonzero(attribute == name)[:each] for name in names])


def _plain(answer: xr.Dataset) -> xr.Dataset:
    """Without what netCDF 3 can't hold."""
    answer = answer.drop_vars([x for x in answer.coords if "prompt" in str(x)])
    for name in [*answer.data_vars, *answer.coords]:
        if answer[name].dtype == bool:
            answer[name] = answer[name].astype(np.int8)
        if answer[name].dtype == np.int64:
            answer[name] = answer[name].astype(np.int32)
    return answer


def plateau(suite) -> Phases:
    """Of the loss on the people trained on."""
    rows = (suite.metrics.split == "train") & (suite.metrics.attribute == AVERAGE)
    steps, loss = (suite.metrics[rows][x].to_numpy() for x in ("step", "loss"))
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
    last = by_attribute(needed.isel(step=-1), table[table.step == steps[-1]])
    if len(steps) < MIN_CHECKPOINTS:
        return Localization(answers, table, curves, None, {}, None, last, {})
    formed, orders = emergence(curves), {}
    lags = lag_to(curves, plateau_end) if np.isfinite(plateau_end) else None
    for kind in KINDS:
        labels = [f"{role}: {kind}" for role in ROLES]
        labels = [x for x in labels if bool(formed.emerged.sel(curve=x))]
        if len(labels) > 1:
            orders[kind] = order(curves.sel(curve=labels), between="curve")
    return Localization(answers, table, curves, formed, orders, lags, last, {})


def leaders(table: pd.DataFrame) -> pd.DataFrame:
    """The component with the largest share of each role at the last step, of those named; of those
    not named where nobody is: one row a role.
    """
    last = table[(table.step == table.step.max()) & (table.attribute == "all")]
    last = last[last.kind.isin(["head", "mlp"])]
    rows = []
    for role in ROLES:
        of_role = last[last.role == role]
        named = of_role[of_role.named]
        rows.append((named if len(named) else of_role).nlargest(1, "share"))
    return pd.concat(rows).set_index("role")


def job_curves(answers: dict[str, xr.Dataset], table: pd.DataFrame) -> xr.DataArray:
    """Two curves a job, per fact: ``needed``, nats of ``logit_diff`` lost when no component of the
    model does the job (all heads cut, or all MLPs swapped, at the leader's place); ``in place``, of
    heads the leader's attention along the job's edge, of MLPs how much more often the value can be
    read off after them than before, summed over layers.
    """
    found = leaders(table)
    needed = answers["needs"]
    whole = needed.isel(cell=np.flatnonzero(needed.kind == "all"))
    curves, labels = [], []
    for role in ROLES:
        place = found.place[role]
        at = np.flatnonzero((whole.role.values == role) & (whole.place.values == place))
        curves.append(whole.effect.isel(cell=int(at[0])))
        labels.append(f"{role}: needed")
        if role == "memory":
            gain = answers["readings"].gain.sel(role=place)
            curves.append(gain.sum("layer"))
        else:
            layer, head = (int(x) for x in found.component[role][1:].split("H"))
            pattern = answers["attention"].pattern.sel(edge=place)
            curves.append(pattern.isel(layer=layer, head=head))
        labels.append(f"{role}: in place")
    kept = [
        curve.drop_vars(set(curve.coords) - {"step"}).transpose("step", "fact") for curve in curves
    ]
    return xr.concat(kept, dim="curve").assign_coords(curve=labels)
