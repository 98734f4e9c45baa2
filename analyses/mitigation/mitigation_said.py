"""What the study of mitigations found, in sentences."""

import pandas as pd

from analyses.mitigation.abstaining import RISK
from analyses.mitigation.frontier import ALL, COMPARED, KNOWN
from analyses.mitigation.methods import ONLY
from analyses.mitigation.unknown_people import LEARNED, SCRATCH
from analyses.studies import difference_in_words, holm_in_words, mean_in_words

N_SAID = 4
"""How many methods, the best on average, are put into words beside plain fine-tuning."""


def forgetting_said(tables: dict[str, pd.DataFrame]) -> list[str]:
    """Which way has the best frontier, by how much, what it costs, and which ways fail."""
    measured, gaps = tables["mitigation_measures"], tables["mitigation_differences"]
    whole = measured[measured.strength == ALL]
    order = whole.groupby("method").area.mean().sort_values(ascending=False).index
    areas = gaps[gaps.measure == "area"] if len(gaps) else gaps
    best = order[0]
    lines = [
        f"the best frontier on average is that of {best}",
        "area under the frontier: " + ", ".join(_area_said(method, whole) for method in order),
    ]
    lines += [
        _beside(other, order, areas) for other in COMPARED if len(areas) and other in set(order)
    ]
    if len(areas) and (holm := holm_in_words(areas)):
        lines.append(f"areas: {holm}")
    lines += _when_known(measured, order)
    n = whole.seed.nunique()
    missed = whole[whole.old_where_known.isna()].groupby("method", sort=False).size()
    if len(missed):
        words = ", ".join(f"{method} ({count} of {n} seeds)" for method, count in missed.items())
        lines.append(f"new accuracy never reaches {KNOWN} at any strength: {words}")
    costs = tables["mitigation_costs"]
    row = costs[costs.method == best].iloc[-1]
    lines.append(
        f"{best} {row.strength} trains {row.trained_parameters} numbers and needs besides: "
        f"{row.besides}"
    )
    return lines


def _area_said(method: str, whole: pd.DataFrame) -> str:
    return f"{method} {mean_in_words(whole[whole.method == method].area.to_numpy(), 3)}"


def _beside(other: str, order: pd.Index, areas: pd.DataFrame) -> str:
    """Differences in area of the methods that are best on average from ``other``."""
    rows = areas[areas.other == other].set_index("method")
    first = [method for method in order if method in rows.index][:N_SAID]
    gaps = ", ".join(f"{name} {difference_in_words(rows.loc[name], 3)}" for name in first)
    return f"area beside {other}: {gaps}"


def _when_known(measured: pd.DataFrame, order: pd.Index) -> list[str]:
    """Old accuracy when the new people are first known, at the strength where it is highest on
    average among those that get there in every seed.
    """
    single = measured[measured.strength != ALL]
    lines = []
    for method in dict.fromkeys([*order[:N_SAID], *(x for x in order if x == "plain")]):
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
