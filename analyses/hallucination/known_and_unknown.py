"""When does a model begin to hallucinate about people it was never told of, and what does it say?

The paper's figures 5 (left) and M over the checkpoints of runs of several seeds: known people,
people held out, and people constructed to share one or two parts of their name with known ones; how
well known people can be told from unknown ones, and which components make a confident falsehood.
"""

from dataclasses import replace

import pandas as pd
import plotly.graph_objects as go

from analyses.hallucination import behaviour, behaviour_figures, causes, detection
from analyses.options import StudyConfig
from analyses.studies import Study, trained
from interp.config import TrainConfig
from interp.training.run_many import OnStep

SEEDS = {"smoke": 2, "laptop": 3, "paper": 3}


def base_of(config: StudyConfig) -> TrainConfig:
    """The runs: at laptop size with four layers, more held-out people, and so long that nearly all
    known people are known in the end.
    """
    if config.preset != "laptop":
        return config.base
    return replace(config.base, n_layers=4, n_steps=4000, n_held_out=256)


def study(config: StudyConfig, *, command: str = "", on_step: OnStep) -> Study:
    """Behaviour over training; detection and causes of each run."""
    base = base_of(config)
    runs = {
        f"hallucination_seed-{seed}": replace(base, seed=seed)
        for seed in range(base.seed, base.seed + SEEDS[config.preset])
    }
    folders = trained(config, runs, keep_all=True, command=command, on_step=on_step)
    tables = behaviour.tables(folders, config)
    for of_run in (detection.detection_of_run, causes.causes_of_run):
        tables |= _of_seeds([of_run(folder, config.device) for folder in folders.values()], runs)
    return Study(tables, figures(tables, base), said(tables))


def _of_seeds(
    found: list[dict[str, pd.DataFrame]], runs: dict[str, TrainConfig]
) -> dict[str, pd.DataFrame]:
    """Tables of all runs together, with the column ``seed``."""
    seeds = [run.seed for run in runs.values()]
    return {
        name: pd.concat(
            [tables[name].assign(seed=seed) for tables, seed in zip(found, seeds)],
            ignore_index=True,
        )
        for name in found[0]
    }


def figures(tables: dict[str, pd.DataFrame], base: TrainConfig) -> dict[str, go.Figure]:
    """Figures, by section heading."""
    drawn = behaviour_figures.figures(tables, base)
    return drawn | detection.figures(tables) | causes.figures(tables)


def said(tables: dict[str, pd.DataFrame]) -> str:
    """The findings in words."""
    return "\n".join([*behaviour.said(tables), detection.said(tables), causes.said(tables)])
