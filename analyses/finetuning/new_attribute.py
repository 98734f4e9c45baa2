"""Fine-tuning on a new attribute of known people, beside fine-tuning on new people.

A model is trained on biographies that never tell of one attribute, and fine-tuned on that attribute
of most of the people. Told *alone*, a biography is one sentence, as the first of any biography is;
told *with the others*, each new fact comes with the five old ones of its person (replay). Old facts
are asked for in biographies that tell of the old attributes only, the new one in biographies of one
sentence: neither is asked for in a context that training had not. A biography of all six is asked
for beside these, to see what such a context does. People whose new attribute is never told are a
control: it can't be learned, and what they lose is not lost for their own new facts.
"""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import qualitative
from plotly.subplots import make_subplots

from analyses.beside_paper import across_seeds, with_title
from analyses.options import StudyConfig
from analyses.studies import mean_in_words, sample_in_words, trained
from interp.config import ATTRIBUTES, TrainConfig
from interp.data.batches import evaluation_set
from interp.report.figures.curves import band
from interp.suite import load_suite
from interp.training.evaluation import evaluate
from interp.training.finetune import finetune_config
from interp.training.packing import select_rows

NEW = "university"
"""No other attribute has values from its pool."""
OLD = tuple(name for name in ATTRIBUTES if name != NEW)
CONTROL = "major"
WAYS = {"alone": (NEW,), "with the others": ATTRIBUTES, "an old one alone": (CONTROL,)}
"""What fine-tuning tells of; the last is a control, in which nothing is new but the short
biographies.
"""
ASKED = {
    "old": (OLD, OLD),
    "new": ((NEW,), (NEW,)),
    "old in six": (ATTRIBUTES, OLD),
    "new in six": (ATTRIBUTES, (NEW,)),
}
"""Facts, by the attributes that the biography tells of and those that are asked for."""
NEW_TOLD = tuple(way for way, told in WAYS.items() if NEW in told)
SHARE_TOLD = 3 / 4
"""Of the people: 160 of them then have 120 new facts, as many as 20 new people have."""


def base_without(base: TrainConfig, preset: str) -> TrainConfig:
    """The runs that are fine-tuned: those of the study, but for the new attribute."""
    if preset == "laptop":
        base = replace(base, n_steps=2000, checkpoint_every=500, dense_until=0)
    return replace(base, attributes=OLD)


def new_attribute(
    config: StudyConfig, base: TrainConfig, seeds: range, n_steps: int, at: dict
) -> pd.DataFrame:
    """What fine-tuning on a new attribute does to it and to the old ones.

    Returns:
        One row per (run, step, facts, people): ``told`` (a key of ``WAYS``), ``seed``; ``facts``
        (old, new, or those in a biography of all six: old in six, new in six); ``people`` (told,
        not told); means over people of ``loss`` (nats per value) and ``accuracy``, and ``n``.
    """
    base = base_without(base, config.preset)
    bases = {f"attribute-base_seed-{seed}": replace(base, seed=seed) for seed in seeds}
    runs, about = {}, {}
    for (name, folder), seed in zip(trained(config, bases, **at).items(), seeds):
        for told, attributes in WAYS.items():
            run = f"attribute_seed-{seed}_{told.replace(' ', '-')}"
            runs[run] = finetune_config(
                bases[name], folder, base.n_steps, new_people=0, n_steps=n_steps,
                n_evaluated=base.n_evaluated, attributes=attributes,
                schedule=(f"{n_steps}:1,1,1,0",),
            )  # fmt: skip
            about[run] = {"run": run, "told": told, "seed": seed}
    folders = trained(config, runs, **at)
    tables = [_over_training(folders[run], config.device).assign(**x) for run, x in about.items()]
    return pd.concat(tables, ignore_index=True)


def _over_training(run: Path, device: str) -> pd.DataFrame:
    suite = load_suite(run)
    config, rows = suite.config, []
    n_told = round(SHARE_TOLD * config.n_people)
    parts = {}
    for told in dict.fromkeys(told for told, _ in ASKED.values()):
        whole = evaluation_set(suite.texts, replace(config, attributes=told), "train")
        first, n = int((whole.people < n_told).sum()), len(whole.people)
        parts[told] = {
            "told": select_rows(whole, 0, first),
            "not told": select_rows(whole, first, n),
        }
    for step in suite.steps:
        model = suite.load(step, device=device)
        for facts, (told, asked) in ASKED.items():
            for people, biographies in parts[told].items():
                found = evaluate(model, biographies).set_index("attribute").loc[list(asked)]
                means = found[["loss", "accuracy"]].mean().to_dict()
                rows.append({"step": step, "facts": facts, "people": people, **means,
                             "n": len(biographies.people)})  # fmt: skip
    return pd.DataFrame(rows)


def figures(table: pd.DataFrame, new_people: pd.DataFrame, n_facts: int) -> dict[str, go.Figure]:
    """Accuracy on old and new facts over fine-tuning, and old against new accuracy, each way of
    telling a new attribute beside new people.

    Args:
        new_people: ``against_new`` of fine-tunings on new people with about as many new facts.
        n_facts: told of the new attribute.
    """
    both = pd.concat([against_new(table), new_people], ignore_index=True)
    n_seeds = both.seed.nunique()
    panels = {"old": "old facts", "new": "new facts"}
    drawn = make_subplots(1, 3, subplot_titles=[*panels.values(), "old against new"])
    for color, (way, mine) in zip(qualitative.D3, both.groupby("way", sort=False)):
        for column, facts in enumerate(panels, 1):
            line = across_seeds(mine, series="way", x="step", y=facts)
            low, high = (line.y + sign * line.margin.fillna(0) for sign in (-1, 1))
            area = band(*(x.to_numpy() for x in (line.x, low, high)), color, group=way)
            drawn.add_trace(area, 1, column)
            drawn.add_scatter(
                x=line.x, y=line.y, mode="lines", name=way, legendgroup=way, row=1, col=column,
                line={"color": color}, showlegend=column == 1,
            )  # fmt: skip
        mean = mine.groupby("step")[["old", "new"]].mean()
        drawn.add_scatter(
            x=mean.new, y=mean.old, mode="lines+markers", legendgroup=way, row=1, col=3,
            showlegend=False, line={"color": color}, marker={"size": 4},
        )  # fmt: skip
    for column, title in enumerate(["step of fine-tuning"] * 2 + ["accuracy, new facts"], 1):
        drawn.update_xaxes(title_text=title, row=1, col=column)
        drawn.update_yaxes(range=[-0.02, 1.02], row=1, col=column)
    drawn.update_yaxes(title_text="share of values right", row=1, col=1)
    note = (
        f"{n_facts} new facts each way; new attribute: {NEW}; {sample_in_words(n_seeds)} over "
        "seeds; right: means over seeds, one point a checkpoint"
    )
    with_title(drawn, "A new attribute of known people, and new people", note, width=1100,
               height=430, margin={"t": 110})  # fmt: skip
    return {"A new attribute": drawn}


def against_new(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy on ``old`` facts of all people and on ``new`` ones that were told, one row per (way,
    seed, step).
    """
    table = table.assign(right=table.accuracy * table.n)
    old = table[table.facts == "old"].groupby(["told", "seed", "step"], sort=False)
    new = table[(table.facts == "new") & (table.people == "told")]
    found = old[["right", "n"]].sum().assign(
        new=new.set_index(["told", "seed", "step"]).accuracy
    ).reset_index()  # fmt: skip
    found["old"] = found.right / found.n
    way = found.told.where(~found.told.isin(NEW_TOLD), "new attribute, " + found.told)
    return found.assign(way=way)[["way", "seed", "step", "old", "new"]]


def said(table: pd.DataFrame, new_people: pd.DataFrame) -> list[str]:
    """What a new attribute costs beside new people, whether the context that facts are asked for in
    matters, and whether who was told of loses more, in words.
    """
    lines, both = [], pd.concat([against_new(table), new_people], ignore_index=True)
    last = both.step.max()
    for way, mine in both.groupby("way", sort=False):
        wide = {x: mine.pivot(index="step", columns="seed", values=x) for x in ("old", "new")}
        for step in dict.fromkeys([s for s in (50,) if s in wide["old"].index] + [last]):
            old, new = (mean_in_words(wide[x].loc[step].to_numpy(), 3) for x in ("old", "new"))
            lines.append(f"{way}, step {step}: accuracy on old facts {old}, on new ones {new}")
    end = table[(table.step == last) & (table.told == "alone")].set_index("seed")
    for facts, asked in (("old", "five"), ("new", "one")):
        told = end[end.people == "told"]
        alone, in_six = (told[told.facts == x].accuracy for x in (facts, f"{facts} in six"))
        change = mean_in_words((in_six - alone).to_numpy(), 3)
        lines.append(
            f"{facts} facts in a biography of six sentences less those in one of {asked}, after "
            f"fine-tuning on {NEW} alone: {change}"
        )
    old = end[end.facts == "old"]
    told, others = (old[old.people == people].accuracy for people in ("told", "not told"))
    difference = mean_in_words((told - others).to_numpy(), 3)
    lines.append(f"old facts of people whose {NEW} was told less those of others: {difference}")
    return lines
