"""Models and fine-tunings that the studies of fine-tuning share, by the names of their runs."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from analyses.options import StudyConfig
from analyses.studies import average_metrics, trained
from interp.config import TrainConfig
from interp.training.finetune import finetune_config
from interp.training.run_folder import read_record

SEEDS = {"smoke": 2, "laptop": 3, "paper": 3}
N_STEPS = {"smoke": 10, "laptop": 500, "paper": 4000}
SHOWN = 1 / 8
"""New people, as a share of the old, where something else is varied."""
REPLAY = {"smoke": (0.5,), "laptop": (1 / 32, 1 / 8, 1 / 2), "paper": (1 / 32, 1 / 8, 1 / 2, 2)}
PLAIN = {"replay": 0.0, "mitigation": "", "share": SHOWN, "kind": "new people",
         "name": f"new-{SHOWN:g}"}  # fmt: skip
"""A way of fine-tuning: replay weight, mitigation, share of new people, what is varied, and how the
run's name ends.
"""


def base_of(config: StudyConfig) -> TrainConfig:
    """The runs that are fine-tuned: fewer people than other studies have, so that nearly all of
    them are known, and four layers, so that early and late ones can be told apart.
    """
    if config.preset != "laptop":
        return config.base
    return replace(
        config.base, n_people=160, n_held_out=64, n_layers=4, n_steps=2500, n_evaluated=160
    )


def base_runs(config: StudyConfig) -> dict[str, TrainConfig]:
    """The models that are fine-tuned, one per seed, by name."""
    base = base_of(config)
    seeds = range(base.seed, base.seed + SEEDS[config.preset])
    return {f"finetuned-base_seed-{seed}": replace(base, seed=seed) for seed in seeds}


def with_replay(weight: float) -> dict:
    """Fine-tuning with replay of old people."""
    return PLAIN | {"replay": weight, "kind": "replay", "name": f"replay-{weight:g}"}


def with_mitigation(mitigation: str, kind: str) -> dict:
    """Fine-tuning by a way of ``interp.training.mitigation``."""
    return PLAIN | {"mitigation": mitigation, "kind": kind, "name": mitigation.replace(":", "-")}


def fine_tunings(
    config: StudyConfig, folders: dict[str, Path], ways: Iterable[dict]
) -> tuple[dict[str, TrainConfig], dict[str, dict]]:
    """Fine-tunings of each base run in each of the ways, and what each is: its seed, its number of
    new people and its way.

    Args:
        folders: of the trained ``base_runs``.
    """
    runs, about = {}, {}
    for name, base in base_runs(config).items():
        for way in ways:
            run = f"finetuned_seed-{base.seed}_{way['name']}"
            new = max(1, round(way["share"] * base.n_people))
            runs[run] = finetune_config(
                base, folders[name], base.n_steps, new_people=new, replay=way["replay"],
                mitigation=way["mitigation"], n_steps=N_STEPS[config.preset],
                n_evaluated=base.n_evaluated,
            )  # fmt: skip
            about[run] = {"seed": base.seed, "new_people": new} | way
    return runs, about


def trained_bases(config: StudyConfig, **options: object) -> dict[str, Path]:
    """Folders of the trained ``base_runs``, which keep all checkpoints."""
    return trained(config, base_runs(config), keep_all=True, **options)


def curves_of(folders: dict[str, Path], about: dict[str, dict]) -> pd.DataFrame:
    """One row per (run, step, split): what the run is, attribute loss (nats per value), accuracy,
    maximum probability, entropy, and the no-knowledge baseline.
    """
    tables = []
    for run, folder in folders.items():
        baseline = np.mean(list(read_record(folder)["no_knowledge_baseline"].values()))
        known = {k: v for k, v in about[run].items() if k != "name"} | {"baseline": baseline}
        tables.append(average_metrics(folder).assign(run=run, **known))
    measures = ["step", "split", "loss", "accuracy", "max_probability", "entropy"]
    return pd.concat(tables, ignore_index=True)[["run", *known, *measures]]
