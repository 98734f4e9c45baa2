"""Training on people whose values change from biography to biography: does a model become less sure
of people it does not know, and what does that cost?

A share of biographies is of such unknown people, either from the start or while a model that knows
its people is fine-tuned on them and on unknown ones. All models are evaluated on the same known
people, the same held-out people whom no run was trained on, and the same unknown people.
"""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from analyses.finetuned_runs import N_STEPS, base_runs, curves_of
from analyses.mitigation.abstaining import abstaining, answers, risk_curves
from analyses.options import StudyConfig
from analyses.studies import difference, paired, trained, with_holm
from interp.config import TrainConfig
from interp.data.batches import UNKNOWN, evaluation_set
from interp.data.drawn_values import prior_confidence
from interp.suite import Suite, load_suite
from interp.training.evaluation import AVERAGE, evaluate
from interp.training.finetune import finetune_config

N_UNKNOWN = {"smoke": 4, "laptop": 32, "paper": 8000}
SHARES = {"smoke": (0.5,), "laptop": (1 / 16, 1 / 4), "paper": (1 / 16, 1 / 4)}
"""Of biographies that are of unknown people."""
N_RESAMPLES = {"smoke": 5, "laptop": 200, "paper": 200}
"""Of people, for intervals."""
LEARNED = 0.95
"""Accuracy on known people from which they count as learned."""
SCRATCH, TUNED = "from the start", "fine-tuning"
DETECTOR = "max_probability"
"""The detector by which trainings are compared."""
MEASURES = (
    *("known_accuracy", "learned_step", "held_out_loss", "held_out_confidence"),
    *("auroc", "aurc", "known_coverage"),
)


def unknown_tables(
    config: StudyConfig, bases: dict[str, Path], at: dict
) -> dict[str, pd.DataFrame]:
    """Curves; final measures; what a threshold on each detector makes of the answers, and its risk
    by coverage; differences from the same training without unknown people.

    Args:
        bases: folders of the trained ``base_runs``.
        at: further arguments of ``trained``.
    """
    runs, about = _runs(config, bases)
    size = config.preset
    folders = bases | trained(config, runs, **at)
    curves = curves_of(folders, about)
    detected, risks, measured = [], [], []
    for run, folder in folders.items():
        suite = load_suite(folder)
        like = replace(suite.config, unknown_people=N_UNKNOWN[size], unknown_share=0.5)
        found = answers(suite.load(suite.steps[-1]), suite.texts, like)
        of_run = abstaining(found, n_resamples=N_RESAMPLES[size], seed=suite.config.seed)
        detected.append(of_run.assign(run=run, **about[run]))
        risks.append(risk_curves(found).assign(run=run, **about[run]))
        train = curves[(curves.run == run) & (curves.split == "train")]
        of_detector = of_run[of_run.detector == DETECTOR].set_index("measure").value
        measured.append(
            {"run": run, **about[run], "baseline": train.baseline.iloc[0]}
            | {"prior_confidence": prior_confidence(suite.texts, suite.config.n_people)}
            | {"learned_step": train.step[train.accuracy >= LEARNED].min()}
            | _final(suite, like)
            | of_detector.to_dict()
        )
    return {
        "mitigation_unknown_curves": curves,
        "mitigation_unknown": pd.DataFrame(measured),
        "mitigation_unknown_differences": differences(pd.DataFrame(measured)),
        "mitigation_abstaining": pd.concat(detected, ignore_index=True),
        "mitigation_abstaining_risk": pd.concat(risks, ignore_index=True),
    }


def _runs(
    config: StudyConfig, bases: dict[str, Path]
) -> tuple[dict[str, TrainConfig], dict[str, dict]]:
    """Trainings with shares of unknown people; what each of them and of the base runs is. A share
    of 0 is the control: the base run, and fine-tuning on nobody but known people.
    """
    size, runs, about = config.preset, {}, {}
    for name, base in base_runs(config).items():
        about[name] = {"seed": base.seed, "training": SCRATCH, "share": 0.0}
        for share in (0.0, *SHARES[size]):
            unknown = {"unknown_people": N_UNKNOWN[size] * (share > 0), "unknown_share": share}
            run = f"finetuned_seed-{base.seed}_unknown-{share:g}"
            runs[run] = finetune_config(
                base, bases[name], base.n_steps, new_people=0, n_steps=N_STEPS[size],
                n_evaluated=base.n_evaluated, **unknown,
            )  # fmt: skip
            about[run] = {"seed": base.seed, "training": TUNED, "share": share}
            if share:
                run = f"{name}_unknown-{share:g}"
                runs[run] = replace(base, **unknown)
                about[run] = {"seed": base.seed, "training": SCRATCH, "share": share}
    return runs, about


def _final(suite: Suite, like: TrainConfig) -> dict[str, float]:
    """At the last checkpoint: accuracy, loss and mean maximum probability of known people, and of
    the held-out and unknown people of ``like``.
    """
    model, found = suite.load(suite.steps[-1]), {}
    for name, split in (("known", "train"), ("held_out", "held-out"), ("unknown", UNKNOWN)):
        table = evaluate(model, evaluation_set(suite.texts, like, split))
        row = table.set_index("attribute").loc[AVERAGE]
        found |= {
            f"{name}_accuracy": row.accuracy,
            f"{name}_loss": row.loss,
            f"{name}_confidence": row.max_probability,
        }
    return found


def differences(measured: pd.DataFrame) -> pd.DataFrame:
    """Each share of unknown people minus none, of the same training, paired by seed: one row per
    (measure, training, share). p values of a measure are adjusted for their number.
    """
    tables = []
    for measure in MEASURES:
        rows = []
        for (training, share), table in measured.groupby(["training", "share"], sort=False):
            if share == 0 or (measure == "learned_step" and training == TUNED):
                continue
            without = measured[(measured.training == training) & (measured.share == 0)]
            known = {"measure": measure, "training": training, "share": share}
            rows.append(known | difference(paired(table, without, measure)))
        tables.append(with_holm(rows))
    return pd.concat(tables, ignore_index=True)
