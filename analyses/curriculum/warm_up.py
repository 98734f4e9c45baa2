"""Which warm-up on few people reduces the loss most, within a budget of steps?

The paper's figures I and K: at first only some people are sampled, then all. A grid of their number
and of warm-up lengths is trained with one seed; its best and the uniform run are then trained again
with fresh seeds, which alone measure the gain: the best of many is partly luck.
"""

import pandas as pd
import plotly.graph_objects as go

from analyses import paper
from analyses.beside_paper import across_seeds, beside_paper, with_title
from analyses.curriculum import CurriculumConfig
from analyses.studies import Study, curves, difference, outcomes, paired, trained, variants
from interp.config import TrainConfig
from interp.training.run_many import OnStep

PEOPLE = {
    "smoke": (1 / 4,),
    "laptop": (1 / 16, 1 / 8, 1 / 4),
    "paper": (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2),
}
STEPS = {
    "smoke": (1 / 4, 1 / 2),
    "laptop": (1 / 8, 1 / 4),
    "paper": (1 / 16, 1 / 8, 3 / 16, 1 / 4, 1 / 2),
}
"""Shares of all people, and of the budget."""
FRESH_SEEDS = {"smoke": 2, "laptop": 3, "paper": 3}


def study(config: CurriculumConfig, *, command: str = "", on_step: OnStep) -> Study:
    """The grid, its best cell, and what that gains over uniform sampling."""
    base, size = config.base, config.preset
    warm = [
        {"warmup_people": round(p * base.n_people), "warmup_steps": round(s * base.n_steps)}
        for p in PEOPLE[size]
        for s in STEPS[size]
    ]
    at = {"command": command, "on_step": on_step}
    grid = variants(config.unchanged, [config.changes | change for change in ({}, *warm)])
    folders = trained(config, grid, **at)
    found = curves(folders, grid)
    cells = outcomes(found)
    best = cells[cells.warmup_people > 0].sort_values("loss").iloc[0]
    chosen = {"warmup_people": int(best.warmup_people), "warmup_steps": int(best.warmup_steps)}
    seeds = [{"seed": base.seed + 1 + i} for i in range(FRESH_SEEDS[size])]
    again = variants(
        config.unchanged, [config.changes | way | seed for seed in seeds for way in ({}, chosen)]
    )
    fresh = outcomes(curves(trained(config, again, **at), again))
    tables = {
        "curriculum": cells,
        "curriculum_gain": gain(fresh),
        "curriculum_curves": found[found.split == "train"],
        "curriculum_fresh_seeds": fresh,
    }
    return Study(tables, figures(tables, base), said(tables, base))


def gain(fresh: pd.DataFrame) -> pd.DataFrame:
    """One row per measure: warm-up beside uniform sampling with the same seeds. ``gain`` is
    positive where the warm-up is better, ``gain_margin`` is half its 95 % interval over seeds;
    ``n_without`` seeds lack the measure in one of the two runs and are left out of both.
    """
    warm = fresh.warmup_people > 0
    rows = []
    for measure, sign in (("loss", -1), ("accuracy", 1), ("plateau_end", -1)):
        pairs = paired(fresh[warm], fresh[~warm], measure)
        whole, less = pairs.dropna(), difference(pairs)
        rows.append({
            "measure": measure, "uniform": whole.other.mean(), "warm_up": whole.one.mean(),
            "gain": sign * less["difference"], "gain_margin": less["margin"],
            "n_seeds": less["n_seeds"], "n_without": less["n_without"],
        })  # fmt: skip
    return pd.DataFrame(rows)


def figures(tables: dict[str, pd.DataFrame], base: TrainConfig) -> dict[str, go.Figure]:
    """Figures, by section heading."""
    cells, found = tables["curriculum"], tables["curriculum_curves"]
    best = cells[cells.warmup_people > 0].sort_values("loss").iloc[0]
    shown = found[(found.warmup_steps == best.warmup_steps) | (found.warmup_people == 0)]
    names = shown.warmup_people.astype(str).where(shown.warmup_people > 0, "uniform")
    theirs = paper.panel("I", "left")
    theirs["series"] = theirs.series.str.split().str[2]
    uniform = paper.panel("G", "power law, 64k individuals, 8k steps")
    uniform = uniform[uniform.series == "alpha 0"].assign(series="uniform")
    shape = f"here, {base.n_people} people, {base.n_steps} steps, n = 1 seed"
    return {
        "Loss over training": beside_paper(
            across_seeds(shown.assign(series=names), series="series", x="step", y="loss"),
            pd.concat([uniform, theirs]),
            title="Loss on all people, by how many are sampled in the warm-up",
            here=f"{shape}, warm-up of {best.warmup_steps:.0f} steps",
            there="paper, figure I, 64k people, 8k steps, warm-up of 1.5k",
            legend="people in the warm-up",
            baselines=(found.baseline.mean(), paper.NO_KNOWLEDGE),
        ),
        "The grid": _grid(cells, base),
    }


def _grid(cells: pd.DataFrame, base: TrainConfig) -> go.Figure:
    warm, uniform = cells[cells.warmup_people > 0], cells[cells.warmup_people == 0].iloc[0]
    table = warm.pivot(index="warmup_people", columns="warmup_steps", values="loss")
    figure = go.Figure(
        go.Heatmap(
            z=table.to_numpy(),
            x=table.columns.astype(str),
            y=table.index.astype(str),
            texttemplate="%{z:.2f}",
            colorscale="RdBu_r",
            zmid=uniform.loss,
            colorbar={"title": "nats per value"},
        )
    )
    return with_title(
        figure,
        "Final attribute loss by warm-up",
        f"{base.n_people} people, {base.n_steps} steps, n = 1 seed per cell; blue is better than "
        f"uniform sampling, {uniform.loss:.2f}",
        xaxis={"title": "steps of the warm-up", "type": "category"},
        yaxis={"title": "people in the warm-up", "type": "category"},
        width=720,
        height=460,
    )


def said(tables: dict[str, pd.DataFrame], base: TrainConfig) -> str:
    """The recommended warm-up and its gain, in words."""
    fresh, won = tables["curriculum_fresh_seeds"], tables["curriculum_gain"].set_index("measure")
    chosen = fresh[fresh.warmup_people > 0].iloc[0]
    loss, accuracy = won.loc["loss"], won.loc["accuracy"]
    sure = abs(loss.gain) > loss.gain_margin
    verdict = "warm up" if sure and loss.gain > 0 else "no warm-up was shown to pay; best was"
    return (
        f"for {base.n_people} people and {base.n_steps} steps of {base.batch_size}: {verdict} on "
        f"{chosen.warmup_people:.0f} people for {chosen.warmup_steps:.0f} steps: final "
        f"loss {loss.warm_up:.2f} instead of {loss.uniform:.2f} nats per value, gain "
        f"{loss.gain:.2f} ± {loss.gain_margin:.2f}; accuracy {accuracy.warm_up:.3f} instead of "
        f"{accuracy.uniform:.3f}, gain {accuracy.gain:.3f} ± {accuracy.gain_margin:.3f} "
        f"(95 %, {loss.n_seeds:.0f} fresh seeds){_edge(tables['curriculum'], chosen)}"
    )


def _edge(cells: pd.DataFrame, chosen: pd.Series) -> str:
    """A warning where the best cell has no neighbour on a side: a better one may lie beyond."""
    warm = cells[cells.warmup_people > 0]
    at = [
        f"{chosen[name]:.0f} {what}"
        for name, what in {"warmup_people": "people", "warmup_steps": "steps"}.items()
        if chosen[name] in (warm[name].min(), warm[name].max())
    ]
    return f"; {' and '.join(at)} is the edge of what was tried" if at else ""
