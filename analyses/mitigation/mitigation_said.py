"""What the study of mitigations found, in sentences."""

import pandas as pd

from analyses.mitigation.abstaining import RISK
from analyses.mitigation.frontier import ALL, COMPARED, KNOWN
from analyses.mitigation.methods import ONLY
from analyses.mitigation.unknown_people import LEARNED, SCRATCH
from analyses.studies import difference_in_words, holm_in_words, mean_in_words


def forgetting_said(tables: dict[str, pd.DataFrame]) -> list[str]:
    """Which way has the best frontier, by how much, what it costs, and which ways fail."""
    measured, gaps = tables["mitigation_measures"], tables["mitigation_differences"]
    whole = measured[measured.strength == ALL]
    order = whole.groupby("method").area.mean().sort_values(ascending=False).index
    areas = gaps[gaps.measure == "area"] if len(gaps) else gaps
    lines = [_method_said(method, whole, areas) for method in order]
    best = order[0]
    lines.insert(0, f"the best frontier on average is that of {best}")
    if len(areas) and (holm := holm_in_words(areas)):
        lines.append(f"areas: {holm}")
    lines += _when_known(measured, order)
    n = whole.seed.nunique()
    missed = whole[whole.old_where_known.isna()].groupby("method", sort=False).size()
    if len(missed):
        words = ", ".join(f"{method} ({count} of {n} seeds)" for method, count in missed.items())
        lines.append(f"new accuracy never reaches {KNOWN} at any strength: {words}")
    for row in tables["mitigation_costs"].query("method == @best").itertuples():
        lines.append(
            f"{_named(best, row.strength)} trains {row.trained_parameters} numbers and needs "
            f"besides: {row.besides}"
        )
    return lines


def _method_said(method: str, whole: pd.DataFrame, areas: pd.DataFrame) -> str:
    values = whole[whole.method == method].area.to_numpy()
    said = f"{method}: area under the frontier {mean_in_words(values, 3)}"
    for other in COMPARED:
        rows = areas[(areas.method == method) & (areas.other == other)] if len(areas) else areas
        for row in rows.itertuples():
            said += f", {difference_in_words(row, 3)} beside {other}"
    return said


def _when_known(measured: pd.DataFrame, order: pd.Index) -> list[str]:
    """Old accuracy when the new people are first known, at the strength where it is highest on
    average among those that get there in every seed.
    """
    single = measured[measured.strength != ALL]
    lines = []
    for method in order:
        reached = {
            strength: table
            for strength, table in single[single.method == method].groupby("strength", sort=False)
            if table.known_step.notna().all()
        }
        if not reached:
            continue
        strength = max(reached, key=lambda x: reached[x].old_when_known.mean())
        table = reached[strength]
        lines.append(
            f"{_named(method, strength)}: when new accuracy is first {KNOWN} or more, at step "
            f"{mean_in_words(table.known_step.to_numpy(), 0)}, old accuracy is "
            f"{mean_in_words(table.old_when_known.to_numpy(), 3)}; at the end old "
            f"{mean_in_words(table.final_old.to_numpy(), 3)}, new "
            f"{mean_in_words(table.final_new.to_numpy(), 3)}"
        )
    return lines


def _named(method: str, strength: str) -> str:
    return method if strength == ONLY else f"{method} {strength}"


def hallucination_said(tables: dict[str, pd.DataFrame]) -> list[str]:
    """What training with unknown people does to confidence and abstaining, and what it costs."""
    measured, gaps = tables["mitigation_unknown"], tables["mitigation_unknown_differences"]
    lines = [
        f"answering by the frequencies of values has the loss {measured.baseline.mean():.2f} and "
        f"the mean maximum probability {measured.prior_confidence.mean():.3f}"
    ]
    for (training, share), table in measured.groupby(["training", "share"]):
        said = {
            name: mean_in_words(table[name].to_numpy(), digits) for name, digits in _DIGITS.items()
        }
        learned = table.learned_step.dropna().to_numpy()
        step = f" ({LEARNED} reached in {len(learned)} of {len(table)} seeds"
        step += f", first at step {mean_in_words(learned, 0)})" if len(learned) else ")"
        lines.append(
            f"{training}, {share:g} of biographies of unknown people: accuracy on known people "
            f"{said['known_accuracy']}{step if training == SCRATCH else ''}; held-out people: loss "
            f"{said['held_out_loss']}, maximum probability {said['held_out_confidence']}; unknown "
            f"people: {said['unknown_loss']}, {said['unknown_confidence']}; AUROC of known against "
            f"held-out {said['auroc']}, area under risk and coverage {said['aurc']}, known people "
            f"answered at {RISK:.0%} risk {said['known_coverage']}"
        )
    for measure, table in gaps.groupby("measure", sort=False):
        if holm := holm_in_words(table):
            words = ", ".join(
                f"{difference_in_words(x, 3)} ({x.training}, {x.share:g})"
                for x in table.itertuples()
            )
            lines.append(f"{measure}, less without unknown people: {words}; {holm}")
    return lines


_DIGITS = {"known_accuracy": 3, "held_out_loss": 2, "held_out_confidence": 3, "unknown_loss": 2,
           "unknown_confidence": 3, "auroc": 3, "aurc": 3, "known_coverage": 3}  # fmt: skip
