"""Is it attention that ends the plateau?

The paper's figures 3 (middle), D and W: models trained from the same initial weights on the same
batches, but by the attention patterns that another run had at some step (``interp.training.
attention_patching``). ``from the start``: patterns of a run on all people. ``frozen``: the model's
own patterns from the step at which patching starts, on and on. ``few people``: patterns of a run
that met only a quarter of the people.
"""

from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from analyses import paper
from analyses.beside_paper import beside_paper
from analyses.config import StudyConfig
from analyses.studies import Study, curves, in_words, outcomes, trained, variants
from interp.config import TrainConfig
from interp.training.runs import OnStep

REFERENCES = {
    "smoke": (0, 4, 12),
    "laptop": (0, 60, 120, 240, 500, 1000, 2000),
    "paper": (0, 500, 1000, 2000, 4000, 8000, 16_000),
}
FROZEN = {"smoke": (4,), "laptop": (120, 240, 500), "paper": (500, 1000, 2000, 4000, 8000)}
FEW = {"smoke": (4,), "laptop": (60, 120, 240), "paper": (1000, 2000, 3000, 5000, 16_000)}
SHARE_OF_FEW = 4


def study(config: StudyConfig, *, command: str = "", on_step: OnStep) -> Study:
    """Loss over training and at its end, by the step of the reference."""
    base, size = config.base, config.preset
    few = {"warmup_people": base.n_people // SHARE_OF_FEW, "warmup_steps": base.n_steps}
    references = variants(base, [{}, few])
    at = {"command": command, "on_step": on_step}
    whole, of_few = trained(config, references, keep_all=True, **at).values()
    kinds = {
        "from the start": [_patched(whole, step) for step in REFERENCES[size]],
        "frozen": [_patched(whole, step, start=step) for step in FROZEN[size]],
        "few people": [_patched(of_few, step) for step in FEW[size]],
    }
    runs = {kind: variants(base, changes) for kind, changes in kinds.items()}
    folders = trained(config, {k: v for of in runs.values() for k, v in of.items()}, **at)
    runs["none"] = {"base": references["base"]}
    folders["base"] = whole
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
    return Study(tables, figures(tables, base), said(tables))


def _patched(reference: Path, step: int, *, start: int = 0) -> dict:
    return {"reference": str(reference.resolve()), "reference_step": step, "start_step": start}


def figures(tables: dict[str, pd.DataFrame], base: TrainConfig) -> dict[str, go.Figure]:
    """By heading."""
    found, ends = tables["attention_patching_curves"], tables["attention_patching"]
    known = found[found.split == "train"].rename(columns={"step": "x", "loss": "y"})
    shape = f"here, {base.n_people} people, n = 1 seed"
    baselines = (found.baseline.mean(), paper.NO_KNOWLEDGE)
    start = known[known.kind.isin(["from the start", "none"])]
    names = start.reference_step.astype(str).where(start.kind != "none", "no patching")
    paper_curves = paper.panel("3", "middle")
    paper_curves["series"] = paper_curves.series.str.removeprefix("reference step ")
    paper_base = paper.panel("2", "left").assign(series="no patching")
    finals = ends[ends.kind != "none"].rename(
        columns={"kind": "series", "reference_step": "x", "loss": "y"}
    )
    return {
        "Training by a reference's attention": beside_paper(
            start.assign(series=names),
            pd.concat([paper_curves, paper_base]),
            title="Loss of models trained by the attention of a reference",
            here=shape,
            there="paper, figure 3, 64k people, one seed",
            x=("optimizer step",) * 2,
            y="attribute loss (nats a value)",
            legend="step of the reference",
            baselines=baselines,
        ),
        "Final loss by reference": beside_paper(
            finals,
            _papers_finals(),
            title="What is known at the end, by the step of the reference",
            here=shape,
            there="paper, figures 3 and W",
            x=("step of the reference (of its own training)",) * 2,
            y="final attribute loss (nats a value)",
            legend="patterns",
            baselines=baselines,
            markers=True,
        ),
    }


def _papers_finals() -> pd.DataFrame:
    """Figure 3's ends; and figure W's, of a reference whose people came in eight groups."""
    curves = paper.panel("3", "middle")
    last = curves[curves.x == curves.x.max()]
    start = pd.DataFrame({
        "series": "from the start", "x": last.series.str.split().str[-1].astype(int), "y": last.y
    })  # fmt: skip
    return pd.concat([start, paper.FIGURE_W.assign(series="8 groups in turn")])


def said(tables: dict[str, pd.DataFrame]) -> str:
    """What was found, for reading."""
    ends = tables["attention_patching"]
    lines = []
    for row in ends.itertuples():
        how = f"{row.kind}, reference step {row.reference_step}"
        how = "no patching" if row.kind == "none" else how
        lines.append(f"{how}: {in_words(row)}")
    return "\n".join(lines)
