"""Where attention goes while a model is fine-tuned: the paper's figure O.

The statistics of section 4.3 (``interp.localization.attention_statistics``), by layer. They are
scores, not causes: heads whose patterns stay can write something else.
"""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from analyses import paper
from analyses.beside_paper import across_seeds, beside_paper
from analyses.studies import mean_in_words, sample_in_words
from interp.data.batches import evaluation_set
from interp.localization.attention_statistics import STATISTICS, attention_statistics
from interp.suite import load_suite

N_SEQUENCES = 512
"""Biographies over which attention is averaged, as many as the paper's, or all there are."""
TITLES = {
    "last_name_to_name": "Attention from the last token of a name to all other name tokens",
    "attribute_to_name": "Attention from the position before a value to name tokens",
    "attribute_to_text": "Attention from the position before a value to template text",
    "normalised_entropy": "Evenness of attention",
}


def tuned_attention(run: Path, steps: tuple[int, ...], *, device: str = "cpu") -> pd.DataFrame:
    """One row per (step, people, layer): means of ``STATISTICS`` over heads and biographies of old
    and of new people, and the number of biographies ``n``.
    """
    suite, tables = load_suite(run), []
    config = replace(suite.config, n_evaluated=N_SEQUENCES)
    sets = {
        "old": evaluation_set(suite.texts, config, "train"),
        "new": evaluation_set(suite.texts, config, "new"),
    }
    for step in steps:
        model = suite.load(step, device=device)
        for people, biographies in sets.items():
            means = attention_statistics(model, biographies).mean(("head", "biography"))
            table = means.to_dataframe().reset_index()
            tables.append(table.assign(step=step, people=people, n=len(biographies.people)))
    return pd.concat(tables, ignore_index=True)[["step", "people", "n", "layer", *STATISTICS]]


def figures(table: pd.DataFrame, n_new: int) -> dict[str, go.Figure]:
    """Each statistic on old people by layer, beside the paper's."""
    old = table[table.people == "old"]
    n_layers = old.layer.max() + 1
    mine = old.assign(series=[f"layer {layer + 1} of {n_layers}" for layer in old.layer])
    here = f"here, {n_new} new people; {old.n.iloc[0]} biographies of old people, " + (
        sample_in_words(old.seed.nunique())
    )
    return {
        title: beside_paper(
            across_seeds(mine, series="series", x="step", y=statistic),
            paper.panel("O", statistic),
            title=f"{title} during fine-tuning (a score, not a cause)",
            y="entropy ÷ ln(tokens)" if statistic == "normalised_entropy" else "share of attention",
            log_y=False,
            here=here,
            there="paper, figure O, 4k new people, 512 biographies, one seed",
            x=("step of fine-tuning",) * 2,
            legend="layer",
        )
        for statistic, title in TITLES.items()
    }


def said(table: pd.DataFrame) -> list[str]:
    """What attention of the first and of the last layer does, and what changes most, in words."""
    old = table[table.people == "old"]
    last, steps = old.layer.max(), sorted(set(old.step))
    lines = []
    for statistic, layer in (("last_name_to_name", 0), ("attribute_to_name", last)):
        wide = old[old.layer == layer].pivot(index="step", columns="seed", values=statistic)
        values = ", ".join(
            f"{mean_in_words(wide.loc[step].to_numpy(), 3)} at step {step}"
            for step in (steps[0], steps[-1])
        )
        lines.append(f"{statistic.replace('_', ' ')} in layer {layer + 1} of {last + 1}: {values}")
    changes = {}
    for statistic in STATISTICS:
        for layer, of in old.groupby("layer"):
            wide = of.pivot(index="step", columns="seed", values=statistic)
            change = (wide - wide.loc[0]).mean(axis=1)
            step = change.abs().idxmax()
            changes[statistic, layer, step] = (wide.loc[step] - wide.loc[0]).to_numpy()
    (statistic, layer, step), change = max(changes.items(), key=lambda x: abs(x[1].mean()))
    lines.append(
        f"what changes most is {statistic.replace('_', ' ')} in layer {layer + 1} of {last + 1}: "
        f"by {mean_in_words(change, 3)} at step {step}"
    )
    return lines
