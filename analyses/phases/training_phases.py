"""The three phases of learning, with attention statistics and hallucination on held-out people.

The paper's figures 2, 3 (right) and M: loss and accuracy on people trained on and held out, and
attention statistics, over the checkpoints of runs that differ in the seed; or of any runs given.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses import paper
from analyses.beside_paper import across_seeds, beside_paper
from analyses.phases import PhasesConfig
from analyses.studies import Study, curves, outcomes, sample_in_words, trained, variants
from interp.config import TrainConfig
from interp.data.batches import evaluation_set
from interp.dynamics.plateau import format_step, plateau_end_interval
from interp.localization.attention_statistics import STATISTICS, attention_statistics
from interp.suite import load_suite
from interp.training.evaluation import by_person
from interp.training.run_many import MACHINE, OnStep

SEEDS = {"smoke": 2, "laptop": 3, "paper": 5}
N_SEQUENCES = 512
"""Biographies over which attention is averaged, as many as the paper's."""


def study(config: PhasesConfig, *, command: str = "", on_step: OnStep) -> Study:
    """Phases, attention and hallucination over training."""
    if config.ckpt:
        folders = {path: Path(path) for path in config.ckpt}
        runs = {path: load_suite(path).config for path in config.ckpt}
        _check_alike(config.ckpt, runs)
    else:
        runs = variants(config.base, [{"seed": seed} for seed in range(SEEDS[config.preset])])
        folders = trained(config, runs, command=command, on_step=on_step)
    found = curves(folders, runs)
    _check_steps(found)
    ends = outcomes(found).merge(hallucination(found), on="run")
    intervals, attention = [], []
    for name, folder in folders.items():
        of_run = ends[ends.run == name].iloc[0]
        low, high = interval(folder, of_run.plateau_end, config.device)
        intervals.append({"run": name, "plateau_end_low": low, "plateau_end_high": high})
        attention.append(attention_over_training(folder, config.device).assign(run=name))
    tables = {
        "phases": ends.merge(pd.DataFrame(intervals), on="run"),
        "phases_curves": found,
        "phases_attention": pd.concat(attention, ignore_index=True),
    }
    return Study(tables, figures(tables, next(iter(runs.values()))), said(tables))


def _check_alike(paths: Sequence[str], runs: dict[str, TrainConfig]) -> None:
    """Raises a ValueError if a run is given twice, or if runs differ in more than the seed, which
    would make means over them meaningless.
    """
    (first, one), *others = runs.items()
    for path, other in others:
        for field in fields(TrainConfig):
            ours, theirs = getattr(one, field.name), getattr(other, field.name)
            if ours != theirs and field.name not in ("seed", *MACHINE):
                raise ValueError(
                    f"{path} has {field.name} {theirs}, {first} {ours}; give runs that differ in "
                    "the seed only, or one at a time"
                )
    seeds: dict[int, str] = {}
    for path in paths:
        if (first := seeds.setdefault(runs[path].seed, path)) != path or paths.count(path) > 1:
            raise ValueError(
                f"{first} and {path} are runs of seed {runs[path].seed}; give runs that differ in "
                "the seed, each once"
            )


def _check_steps(found: pd.DataFrame) -> None:
    """Raises a ValueError if the runs were evaluated at different steps, so that a mean at a step
    would not cover all runs.
    """
    (first, one), *others = ((run, sorted(set(x.step))) for run, x in found.groupby("run"))
    for run, steps in others:
        for step in sorted({*one} ^ {*steps})[:1]:
            has, lacks = (first, run) if step in one else (run, first)
            raise ValueError(
                f"{has} has metrics at step {step}, {lacks} has not; train it to its end, or give "
                "one at a time"
            )


def hallucination(found: pd.DataFrame) -> pd.DataFrame:
    """One row per run: the lowest loss on held-out people, and accuracy and confidence on them at
    the end.
    """
    held_out = found[found.split == "held-out"]
    rows = []
    for run, table in held_out.groupby("run", sort=False):
        last = table.iloc[-1]
        rows.append({
            "run": run, "held_out_lowest_loss": table.loss.min(),
            "held_out_accuracy": last.accuracy, "held_out_max_probability": last.max_probability,
        })  # fmt: skip
    return pd.DataFrame(rows)


def interval(folder: Path, plateau_end: float, device: str) -> tuple[float, float]:
    """95 % interval of the end of the plateau over the people evaluated. Only checkpoints from half
    to twice that step are evaluated. NaN where one of them is not on disk.
    """
    suite = load_suite(folder)
    near = suite.metrics.step.between(plateau_end / 2, 2 * plateau_end)
    steps = sorted(set(suite.metrics.step[near]))
    if not steps or not set(steps) <= set(suite.steps):
        return np.nan, np.nan
    people = evaluation_set(suite.texts, suite.config, "train")
    losses = [by_person(suite.load(step, device=device), people).loss for step in steps]
    return plateau_end_interval(np.array(steps), np.stack(losses), suite.no_knowledge_baseline)


def attention_over_training(folder: Path, device: str) -> pd.DataFrame:
    """One row per (step, layer): means of ``STATISTICS`` over heads and biographies."""
    suite = load_suite(folder)
    fewer = replace(suite.config, n_evaluated=N_SEQUENCES)
    some = evaluation_set(suite.texts, fewer, "train")
    tables = []
    for step in suite.steps:
        found = attention_statistics(suite.load(step, device=device), some)
        means = found.mean(("head", "biography")).to_dataframe().reset_index()
        tables.append(means.assign(step=step))
    return pd.concat(tables, ignore_index=True)[["step", "layer", *STATISTICS]]


def figures(tables: dict[str, pd.DataFrame], config: TrainConfig) -> dict[str, go.Figure]:
    """Figures, by section heading."""
    found = tables["phases_curves"]
    here = f"here, {config.n_people} people, {sample_in_words(found.run.nunique(), 'run')}"
    lines = {
        y: across_seeds(found, series="split", x="step", y=y)
        for y in ("loss", "accuracy", "max_probability")
    }
    shared = {"x": ("optimizer step",) * 2, "here": here, "legend": "people", "names": _SPLITS}
    return {
        "Loss": beside_paper(
            lines["loss"], _known_first(paper.panel("M", "loss")),
            title="Attribute loss of people trained on and of people never seen",
            there="paper, figure M, 64k people, one seed", y="attribute loss (nats per value)",
            baselines=(found.baseline.mean(), paper.NO_KNOWLEDGE), **shared,
        ),
        "Accuracy": beside_paper(
            lines["accuracy"], _known_first(paper.panel("M", "acc")),
            title="Attribute accuracy", there="paper, figure M, 64k people, one seed",
            y="share of values", log_y=False, **shared,
        ),
        "Confidence": beside_paper(
            lines["max_probability"], _known_first(paper.panel("M", "maxprob")),
            title="Probability of the likeliest token, mean over value tokens",
            there="paper, figure M, 64k people, one seed", y="probability", log_y=False, **shared,
        ),
        "Attention": beside_paper(
            _attention_lines(tables["phases_attention"]), _in_our_words(paper.panel("3", "right")),
            title="Where attention goes in whole biographies (a score, not a cause)",
            there="paper, figure 3, 64k people, one run", y="total attention (share)", log_y=False,
            **shared | {"legend": "from → to", "names": None},
        ),
    }  # fmt: skip


_SPLITS = {"train": "trained on", "held-out": "held out"}


def _known_first(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values("series", ascending=False, kind="stable")


def _attention_lines(attention: pd.DataFrame) -> pd.DataFrame:
    last = attention.layer.max()
    of = {
        "last name → names,<br>first layer": ("last_name_to_name", 0),
        "value → names,<br>last layer": ("attribute_to_name", last),
        "value → text,<br>last layer": ("attribute_to_text", last),
    }
    return pd.concat(
        [
            across_seeds(
                attention[attention.layer == layer].assign(series=name),
                series="series", x="step", y=statistic,
            )
            for name, (statistic, layer) in of.items()
        ]
    )  # fmt: skip


def _in_our_words(table: pd.DataFrame) -> pd.DataFrame:
    words = {"name->name": "last name → names,", "attr->": "value → ", " layer": "<br>layer"}
    for theirs, ours in words.items():
        table["series"] = table.series.str.replace(theirs, ours)
    return table


def said(tables: dict[str, pd.DataFrame]) -> str:
    """The findings in words."""
    lines = []
    for row in tables["phases"].itertuples():
        if np.isnan(row.plateau_end):
            lines.append(f"{row.run}: the plateau had not ended by step {row.n_steps}")
            continue
        lines.append(
            f"{row.run}: plateau from step {_step(row.plateau_start)} to {_step(row.plateau_end)} "
            f"[{_step(row.plateau_end_low)}, {_step(row.plateau_end_high)}], "
            f"checkpoints {_step(row.resolution)} apart, "
            f"{row.plateau_end_biographies_a_person:.1f} biographies per person; "
            f"losses of trained and held-out people differ from step {_step(row.knowledge_start)}, "
            f"held-out loss rising from {_step(row.held_out_rises_from)} on; at the end accuracy "
            f"{row.accuracy:.3f}, of held-out people {row.held_out_accuracy:.3f}"
        )
    return "\n".join(lines)


def _step(step: float) -> str:
    return "unknown" if np.isnan(step) else format_step(step)
