"""How many sentence templates per fact does training need, and must the order of sentences vary?

The paper's figure A (right): training templates per person and attribute, shuffled or in fixed
order.
"""

import pandas as pd
import plotly.graph_objects as go

from analyses import paper
from analyses.beside_paper import across_seeds, beside_paper
from analyses.options import StudyConfig
from analyses.studies import Study, curves, in_words, outcomes, trained, variants
from interp.config import TrainConfig
from interp.training.run_many import OnStep

COUNTS = {"smoke": (1, 16), "laptop": (1, 2, 4, 8, 16), "paper": (1, 2, 4, 8, 16)}


def study(config: StudyConfig, *, command: str = "", on_step: OnStep) -> Study:
    """Loss on new sentences by number of training templates and order."""
    counts = COUNTS[config.preset]
    changes = [{"n_train_templates": n} for n in counts]
    changes += [{"n_train_templates": counts[-1], "shuffled": False}]
    runs = variants(config.base, changes)
    folders = trained(config, runs, command=command, on_step=on_step)
    found = curves(folders, runs)
    known = found[found.split == "train"]
    ends = outcomes(found)
    tables = {"templates": ends, "templates_curves": known}
    return Study(tables, figures(tables, config.base), said(tables))


def figures(tables: dict[str, pd.DataFrame], base: TrainConfig) -> dict[str, go.Figure]:
    """Figures, by section heading."""
    known = tables["templates_curves"]
    order = known.shuffled.map({True: "shuffled", False: "fixed order"})
    lines = known.assign(series=known.n_train_templates.astype(str) + ", " + order)
    return {
        "Templates": beside_paper(
            across_seeds(lines, series="series", x="step", y="loss"),
            _in_our_words(paper.panel("A", "right")),
            title="Loss on new sentences in random order, by how facts were told",
            here=f"here, {base.n_people} people, n = 1 seed",
            there="paper, figure A, 64k people, one seed",
            legend="templates per person and attribute",
            baselines=(known.baseline.mean(), paper.NO_KNOWLEDGE),
        )
    }


def _in_our_words(table: pd.DataFrame) -> pd.DataFrame:
    table["series"] = table.series.str.replace(" templates per individual", "")
    return table.sort_values("series", key=lambda x: x.str.contains("fixed"), kind="stable")


def said(tables: dict[str, pd.DataFrame]) -> str:
    """The findings in words."""
    return "\n".join(
        f"{n} templates, {'shuffled' if shuffled else 'fixed order'}: {in_words(table)}, on new "
        "sentences in random order"
        for (n, shuffled), table in tables["templates"].groupby(
            ["n_train_templates", "shuffled"], sort=False
        )
    )
