"""Which way to fine-tune keeps most of old knowledge for the same new knowledge, and at what cost;
and does training on people whose values change make a model less sure of those it does not know?

Every way fine-tunes the models of ``analyses.finetuned_runs`` on the same new people, for as many
steps of as many biographies. Strengths were chosen on one of the seeds.
"""

from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from analyses.finetuned_runs import base_of, curves_of, fine_tunings, trained_bases
from analyses.mitigation import METHODS, UNKNOWN_PEOPLE, MitigationConfig
from analyses.mitigation.frontier import accuracies, differences, mean_frontiers, measures
from analyses.mitigation.methods import cost, ways_of
from analyses.mitigation.mitigation_figures import forgetting_figures, hallucination_figures
from analyses.mitigation.mitigation_said import forgetting_said, hallucination_said
from analyses.mitigation.unknown_people import unknown_tables
from analyses.studies import Study, trained
from interp.config import TrainConfig
from interp.suite import load_suite
from interp.training.run_many import OnStep


def study(config: MitigationConfig, *, command: str = "", on_step: OnStep) -> Study:
    """Fine-tunings by every method and strength; training with unknown people."""
    at = {"command": command, "on_step": on_step}
    base, folders = base_of(config), trained_bases(config, **at)
    tables = {}
    if methods := [name for name in METHODS if name in config.method]:
        tables |= _forgetting(config, folders, methods, base.n_layers, at)
    if UNKNOWN_PEOPLE in config.method:
        tables |= unknown_tables(config, folders, at)
    said = forgetting_said(tables) if methods else []
    said += hallucination_said(tables) if UNKNOWN_PEOPLE in config.method else []
    return Study(tables, figures(tables, base), "\n".join(said))


def _forgetting(
    config: MitigationConfig, bases: dict[str, Path], methods: list[str], n_layers: int, at: dict
) -> dict[str, pd.DataFrame]:
    """Curves of all fine-tunings, what they keep and learn, and what they cost."""
    named = {
        way["name"]: way | {"method": method, "strength": strength}
        for method in methods
        for strength, way in ways_of(method, config.preset, n_layers).items()
    }
    runs, about = fine_tunings(config, bases, named.values())
    folders = trained(config, runs, keep_all=True, **at)
    found = curves_of(folders, about)
    points = accuracies(found)
    measured = measures(points)
    return {
        "mitigation": found,
        "mitigation_measures": measured,
        "mitigation_differences": differences(measured),
        "mitigation_frontiers": mean_frontiers(points),
        "mitigation_costs": _costs(folders, about),
    }


def _costs(folders: dict[str, Path], about: dict[str, dict]) -> pd.DataFrame:
    """What each fine-tuning of the first seed costs."""
    first = min(x["seed"] for x in about.values())
    return pd.DataFrame(
        [
            {"method": x["method"], "strength": x["strength"]}
            | cost(x["method"], load_suite(folders[run]))
            for run, x in about.items()
            if x["seed"] == first
        ]
    )


def figures(tables: dict[str, pd.DataFrame], base: TrainConfig) -> dict[str, go.Figure]:
    """Figures, by section heading."""
    drawn = forgetting_figures(tables) if "mitigation" in tables else {}
    return drawn | (hallucination_figures(tables) if "mitigation_unknown" in tables else {})
