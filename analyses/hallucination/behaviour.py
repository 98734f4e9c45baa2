"""Behaviour towards known and unknown people at every checkpoint, as tables and in words."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from analyses.hallucination.answers import (
    distance_from_prior,
    kinds_of_answers,
    shares_of_kinds,
)
from analyses.hallucination.departures import departures, rises
from analyses.hallucination.people_sets import PeopleSet, sets_of_people
from analyses.hallucination.reliability import calibration, reliability
from analyses.hallucination.value_predictions import first_tokens, value_predictions
from analyses.options import StudyConfig
from analyses.studies import plus_minus
from interp.dynamics.plateau import plateau_end
from interp.process import local_workers
from interp.statistics import margin
from interp.suite import load_suite

PEOPLE = {"smoke": 24, "laptop": 320, "paper": 2048}
"""Known people, and held-out people, asked about at most."""
CONSTRUCTED = {"smoke": 4, "laptop": 96, "paper": 512}
"""At most, for each choice of the parts of a name that are shared."""
MEASURES = ("loss", "accuracy", "max_probability", "entropy")
MIXTURE = "known and held out, as many of each"


def tables(folders: dict[str, Path], config: StudyConfig) -> dict[str, pd.DataFrame]:
    """The tables of all runs, by name, each with the columns run and seed."""
    of_run = partial(
        tables_of_run,
        n=PEOPLE[config.preset],
        n_constructed=CONSTRUCTED[config.preset],
        device=config.device,
    )
    with local_workers(config.workers) as executor:
        found = list((executor.map if executor else map)(of_run, folders.values()))
    named = {
        name: [x[name].assign(run=run, seed=load_suite(folders[run]).config.seed)
               for run, x in zip(folders, found)]
        for name in found[0]
    }  # fmt: skip
    return {name: pd.concat(of, ignore_index=True) for name, of in named.items()}


def tables_of_run(
    folder: Path, *, n: int, n_constructed: int, device: str
) -> dict[str, pd.DataFrame]:
    """Every checkpoint of a run is read once, and all is computed from what it predicts.

    Returns:
        ``hallucination``: one row per (step, set) with means over people and halves of their 95 %
        intervals (Student's t); calibration; KL from the prior, where there are no known people
        among them. ``_answers``: shares of what is said. ``_reliability``: bins at the last
        checkpoint. ``_departures`` and ``_rises``: when. ``_people``: the unknown people.
    """
    suite = load_suite(folder)
    asked = sets_of_people(suite, n=n, n_constructed=n_constructed)
    people = suite.population
    known = people[people.split == "train"]
    choices = first_tokens(suite.texts, len(known))
    kinds = {
        name: kinds_of_answers(of.people, known, choices)
        for name, of in asked.items()
        if name != "known"
    }
    rows, answers, measured = [], [], []
    for step in suite.steps:
        model = suite.load(step, device=device)
        found = {
            name: value_predictions(model, of.biographies, choices) for name, of in asked.items()
        }
        for name, of in found.items():
            distance = distance_from_prior(of.p.values, choices)
            rows.append(_row(step, name, of) | {"kl_from_prior": distance})
        both = _mixture(found)
        rows.append(_row(step, MIXTURE, both))
        for name, of_set in kinds.items():
            answers += _answers(found[name].p.values.argmax(-1), of_set, asked[name], name, step)
        measured.append({name: of[[*MEASURES]].mean("attribute") for name, of in found.items()})
    curves = {
        name: xr.concat([x[name] for x in measured], xr.IndexVariable("step", suite.steps))
        for name in asked
    }
    step = np.array(suite.steps)
    losses = {name: curve.loss.transpose("step", "person").values for name, curve in curves.items()}
    baseline = suite.no_knowledge_baseline
    end = plateau_end(step, losses["known"].mean(1), baseline)
    bins = {**found, MIXTURE: both}
    return {
        "hallucination": pd.DataFrame(rows).assign(baseline=baseline, plateau_end=end),
        "hallucination_answers": pd.concat(answers, ignore_index=True),
        "hallucination_reliability": pd.concat(
            [
                reliability(of.confidence.values.ravel(), of.right.values.ravel()).assign(set=name)
                for name, of in bins.items()
            ],
            ignore_index=True,
        ).assign(step=suite.steps[-1]),
        "hallucination_departures": departures(step, losses, baseline),
        "hallucination_rises": rises(step, curves, end),
        "hallucination_people": pd.concat(
            [of.people.assign(set=name) for name, of in asked.items() if name != "known"],
            ignore_index=True,
        )[["set", "kept", "id", "first", "middle", "last", "shared", "n_nearest", "nearest"]],
    }


def _row(step: int, name: str, of: xr.Dataset) -> dict:
    people = of[[*MEASURES]].mean("attribute")
    row = {"step": step, "set": name, "n": of.sizes["person"]}
    row |= {measure: float(people[measure].mean()) for measure in MEASURES}
    row |= {f"{measure}_margin": float(margin(people[measure].values)) for measure in MEASURES}
    return row | calibration(of.confidence.values, of.right.values)


def _mixture(found: dict[str, xr.Dataset]) -> xr.Dataset:
    """As many known people as held-out ones, evenly spaced."""
    pair = [found["known"], found["held out"]]
    n = min(of.sizes["person"] for of in pair)
    spaced = [of.isel(person=np.arange(n) * of.sizes["person"] // n) for of in pair]
    return xr.concat(spaced, "person")


def _answers(
    answers: np.ndarray, kinds: np.ndarray, asked: PeopleSet, name: str, step: int
) -> list[pd.DataFrame]:
    """Shares for the whole set and for each choice of the parts shared; of held-out people for
    those who have one nearest known person, and for those who have not.
    """
    groups = asked.people.kept
    if name == "held out":
        nearest = (asked.people.nearest >= 0).map({True: "1 nearest", False: "several nearest"})
        groups = nearest + ", " + asked.people.shared.astype(str) + " shared"
    parts = {"all": np.ones(len(answers), bool)}
    parts |= {group: (groups == group).to_numpy() for group in sorted(groups.unique())}
    return [
        shares_of_kinds(answers[rows], kinds[rows]).assign(set=name, among=group, step=step)
        for group, rows in parts.items()
    ]


def said(tables: dict[str, pd.DataFrame]) -> list[str]:
    """When hallucination begins, how sure it is, and what is said, with 95 % intervals over seeds
    (Student's t).
    """
    found, when = tables["hallucination"], tables["hallucination_departures"]
    ends = found.groupby("seed").plateau_end.first()
    if ends.isna().any():
        return [f"the plateau had not ended by step {found.step.max()} in every run"]
    lines = [f"end of the plateau by seed: step {_each(ends)}"]
    for size in sorted(set(when.margin))[::2]:
        unknown, known = (
            when[(when.departure == rule) & (when.margin == size)].set_index("seed").step
            for rule in (_UNKNOWN_RISES, _KNOWN_FALLS)
        )
        lines.append(
            f"held-out loss is {size:.1%} above its minimum for good from step {_each(unknown)}, "
            f"known loss as far below its level there from step {_each(known)}: a difference of "
            f"{_over_seeds(unknown - known, '+.0f')} steps (negative: hallucination is first)"
        )
    last = found[found.step == found.step.max()]
    for name in ("known", "held out"):
        of = last[last.set == name]
        lines.append(
            f"{name}, last step: loss {_over_seeds(of.loss, '.2f')} nats per value (baseline "
            f"{of.baseline.mean():.2f}), accuracy {_over_seeds(of.accuracy, '.3f')}, maximum "
            f"probability {_over_seeds(of.max_probability, '.3f')}, ECE "
            f"{_over_seeds(of.ece, '.3f')} (calibrated: {of.ece_calibrated.mean():.3f})"
        )
    answers = tables["hallucination_answers"]
    answers = answers[(answers.step == found.step.max()) & (answers.kind == "nearest")]
    of_two = answers[(answers["set"] == "two parts shared")]
    shares = [
        f"{_over_seeds(of.share, '.3f')} ({of.chance.mean():.3f} by chance) of {group}"
        for group, of in of_two.groupby("among", sort=False)
    ]
    lines.append(
        "answers about people who share two parts of their name with one known person are that "
        f"person's value in a share of {', '.join(shares)}"
    )
    return lines


_UNKNOWN_RISES = "held out loss above its minimum"
_KNOWN_FALLS = "known loss below its level at the held-out minimum"


def _each(values: pd.Series) -> str:
    return ", ".join(f"{x:.0f}" for x in values)


def _over_seeds(values: pd.Series, digits: str) -> str:
    mean, half = values.mean(), float(margin(values.to_numpy()))
    return f"{mean:{digits}}{plus_minus(half, int(digits[-2]))}"
