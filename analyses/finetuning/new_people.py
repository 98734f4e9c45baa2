"""What does fine-tuning on new people do to what a model knows of old ones, and where?

The paper's figures 5 and N: a trained model is fine-tuned on new people, without replay of old ones
or with some. Here each fine-tuning is repeated from models of several seeds. Which weights carry
the damage is asked in two ways: by transplants between the models before and after
(``interp.localization.transplants``), and by training nothing but, or all but, a group of weights.
What comes back after a few steps on old people alone was not lost.
"""

from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from analyses import paper
from analyses.beside_paper import across_seeds, beside_paper
from analyses.finetuned_runs import (
    N_STEPS,
    PLAIN,
    REPLAY,
    SEEDS,
    SHOWN,
    base_of,
    curves_of,
    fine_tunings,
    trained_bases,
    with_mitigation,
    with_replay,
)
from analyses.finetuning import known_people, new_attribute, roles_kept, tuned_attention
from analyses.finetuning.inside_runs import inside_runs
from analyses.finetuning.weight_shares import group_figure, largest_shares, restricted_groups
from analyses.options import StudyConfig
from analyses.studies import Study, mean_in_words, sample_in_words, trained
from interp.config import LARGEST_WEIGHT, TrainConfig
from interp.training.finetune import finetune_config
from interp.training.run_many import OnStep

SHARES = {
    "smoke": (1 / 8,),
    "laptop": (1 / 16, 1 / 8, 1 / 4),
    "paper": (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4),
}
"""New people, as shares of the old."""
TRANSPLANTED = {
    "smoke": (10,),
    "laptop": (5, 10, 20, 50, 100, 500),
    "paper": (31, 62, 125, 250, 500, 4000),
}
"""Steps of fine-tuning."""
RECOVERED_FROM = {"smoke": (10,), "laptop": (20, 50, 500), "paper": (125, 500, 4000)}
RECOVERY_STEPS = {"smoke": 5, "laptop": 50, "paper": 125}


def study(config: StudyConfig, *, command: str = "", on_step: OnStep) -> Study:
    """Fine-tunings by number of new people, replay and group of weights; transplants; recovery."""
    at = {"keep_all": True, "command": command, "on_step": on_step}
    base, size = base_of(config), config.preset
    seeds = range(base.seed, base.seed + SEEDS[size])
    of_base = trained_bases(config, command=command, on_step=on_step)
    runs, about = fine_tunings(config, of_base, _ways(size, base))
    folders = trained(config, runs, **at)
    recovery, of_recovery = _recovery(config, folders, about, runs, at)
    found = curves_of(folders, about)
    plain = [run for run, x in about.items() if x["kind"] == "new people" and x["share"] == SHOWN]
    tables = {
        "finetuning": found,
        "finetuning_recovery": curves_of(recovery, of_recovery),
        "finetuning_known_people": known_people.known_people(config, seeds, N_STEPS[size], at),
        "finetuning_new_attribute": new_attribute.new_attribute(
            config, base, seeds, N_STEPS[size], at
        ),
    } | inside_runs(
        config,
        {run: folders[run] for run in plain},
        {run: about[run]["seed"] for run in plain},
        transplanted=TRANSPLANTED[size],
        localized=RECOVERED_FROM[size],
    )
    return Study(tables, figures(tables, base), said(tables, base))


def _ways(size: str, base: TrainConfig) -> list[dict]:
    """What is varied: number of new people, replay, and groups of weights."""
    ways = [PLAIN | {"share": share, "name": f"new-{share:g}"} for share in SHARES[size]]
    ways += [with_replay(weight) for weight in REPLAY[size]]
    groups = restricted_groups(base.n_layers)
    restricted = (f"{how}:{group}" for how in ("only", "freeze") for group in groups)
    return ways + [with_mitigation(word, word.partition(":")[0]) for word in restricted]


def _recovery(
    config: StudyConfig, folders: dict[str, Path], about: dict, runs: dict, at: dict
) -> tuple[dict[str, Path], dict]:
    """From several steps of the plain fine-tunings, a few steps on old people alone."""
    size, again, of = config.preset, {}, {}
    for run, x in about.items():
        if x["kind"] != "new people" or x["share"] != SHOWN:
            continue
        for step in RECOVERED_FROM[size]:
            name = f"{run}_recovery-{step}"
            again[name] = finetune_config(
                runs[run], folders[run], step, new_people=x["new_people"], replay=LARGEST_WEIGHT,
                n_steps=RECOVERY_STEPS[size], learning_rate=runs[run].learning_rate,
                final_learning_rate=runs[run].learning_rate, n_evaluated=runs[run].n_evaluated,
            )  # fmt: skip
            of[name] = x | {"from_step": step}
    return trained(config, again, **at), of


def figures(tables: dict[str, pd.DataFrame], base: TrainConfig) -> dict[str, go.Figure]:
    """Figures, by section heading."""
    found, groups = tables["finetuning"], tables["finetuning_transplants"]
    n_seeds = found.seed.nunique()
    n_old = round(found.new_people.iloc[0] / found.share.iloc[0])
    shape = f"here, {n_old} old people, {sample_in_words(n_seeds)}"
    by_new = found[found.kind == "new people"]
    by_replay = found[found.kind == "replay"]
    drawn = {}
    for heading, table, series, legend, panel in (
        ("New people", by_new, "new_people", "new people", "top"),
        ("Replay", by_replay, "replay", "replay weight", "bot"),
    ):
        for split, of, what in (("train", "pretraining", "old"), ("new", "finetuning", "new")):
            theirs = paper.panel("N", panel)
            theirs = theirs[theirs.y_name == f"{of}_attribute_loss"].copy()
            theirs["series"] = theirs.series.str.split().str[2]
            ours = table[table.split == split]
            drawn[f"{heading}: loss on {what} people"] = beside_paper(
                across_seeds(ours.assign(series=ours[series]), series="series", x="step", y="loss"),
                theirs,
                title=f"Loss on {what} people while fine-tuning, by {legend}",
                here=shape,
                there="paper, figure N, 64k old people, one seed",
                x=("step of fine-tuning",) * 2,
                legend=legend,
                baselines=(found.baseline.mean(), paper.NO_KNOWLEDGE),
            )
    n_new = round(SHOWN * n_old)
    note = (
        f"{n_new} new people; mean ± half of the 95 % interval, n = {n_seeds} seeds, 1 where no ±"
    )
    before, after = "Weights from before in the fine-tuned model", "Fine-tuned weights"
    for heading, model, of, title in (
        ("Which weights bring old knowledge back", "restored", "old",
         f"{before}: share of lost accuracy that returns"),
        ("Which weights do the damage alone", "damaged", "old",
         f"{after} in the model from before: share of the loss that they make alone"),
        ("Which weights hold the new people", "restored", "new",
         f"{before}: share of new accuracy that goes"),
    ):  # fmt: skip
        drawn[heading] = group_figure(groups, model=model, of=of, title=title, note=note)
    drawn |= tuned_attention.figures(tables["finetuning_attention"], n_new)
    drawn["Roles"] = roles_kept.figure(tables["finetuning_roles"])
    known = tables["finetuning_known_people"]
    drawn |= known_people.figures(known)
    n_facts = round(new_attribute.SHARE_TOLD * n_old)
    of_people = _beside_attribute(found)
    return drawn | new_attribute.figures(tables["finetuning_new_attribute"], of_people, n_facts)


def _beside_attribute(found: pd.DataFrame) -> pd.DataFrame:
    """Accuracy on old and on new people in plain fine-tunings, as ``new_attribute.against_new``
    has it.
    """
    plain = found[(found.kind == "new people") & (found.share == SHOWN)]
    wide = plain.pivot(index=["seed", "step"], columns="split", values="accuracy").reset_index()
    n_new = plain.new_people.iloc[0]
    named = wide.rename(columns={"train": "old"}).assign(way=f"{n_new} new people")
    return named[["way", "seed", "step", "old", "new"]]


def said(tables: dict[str, pd.DataFrame], base: TrainConfig) -> str:
    """What fine-tuning costs, which weights carry it, and what comes back, in words."""
    found, groups = tables["finetuning"], tables["finetuning_transplants"]
    plain = found[(found.kind == "new people") & (found.share == SHOWN)]
    old, new = (
        plain[plain.split == split].pivot(index="step", columns="seed", values="accuracy")
        for split in ("train", "new")
    )
    lines = []
    worst = old.mean(axis=1).idxmin()
    for step in dict.fromkeys([0, *(s for s in (20, 50) if s in old.index), worst, old.index[-1]]):
        lines.append(
            f"step {step}: accuracy on old people {mean_in_words(old.loc[step].to_numpy(), 3)}, on "
            f"new ones {mean_in_words(new.loc[step].to_numpy(), 3)}"
        )
    restored = groups[(groups.model == "restored") & (groups.set == "old") & (groups.group != "")]
    complete = restored.groupby("step").share.apply(lambda x: x.notna().all())
    at = complete.index[complete]  # where something is lost in every run
    for step in dict.fromkeys([*at[:1], *at[-1:]]):
        shares = largest_shares(restored[restored.step == step])
        lines.append(
            f"at step {step} lost accuracy returns with the weights from before of "
            + ", ".join(shares[:4])
        )
    back = tables["finetuning_recovery"]
    back = back[back.split == "train"]
    for start, table in back.groupby("from_step"):
        accuracy = table.pivot(index="step", columns="seed", values="accuracy")
        lines.append(
            f"after step {start}, {accuracy.index[-1]} steps on old people alone: accuracy on them "
            f"from {mean_in_words(accuracy.iloc[0].to_numpy(), 3)} to "
            f"{mean_in_words(accuracy.iloc[-1].to_numpy(), 3)}"
        )
    lines += tuned_attention.said(tables["finetuning_attention"])
    lines += roles_kept.said(tables["finetuning_roles"])
    lines += known_people.said(tables["finetuning_known_people"])
    lines += new_attribute.said(tables["finetuning_new_attribute"], _beside_attribute(found))
    return "\n".join(lines)
