"""Fine-tuning on people who are known already: those seldom met in training, and celebrities.

The paper's figure P: a model trained on people of whom a few are celebrities, met more often than
the others, is fine-tuned on the others alone, and on the celebrities alone. No new person is
trained on, so that what is lost is not pushed out by new facts.
"""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from analyses import paper
from analyses.beside_paper import across_seeds, beside_paper
from analyses.options import StudyConfig
from analyses.studies import mean_in_words, sample_in_words, trained
from interp.config import TrainConfig
from interp.data.batches import evaluation_set
from interp.suite import load_suite
from interp.training.evaluation import by_person
from interp.training.finetune import finetune_config

SHARE = {"smoke": 1 / 8, "laptop": 1 / 16, "paper": 1 / 16}
"""Of celebrities among all."""
WEIGHT = 8.0
"""How many times as often a celebrity is met as another."""
CELEBRITIES, OTHERS = "celebrities", "the others"
_PAPERS = {"celeb": CELEBRITIES, "non-celeb": OTHERS}


def base_of_known(config: StudyConfig) -> TrainConfig:
    """Runs in which celebrities end up known and the others are known in part."""
    base = config.base
    if config.preset == "laptop":
        sparse = {"checkpoint_every": 500, "dense_until": 0}
        base = replace(base, n_held_out=64, n_layers=4, **sparse)
    if config.preset == "paper":
        base = replace(base, n_people=2 * base.n_people)
    n = round(SHARE[config.preset] * base.n_people)
    return replace(base, celebrities=n, celebrity_weight=WEIGHT)


def known_people(config: StudyConfig, seeds: range, n_steps: int, at: dict) -> pd.DataFrame:
    """What fine-tuning on each group of known people does to both.

    Returns:
        One row per (run, step, group): ``tuned_on``, ``seed``, and over people of the group means
        of ``loss`` (nats per value) and ``accuracy``, and their number ``n``.
    """
    base = base_of_known(config)
    bases = {f"known-base_seed-{seed}": replace(base, seed=seed) for seed in seeds}
    runs, about = {}, {}
    for (name, folder), seed in zip(trained(config, bases, **at).items(), seeds):
        for group in (OTHERS, CELEBRITIES):
            run = f"known_seed-{seed}_on-{group.split()[-1]}"
            runs[run] = finetune_config(
                bases[name], folder, base.n_steps, new_people=0, n_steps=n_steps,
                n_evaluated=base.n_evaluated, schedule=(_only(group, config.preset, n_steps),),
            )  # fmt: skip
            about[run] = {"run": run, "tuned_on": group, "seed": seed}
    folders = trained(config, runs, **at)
    tables = [_of_groups(folders[run], config.device).assign(**x) for run, x in about.items()]
    return pd.concat(tables, ignore_index=True)


def _only(group: str, size: str, n_steps: int) -> str:
    """The schedule that samples one group alone; celebrities are the first of so many groups."""
    celebrity, other = (1, 0) if group == CELEBRITIES else (0, 1)
    others = [str(other)] * (round(1 / SHARE[size]) - 1)
    return f"{n_steps}:{','.join([str(celebrity), *others])}"


def _of_groups(run: Path, device: str) -> pd.DataFrame:
    suite = load_suite(run)
    people, tables = evaluation_set(suite.texts, suite.config, "train"), []
    for step in suite.steps:
        found = by_person(suite.load(step, device=device), people)
        celebrity = found.person < suite.config.celebrities
        found["group"] = celebrity.map({True: CELEBRITIES, False: OTHERS})
        of_group = found.groupby("group")
        means = of_group[["loss", "accuracy"]].mean().assign(n=of_group.size(), step=step)
        tables.append(means.reset_index())
    return pd.concat(tables, ignore_index=True)


def figures(table: pd.DataFrame) -> dict[str, go.Figure]:
    """Accuracy of each group while either is trained on, beside the paper's."""
    n_seeds, drawn = table.seed.nunique(), {}
    sizes = table.groupby("group").n.first()
    for theirs, group in _PAPERS.items():
        points = paper.panel("P", theirs)
        points = points[points.y_name == "attribute_accuracy"].copy()
        for word, ours in reversed(_PAPERS.items()):
            points["series"] = points.series.str.replace(f"on {word}s", f"on {ours}", regex=False)
        mine = table[table.group == group].assign(series="fine-tuned on " + table.tuned_on)
        drawn[f"Known people: {group}"] = beside_paper(
            across_seeds(mine, series="series", x="step", y="accuracy"),
            points.sort_values("series", kind="stable"),
            title=f"Accuracy on {group} when known people are trained on further",
            y="share of values",
            log_y=False,
            here=f"here, {sizes[group]} of {sizes.sum()} people, {sample_in_words(n_seeds)}",
            there="paper, figure P, 8k celebrities of 128k people, one seed",
            x=("step of fine-tuning",) * 2,
            legend="fine-tuned on",
        )
    return drawn


def said(table: pd.DataFrame) -> list[str]:
    """Accuracy of both groups before and after, in words."""
    lines = []
    for tuned_on, of_runs in table.groupby("tuned_on", sort=False):
        ends = []
        for group, rows in of_runs.groupby("group", sort=False):
            wide = rows.pivot(index="step", columns="seed", values="accuracy").to_numpy()
            change = mean_in_words(wide[-1] - wide[0], 3)
            ends.append(
                f"accuracy on {group} goes from {mean_in_words(wide[0], 3)} to "
                f"{mean_in_words(wide[-1], 3)} (change {change})"
            )
        lines.append(f"fine-tuned on {tuned_on}: {'; '.join(ends)}")
    return lines
