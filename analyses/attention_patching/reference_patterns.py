"""Does the plateau end because attention has formed?

The paper's figures 3 (middle), D and W: models trained from the same initial weights on the same
batches, but by the attention patterns that another run had at some step (``interp.training.
attention_patching``). ``from the start``: patterns of a run on all people. ``frozen``: the model's
own patterns from the step at which patching starts, on and on. ``few people``: patterns of a run
trained on only a quarter of the people.
"""

from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from analyses import paper
from analyses.beside_paper import across_seeds, beside_paper
from analyses.options import StudyConfig
from analyses.studies import (
    Study,
    curves,
    difference,
    difference_in_words,
    in_words,
    outcomes,
    paired,
    sample_in_words,
    trained,
    variants,
    with_holm,
)
from interp.config import TrainConfig
from interp.statistics import format_p
from interp.training.run_many import OnStep

REFERENCES = {
    "smoke": (0, 4, 12),
    "laptop": (0, 60, 120, 240, 500, 1000, 2000),
    "paper": (0, 500, 1000, 2000, 3000, 4000, 5000, 8000, 16_000),
}
FROZEN = {"smoke": (4,), "laptop": (120, 240, 500), "paper": (500, 1000, 2000, 4000, 8000)}
FEW = {"smoke": (4,), "laptop": (60, 120, 240), "paper": (1000, 2000, 3000, 5000, 16_000)}
SHARE_OF_FEW = 4
SEEDS = {"smoke": 2, "laptop": 3, "paper": 1}
"""A reference and what is trained by it begin with the same weights and see the same batches."""


def study(config: StudyConfig, *, command: str = "", on_step: OnStep) -> Study:
    """Loss over training and at its end, by the step of the reference."""
    base, size = config.base, config.preset
    seeds = [{"seed": seed} for seed in range(SEEDS[size])]
    few = {"warmup_people": base.n_people // SHARE_OF_FEW, "warmup_steps": base.n_steps}
    references = {
        "all": variants(base, seeds),
        "few": variants(base, [few | seed for seed in seeds]),
    }
    at = {"command": command, "on_step": on_step}
    of_references = trained(config, _together(references), keep_all=True, **at)
    kinds = {
        "from the start": _patched(references["all"], of_references, REFERENCES[size]),
        "frozen": _patched(references["all"], of_references, FROZEN[size], freeze=True),
        "few people": _patched(references["few"], of_references, FEW[size]),
    }
    runs = {kind: variants(base, changes) for kind, changes in kinds.items()}
    folders = of_references | trained(config, _together(runs), **at)
    runs |= {"none": references["all"], "none, few people": references["few"]}
    found, ends = [], []
    for kind, of_kind in runs.items():
        lines = curves({name: folders[name] for name in of_kind}, of_kind)
        steps = {name: run.reference_step for name, run in of_kind.items()}
        for table, into in ((lines, found), (outcomes(lines), ends)):
            into.append(table.assign(kind=kind, reference_step=table.run.map(steps)))
    tables = {
        "attention_patching": pd.concat(ends, ignore_index=True),
        "attention_patching_curves": pd.concat(found, ignore_index=True),
    }
    tables["attention_patching_differences"] = differences(tables["attention_patching"])
    return Study(tables, figures(tables, base), said(tables))


def _together(runs: dict[str, dict[str, TrainConfig]]) -> dict[str, TrainConfig]:
    return {name: run for of_kind in runs.values() for name, run in of_kind.items()}


def _patched(
    references: dict[str, TrainConfig],
    folders: dict[str, Path],
    steps: tuple[int, ...],
    *,
    freeze: bool = False,
) -> list[dict]:
    """Configuration changes of every run trained with the attention of a reference checkpoint."""
    return [
        {
            "reference": str(folders[name].resolve()),
            "reference_step": step,
            "start_step": step if freeze else 0,
            "seed": run.seed,
        }
        for name, run in references.items()
        for step in steps
    ]


def differences(ends: pd.DataFrame) -> pd.DataFrame:
    """Differences in final loss between runs of the same seed, one row per pair of conditions: see
    ``studies.with_holm``.
    """
    ways = dict(list(ends.groupby(["kind", "reference_step"])))
    pairs = []
    for kind, step in ways:
        if kind == "from the start" and step:
            pairs.append(((kind, step), (kind, 0)))
        elif kind in ("frozen", "few people"):
            pairs.append(((kind, step), ("from the start", step)))
        if kind == "frozen":
            pairs.append(((kind, step), ("none", 0)))
    rows = [
        {"one": _in_words(*one), "other": _in_words(*other)}
        | difference(paired(ways[one], ways[other], "loss"))
        for one, other in pairs
    ]
    return with_holm(rows)


def _in_words(kind: str, step: int) -> str:
    if kind.startswith("none"):
        return kind.replace("none", "no patching")
    return f"{kind}, reference step {step}"


def figures(tables: dict[str, pd.DataFrame], base: TrainConfig) -> dict[str, go.Figure]:
    """Figures, by section heading."""
    found, ends = tables["attention_patching_curves"], tables["attention_patching"]
    known = found[found.split == "train"].rename(columns={"step": "x", "loss": "y"})
    shape = f"here, {base.n_people} people, {sample_in_words(ends.seed.nunique())}"
    baselines = (found.baseline.mean(), paper.NO_KNOWLEDGE)
    start = known[known.kind.isin(["from the start", "none"])]
    names = start.reference_step.astype(str).where(start.kind != "none", "no patching")
    paper_curves = paper.panel("3", "middle")
    paper_curves["series"] = paper_curves.series.str.removeprefix("reference step ")
    paper_base = paper.panel("2", "left").assign(series="no patching")
    finals = ends[~ends.kind.str.startswith("none")].rename(
        columns={"kind": "series", "reference_step": "x", "loss": "y"}
    )
    return {
        "Training by a reference's attention": beside_paper(
            across_seeds(start.assign(series=names), series="series", x="x", y="y"),
            pd.concat([paper_curves, paper_base]),
            title="Loss of models trained by the attention of a reference",
            here=shape,
            there="paper, figure 3, 64k people, one seed",
            legend="step of the reference",
            baselines=baselines,
        ),
        "Final loss by reference": beside_paper(
            across_seeds(finals, series="series", x="x", y="y"),
            _papers_finals(),
            title="What is known at the end, by the step of the reference",
            here=shape,
            there="paper, figures 3 and W",
            x=("step of the reference (of its own training)",) * 2,
            y="final attribute loss (nats per value)",
            legend="patterns",
            baselines=baselines,
            markers=True,
        ),
    }


def _papers_finals() -> pd.DataFrame:
    """Final losses of the paper's Figure 3, and of its Figure W, whose reference saw people in
    eight groups.
    """
    curves = paper.panel("3", "middle")
    last = curves[curves.x == curves.x.max()]
    start = pd.DataFrame({
        "series": "from the start", "x": last.series.str.split().str[-1].astype(int), "y": last.y
    })  # fmt: skip
    return pd.concat([start, paper.FIGURE_W.assign(series="8 groups in turn")])


def said(tables: dict[str, pd.DataFrame]) -> str:
    """The findings in words."""
    lines = []
    for (kind, step), table in tables["attention_patching"].groupby(
        ["kind", "reference_step"], sort=False
    ):
        lines.append(f"{_in_words(kind, step)}: {in_words(table)}")
    found = tables["attention_patching_differences"]
    if found.n_seeds.max() > 1:
        lines.append(
            "differences in final loss, same seeds; ± are 95 % intervals, each for itself, p is "
            "adjusted for their number (Holm):"
        )
        for row in found.itertuples():
            gap = difference_in_words(row)
            lines.append(f"({row.one}) − ({row.other}): {gap}, p {format_p(row.p_holm)}")
    return "\n".join(lines)
