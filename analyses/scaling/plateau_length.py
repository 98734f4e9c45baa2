"""How does the length of the plateau grow with the number of people, and what else changes it?

The paper's figure 2 (right) and figure C: runs that differ in the number of people and the seed,
and runs that differ from the base in one of batch size, width and learning rate.
"""

from dataclasses import asdict

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses import paper
from analyses.beside_paper import across_seeds, beside_paper, with_title
from analyses.options import StudyConfig
from analyses.studies import Study, curves, in_words, outcomes, sample_in_words, trained, variants
from interp.config import TrainConfig
from interp.dynamics.plateau import format_step
from interp.dynamics.power_law import power_law
from interp.training.run_many import OnStep

SIZES = {
    "smoke": (12, 24, 48),
    "laptop": (80, 160, 320, 640, 1280),
    "paper": (4000, 8000, 16_000, 32_000, 64_000, 128_000, 256_000),
}
SEEDS = {"smoke": 2, "laptop": 3, "paper": 5}
MEASURES = {
    "plateau_end": "steps",
    "plateau_crossing": "steps",
    "knowledge_start": "steps",
    "plateau_end_biographies_a_person": "biographies per person",
}
"""What is fitted: the plateau's end as the paper seems to read it, the same without rounding up to
a checkpoint, and the step from which losses on trained and on held-out people differ.
"""


def study(config: StudyConfig, *, command: str = "", on_step: OnStep) -> Study:
    """The end of the plateau by number of people, with the fitted power law, and under other
    settings.
    """
    sizes = [
        {"n_people": n, "seed": seed}
        for seed in range(SEEDS[config.preset])
        for n in SIZES[config.preset]
    ]
    by_size = variants(config.base, sizes)
    others = variants(config.base, [{}, *other_settings(config.base)])
    folders = trained(config, by_size | others, command=command, on_step=on_step)
    found = curves({name: folders[name] for name in by_size}, by_size)
    ends = outcomes(found)
    robust = outcomes(curves({name: folders[name] for name in others}, others))
    tables = {
        "scaling": ends,
        "scaling_fits": fits(ends),
        "scaling_curves": found[found.split == "train"],
        "scaling_settings": robust,
    }
    return Study(tables, figures(tables, config.base), said(tables))


def other_settings(base: TrainConfig) -> list[dict]:
    """Configurations with one change each, trained on as many biographies as ``base``."""
    rate = base.learning_rate
    return [
        *(_batches(base, factor) for factor in (0.5, 2)),
        {"d_model": base.d_model // 2, "d_mlp": base.d_mlp // 2},
        {"d_model": base.d_model * 2, "d_mlp": base.d_mlp * 2},
        *({"learning_rate": rate * factor} for factor in (0.5, 2)),
    ]


def _batches(base: TrainConfig, factor: float) -> dict:
    steps = ("n_steps", "checkpoint_every", "dense_every", "dense_until")
    changed = {name: max(1, int(getattr(base, name) / factor)) for name in steps}
    return {"batch_size": int(base.batch_size * factor)} | changed


def fits(ends: pd.DataFrame) -> pd.DataFrame:
    """The power law in the number of people: one row per measure, ours and the paper's.

    A size of which a run had not ended is left out: the others are those that ended early. The
    smallest population may have no plateau to speak of; the exponent without it is given too.
    """
    points, rows = paper.panel("2", "right"), []
    theirs = {
        "plateau_end": points.y,
        "plateau_end_biographies_a_person": points.y * paper.BATCH_SIZE / points.x,
    }
    for measure, unit in MEASURES.items():
        whole = ends.groupby("n_people")[measure].transform("count")
        kept = ends[whole == ends.groupby("n_people").seed.transform("size")]
        pairs = {"here": (kept.n_people, kept[measure])}
        if measure in theirs:
            pairs["paper"] = points.x, theirs[measure]
        for whose, (x, y) in pairs.items():
            larger = x > x.min()
            if x.nunique() > 2 and larger.sum() > 2:
                of = {"measure": measure, "unit": unit, "whose": whose, "n": len(x)}
                rest = power_law(*_floats(x[larger], y[larger])).exponent
                law = asdict(power_law(*_floats(x, y)))
                rows.append(of | law | {"exponent_without_smallest": rest})
    return pd.DataFrame(rows)


def _floats(*columns: pd.Series) -> list[np.ndarray]:
    return [column.to_numpy(float) for column in columns]


def figures(tables: dict[str, pd.DataFrame], base: TrainConfig) -> dict[str, go.Figure]:
    """Figures, by section heading."""
    found = tables["scaling_curves"]
    ours = across_seeds(found, series="n_people", x="step", y="loss").sort_values(
        "series", kind="stable"
    )
    theirs = paper.panel("C", "N")
    return {
        "Plateau and population": _law(tables["scaling"], tables["scaling_fits"]),
        "Loss and population": beside_paper(
            ours,
            theirs,
            title="The larger the population, the longer the plateau",
            here=f"here, batch {base.batch_size}, {sample_in_words(found.seed.nunique())}",
            there="paper, figure C, one seed, batch 128",
            legend="people",
            baselines=(found.baseline.mean(), paper.NO_KNOWLEDGE),
        ),
    }


def _law(ends: pd.DataFrame, laws: pd.DataFrame) -> go.Figure:
    points = paper.panel("2", "right")
    figure = go.Figure()
    sets = {
        "here": (ends.n_people, ends.plateau_end, "#1f4e9c"),
        "paper": (points.x, points.y, "#c2571a"),
    }
    for whose, (x, y, color) in sets.items():
        figure.add_trace(
            go.Scatter(x=x, y=y, mode="markers", name=f"{whose}, points", marker={"color": color})
        )
        law = laws[(laws.measure == "plateau_end") & (laws.whose == whose)]
        if len(law):
            law, at = law.iloc[0], np.geomspace(x.min(), x.max(), 30)
            figure.add_trace(
                go.Scatter(
                    x=at, y=law.factor * at**law.exponent, mode="lines", line={"color": color},
                    name=f"{whose}, {_formula(law)}",
                )
            )  # fmt: skip
    return with_title(
        figure,
        "When the plateau ends",
        f"{ends.plateau_end.notna().sum()} runs here, {len(points)} means of 5 seeds in the paper "
        "(figure 2); intervals 95 %",
        xaxis={"type": "log", "title": "people", "exponentformat": "SI"},
        yaxis={
            "type": "log",
            "title": "end of the plateau (optimizer steps)",
            "exponentformat": "SI",
        },
        width=900,
        height=520,
        legend={"x": 0.02, "y": 0.98},
    )


def said(tables: dict[str, pd.DataFrame]) -> str:
    """The findings in words."""
    laws = tables["scaling_fits"]
    lines = [
        f"{law.whose}: {law.measure.replace('_', ' ')} ({law.unit}) = {_formula(law)}, n = {law.n}"
        f"; without the smallest size N^{law.exponent_without_smallest:.2f}"
        for law in laws.itertuples()
    ]
    ends = tables["scaling"]
    for n, table in ends.groupby("n_people"):
        ended = table.plateau_end.dropna()
        at = ", ".join(map(format_step, ended))
        apart = f"checkpoints {format_step(table.resolution.max())} apart"
        left = f"{len(table) - len(ended)} of {len(table)} not left"
        lines.append(f"{n} people: plateau {f'ends at {at}, {apart}; ' if at else ''}{left}")
    for run, table in tables["scaling_settings"].groupby("run", sort=False):
        lines.append(f"{run}, one seed: {in_words(table)}")
    return "\n".join(lines)


def _formula(law) -> str:
    return (
        f"{law.factor:.2g} N^{law.exponent:.2f} [{law.exponent_low:.2f}, {law.exponent_high:.2f}], "
        f"R² = {law.r_squared:.3f}"
    )
