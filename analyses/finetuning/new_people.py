"""What does fine-tuning on new people do to what a model knows of old ones, and where?

The paper's figures 5 and N: a trained model is fine-tuned on new people, without replay of old ones
or with some. Here each fine-tuning is repeated from models of several seeds. Which weights carry
the damage is asked in two ways: by transplants between the models before and after
(``interp.localization.transplants``), and by training nothing but, or all but, a group of weights.
What comes back after a few steps on old people alone was not lost.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses import paper
from analyses.beside_paper import across_seeds, beside_paper
from analyses.finetuning import known_people, new_attribute, roles_kept, tuned_attention
from analyses.finetuning.inside_runs import inside_runs
from analyses.finetuning.weight_shares import group_figure, largest_shares, restricted_groups
from analyses.options import StudyConfig
from analyses.studies import Study, average_metrics, mean_in_words, sample_in_words, trained
from interp.config import LARGEST_WEIGHT, TrainConfig
from interp.training.finetune import finetune_config
from interp.training.run_folder import read_record
from interp.training.run_many import OnStep

SEEDS = {"smoke": 2, "laptop": 3, "paper": 3}
N_STEPS = {"smoke": 10, "laptop": 500, "paper": 4000}
SHARES = {
    "smoke": (1 / 8,),
    "laptop": (1 / 16, 1 / 8, 1 / 4),
    "paper": (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4),
}
"""New people, as shares of the old."""
SHOWN = 1 / 8
"""The share that replay, transplants and restricted training are asked at."""
REPLAY = {"smoke": (0.5,), "laptop": (1 / 32, 1 / 8, 1 / 2), "paper": (1 / 32, 1 / 8, 1 / 2, 2)}
TRANSPLANTED = {
    "smoke": (10,),
    "laptop": (5, 10, 20, 50, 100, 500),
    "paper": (31, 62, 125, 250, 500, 4000),
}
"""Steps of fine-tuning."""
RECOVERED_FROM = {"smoke": (10,), "laptop": (20, 50, 500), "paper": (125, 500, 4000)}
RECOVERY_STEPS = {"smoke": 5, "laptop": 50, "paper": 125}


def base_of(config: StudyConfig) -> TrainConfig:
    """The runs that are fine-tuned: fewer people than other studies have, so that nearly all of
    them are known, and four layers, so that early and late ones can be told apart.
    """
    if config.preset != "laptop":
        return config.base
    return replace(
        config.base, n_people=160, n_held_out=64, n_layers=4, n_steps=2500, n_evaluated=160
    )


def study(config: StudyConfig, *, command: str = "", on_step: OnStep) -> Study:
    """Fine-tunings by number of new people, replay and group of weights; transplants; recovery."""
    at = {"keep_all": True, "command": command, "on_step": on_step}
    base, size = base_of(config), config.preset
    seeds = range(base.seed, base.seed + SEEDS[size])
    bases = {f"finetuned-base_seed-{seed}": replace(base, seed=seed) for seed in seeds}
    of_base = trained(config, bases, **at)
    runs, about = {}, {}
    for (name, folder), seed in zip(of_base.items(), seeds):
        for way in _ways(size, base):
            run = f"finetuned_seed-{seed}_{way['name']}"
            new = max(1, round(way["share"] * base.n_people))
            changes = {
                "n_steps": N_STEPS[size],
                "replay": way["replay"],
                "n_evaluated": base.n_evaluated,
            }
            runs[run] = finetune_config(
                bases[name], folder, base.n_steps, new_people=new,
                mitigation=way["mitigation"], **changes,
            )  # fmt: skip
            about[run] = {"seed": seed, "new_people": new} | way
    folders = trained(config, runs, **at)
    recovery, of_recovery = _recovery(config, folders, about, runs, at)
    found = _curves(folders, about)
    plain = [run for run, x in about.items() if x["kind"] == "new people" and x["share"] == SHOWN]
    tables = {
        "finetuning": found,
        "finetuning_recovery": _curves(recovery, of_recovery),
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
    plain = {"replay": 0.0, "mitigation": "", "share": SHOWN, "kind": "new people"}
    ways = [plain | {"share": share, "name": f"new-{share:g}"} for share in SHARES[size]]
    ways += [
        plain | {"replay": weight, "kind": "replay", "name": f"replay-{weight:g}"}
        for weight in REPLAY[size]
    ]
    groups = restricted_groups(base.n_layers)
    return ways + [
        plain | {"mitigation": f"{how}:{group}", "kind": how, "name": f"{how}-{group}"}
        for how in ("only", "freeze")
        for group in groups
    ]


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


def _curves(folders: dict[str, Path], about: dict[str, dict]) -> pd.DataFrame:
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


def figures(tables: dict[str, pd.DataFrame], base: TrainConfig) -> dict[str, go.Figure]:
    """Figures, by section heading."""
    found, groups = tables["finetuning"], tables["finetuning_transplants"]
    n_seeds = found.seed.nunique()
    shape = f"here, {base.n_people} old people, {sample_in_words(n_seeds)}"
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
    n_new = round(SHOWN * base.n_people)
    note = f"{n_new} new people; mean ± half of the 95 % interval, n = {n_seeds} seeds"
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
    n_facts = round(new_attribute.SHARE_TOLD * base.n_people)
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
    for step in dict.fromkeys([restored.step.min(), restored.step.max()]):
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
