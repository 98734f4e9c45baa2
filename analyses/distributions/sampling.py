"""What changes when some people are sampled more often than others?

The paper's figures 4, G and H: an inverse power law over people, by their number and by the budget
of steps, and celebrities. Evaluation is uniform over people always; how well people of each
frequency are known is a table of its own.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses import paper
from analyses.beside_paper import across_seeds, beside_paper, with_title
from analyses.options import StudyConfig
from analyses.studies import (
    Study,
    curves,
    difference,
    difference_in_words,
    holm_in_words,
    in_words,
    outcomes,
    paired,
    sample_in_words,
    trained,
    variants,
    with_holm,
)
from interp.config import TrainConfig
from interp.data.batches import evaluation_set, sampling_weights
from interp.suite import load_suite
from interp.training.evaluation import by_person
from interp.training.run_many import OnStep

ALPHAS = {
    "smoke": (0.0, 1.0),
    "laptop": (0.0, 0.4, 0.8, 1.0),
    "paper": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
}
BUDGETS = {
    "smoke": ((24, 0.5), (24, 1.0)),
    "laptop": ((320, 1.0), (640, 0.5), (640, 1.0), (1280, 1.0)),
    "paper": (
        (16_000, 1.0), (32_000, 1.0), (64_000, 0.5), (64_000, 1.0), (128_000, 1.0), (256_000, 1.0)
    ),
}  # fmt: skip
"""People, and the share of the preset's steps."""
CELEBRITIES = {"smoke": ((4, 4),), "laptop": ((40, 4), (40, 8)), "paper": (
    (4000, 2), (4000, 4), (4000, 8), (4000, 16), (16_000, 8))}  # fmt: skip
CELEBRITIES_OF = {"smoke": 24, "laptop": 640, "paper": 64_000}
SEEDS = {"smoke": 2, "laptop": 3, "paper": 1}
N_BINS = 5
FIELDS = ("n_people", "n_steps", "power_law", "celebrities", "celebrity_weight", "seed")
"""Fields that tell the runs apart."""


def study(config: StudyConfig, *, command: str = "", on_step: OnStep) -> Study:
    """Plateau and final loss by exponent, population, budget and celebrities; accuracy by how often
    a person was sampled.
    """
    size, n = config.preset, CELEBRITIES_OF[config.preset]
    laws = [
        {"n_people": people, "n_steps": round(share * config.base.n_steps), "power_law": alpha}
        for people, share in BUDGETS[size]
        for alpha in ALPHAS[size]
    ]
    famous = [
        {"n_people": n, "celebrities": k, "celebrity_weight": float(weight)}
        for k, weight in CELEBRITIES[size]
    ]
    seeds = range(SEEDS[size])
    ways = [way | {"seed": seed} for way in (*laws, *famous) for seed in seeds]
    runs = variants(config.base, ways)
    folders = trained(config, runs, command=command, on_step=on_step)
    found, frequencies = curves(folders, runs), []
    for name, run in runs.items():
        who = {"run": name} | {field: getattr(run, field) for field in FIELDS}
        frequencies.append(by_frequency(folders[name], run).assign(**who))
    ends = outcomes(found)
    tables = {
        "distributions": ends,
        "distributions_differences": differences(ends),
        "distributions_curves": found[found.split == "train"],
        "distributions_by_frequency": pd.concat(frequencies, ignore_index=True),
    }
    return Study(tables, figures(tables, config.base), said(tables))


def differences(ends: pd.DataFrame) -> pd.DataFrame:
    """Final loss and accuracy minus those of uniform sampling with the same seeds, people and
    steps, one row per measure and sampling distribution: see ``studies.with_holm``.
    """
    rows = []
    for at, alike in ends.groupby(["n_people", "n_steps"]):
        ways = dict(list(alike.groupby(["power_law", "celebrities", "celebrity_weight"])))
        uniform = ways.pop((0.0, 0, 1.0))
        for way, table in ways.items():
            of = dict(zip(FIELDS, (*at, *way)))
            for measure in ("loss", "accuracy"):
                less = difference(paired(table, uniform, measure))
                rows.append({"measure": measure} | of | less)
    return with_holm(rows)


def by_frequency(folder: Path, config: TrainConfig) -> pd.DataFrame:
    """Loss and accuracy of the last checkpoint on people grouped by how often they were sampled,
    most frequent first, in ``N_BINS`` bins of equal width in the logarithm: one row per non-empty
    bin, with biographies per person, loss, accuracy, n.
    """
    suite = load_suite(folder)
    whole = replace(config, n_evaluated=config.n_people)
    everybody = evaluation_set(suite.texts, whole, "train")
    model = suite.load(suite.steps[-1], device=config.device)
    known = by_person(model, everybody)
    met = sum(sampling_weights(config, step) for step in range(config.n_steps)) * config.batch_size
    share = np.log(met.max() / met) / np.log(max(met.max() / met.min(), 1 + 1e-9))
    known["bin"] = np.minimum((N_BINS * share).astype(int), N_BINS - 1)[known.person]
    known["biographies_a_person"] = met[known.person]
    table = known.groupby("bin")[["biographies_a_person", "loss", "accuracy"]].mean()
    return table.assign(n=known.groupby("bin").size()).reset_index()


def figures(tables: dict[str, pd.DataFrame], base: TrainConfig) -> dict[str, go.Figure]:
    """Figures, by section heading."""
    every, curve = tables["distributions"], tables["distributions_curves"]
    found = every[every.celebrities == 0]
    found = found.assign(series=_budget(found), x=found.power_law)
    alike = found.groupby(["series", "x"])
    ended = found[alike.plateau_end.transform("count") == alike.seed.transform("size")]
    theirs = paper.panel("4", "left")
    theirs["series"] = theirs.series.str.replace(" individuals", "")
    whole = curve[_has_all_steps(curve)]
    middle = sorted(set(whole.n_people))[len(set(whole.n_people)) // 2]
    lines = whole[(whole.n_people == middle) & (whole.celebrities == 0)]
    famous = _famous(whole)
    best = paper.panel("G", "power law, 64k individuals, 8k steps")
    last = best[best.x == best.groupby("series").x.transform("max")]
    last = pd.DataFrame({
        "series": "64000, 8k steps", "x": last.series.str.split().str[1].astype(float), "y": last.y
    })  # fmt: skip
    steps, n = f"{base.n_steps} steps of {base.batch_size}", sample_in_words(every.seed.nunique())
    shape, unless = f"{steps}, {n}", f"here, {steps} unless stated, {n}"
    return {
        "Plateau and skew": beside_paper(
            across_seeds(ended, series="series", x="x", y="plateau_end"), theirs,
            title="When the plateau ends, by skew",
            here=f"{unless}; no point where a seed had not left it",
            there="paper, figure 4, one seed, 16k steps of 128", x=("exponent α",) * 2,
            y="end of the plateau (step)", legend="people", markers=True,
        ),
        "Final loss and skew": beside_paper(
            across_seeds(found, series="series", x="x", y="loss"), last,
            title="What is known at the end, by skew", here=unless,
            there="paper, figure G, one seed", x=("exponent α",) * 2,
            y="final attribute loss (nats per value)", legend="people", markers=True,
        ),
        "Curves and skew": beside_paper(
            across_seeds(lines, series="power_law", x="step", y="loss"), best,
            title="Loss over training, by skew", here=f"here, {middle} people, {shape}",
            there="paper, figure G, 64k people, 8k steps", legend="α",
            baselines=(lines.baseline.mean(), paper.NO_KNOWLEDGE),
        ),
        "Curves and celebrities": beside_paper(
            across_seeds(famous, series="series", x="step", y="loss"),
            _without_prefix(paper.panel("H", "right")),
            title="Loss over training, by how much more often celebrities are met",
            here=f"here, {famous.n_people.iloc[0]} people, "
            f"{famous.celebrities.max()} of them celebrities, {shape}",
            there="paper, figure H, 64k people, 4k celebrities, 8k steps",
            legend="weight",
            baselines=(famous.baseline.mean(), paper.NO_KNOWLEDGE),
        ),
        "Accuracy by frequency": _by_frequency(tables["distributions_by_frequency"], middle),
    }  # fmt: skip


def _budget(table: pd.DataFrame) -> pd.Series:
    """The number of people, and the number of steps where it is not the largest."""
    people = table.n_people.astype(str)
    return people.where(_has_all_steps(table), people + ", " + table.n_steps.astype(str) + " steps")


def _has_all_steps(table: pd.DataFrame) -> pd.Series:
    """Whether each run was given the whole budget of steps."""
    return table.n_steps == table.n_steps.max()


def _famous(curve: pd.DataFrame) -> pd.DataFrame:
    """Curves of the population with celebrities, at the most common number of celebrities."""
    n = curve[curve.celebrities > 0].n_people.iloc[0]
    count = curve[curve.celebrities > 0].celebrities.mode()[0]
    alike = (curve.n_people == n) & (curve.power_law == 0) & curve.celebrities.isin([0, count])
    name = curve.celebrity_weight.map("{:g}".format).where(curve.celebrities > 0, "uniform")
    return curve.assign(series=name)[alike]


def _without_prefix(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(series=table.series.str.extract(r" w(\d+)")[0])


def _by_frequency(table: pd.DataFrame, n_people: int) -> go.Figure:
    of = (table.n_people == n_people) & (table.celebrities == 0) & _has_all_steps(table)
    shown = table[of]
    lines = shown.groupby(["power_law", "bin"]).mean(numeric_only=True).reset_index()
    figure = go.Figure()
    for alpha, line in lines.groupby("power_law"):
        figure.add_trace(
            go.Scatter(
                x=line.biographies_a_person,
                y=line.accuracy,
                mode="lines+markers",
                name=f"{alpha:g}",
                customdata=line.n,
                hovertemplate="%{x:.0f} biographies: %{y:.3f} of the values, %{customdata} people",
            )
        )
    return with_title(
        figure,
        "Accuracy on people, by how often they were sampled",
        f"{n_people} people in bins of equal width, {shown.n_steps.max()} steps; means over n = "
        f"{shown.seed.nunique()} (seeds); uniform sampling: all alike",
        xaxis={"title": "biographies per person, expected, whole training", "type": "log"},
        yaxis={"title": "attribute accuracy (share of values)", "range": [-0.02, 1.02]},
        legend={"title": "exponent α"},
        width=760,
        height=460,
    )


def said(tables: dict[str, pd.DataFrame]) -> str:
    """The findings in words."""
    every, lines = tables["distributions"], []
    gaps = {at: table.set_index("measure") for at, table in
            tables["distributions_differences"].groupby(list(FIELDS[:-1]))}  # fmt: skip
    for at, table in every.groupby(list(FIELDS[:-1])):
        n, n_steps, alpha, k, weight = at
        who = f"α = {alpha:g}" if not k else f"{k} of them with weight {weight:g}"
        line = f"{n} people, {n_steps} steps, {who}: {in_words(table)}"
        if at in gaps:
            loss, accuracy = (gaps[at].loc[measure] for measure in ("loss", "accuracy"))
            line += f"; less uniform sampling, same seeds: loss {difference_in_words(loss)}, "
            line += f"accuracy {difference_in_words(accuracy, 3)}"
        lines.append(line)
    if (said := holm_in_words(tables["distributions_differences"])) is not None:
        lines.append(f"differences from uniform sampling: {said}")
    for (n, n_steps), table in every[every.celebrities == 0].groupby(["n_people", "n_steps"]):
        best = table.loc[table.groupby("seed").loss.idxmin()].power_law
        lines.append(
            f"{n} people, {n_steps} steps: final loss lowest at α = "
            f"{', '.join(f'{alpha:g}' for alpha in best)} by seed"
        )
    return "\n".join(lines)
