"""What a run's results say, in five sentences that need no knowledge of the code."""

import pandas as pd

from interp.data.batches import people_of
from interp.dynamics.plateau import Phases, format_step
from interp.localization.formation import Localization, leaders
from interp.report.overview import PLACE_WORDS, ROLE_WORDS
from interp.suite import Suite

_DOES = {
    "name attention": "carry parts of a name to the next part",
    "memory": "make the value decodable, which it was not before",
    "extraction": "carry what is known about the name to the position that answers",
}


def sentences(
    suite: Suite, metrics: pd.DataFrame | None, phases: Phases, found: Localization
) -> list[str]:
    """Knowledge; name attention, memory, extraction; their order, and how sure all this is."""
    said = [] if metrics is None else [_knowledge(suite, metrics, phases)]
    said += [_mechanism(found, name) for name in _DOES]
    return [*said, _order(found)]


def _knowledge(suite: Suite, metrics: pd.DataFrame, phases: Phases) -> str:
    average = metrics[metrics.attribute == "average"]
    last = average[average.step == average.step.max()].set_index("split")
    known, config = float(last.accuracy["train"]), suite.config
    n = {x: min(people_of(config, x)[1], config.n_evaluated) for x in last.index}
    text = (
        f"Knowledge: at step {average.step.max():,} the model says {known:.1%} of the values of "
        f"people it was trained on (n = {n['train']:,})"
    )
    if "held-out" in last.index:
        unseen = float(last.accuracy["held-out"])
        text += f", and {unseen:.1%} of those of people it never met (n = {n['held-out']:,})"
    if phases.plateau_start < phases.plateau_end:
        start, end = map(format_step, (phases.plateau_start, phases.plateau_end))
        text += (
            f"; on the plateau from step {start} to {end} it knows only how frequent each value is"
        )
    return text + "."


def _mechanism(found: Localization, mechanism: str) -> str:
    table = found.mechanisms
    whole = table[(table.attribute == "all") & (table.mechanism == mechanism)]
    last = whole[(whole.step == whole.step.max()) & whole.named]
    mine = last.sort_values("share", ascending=False)
    what, kind = mechanism.capitalize(), "MLP" if mechanism == "memory" else "head"
    if mine.empty:
        return f"{what}: no {kind} was shown to {_DOES[mechanism]} at the last step."
    best = mine.iloc[0]
    place = PLACE_WORDS.get(best.place, ROLE_WORDS.get(best.place, best.place))
    others = [x for x in dict.fromkeys(mine.component) if x != best.component]
    first = f"{_in_words(best.component)} ({place})"
    names = _listed([first, *map(_in_words, others)])
    does = _DOES[mechanism]
    does = does if others else does.replace("carry", "carries", 1).replace("make", "makes", 1)
    of = whole[(whole.component == best.component) & (whole.place == best.place)]
    text = (
        f"{what}: {names} {does}; {best.share:.0%} of recall is lost [{best.low:.0%}, "
        f"{best.high:.0%}] without {_in_words(best.component)} alone, significantly so from step "
        f"{_for_good(of):,} on"
    )
    text += _attends_since(found, mechanism)
    return text + (_relation(found) if mechanism == "extraction" else "") + "."


def _relation(found: Localization) -> str:
    """The head that carries what is asked for; empty if none was shown to."""
    mine = leaders(found.mechanisms)
    if "relation" not in mine.index:
        return ""
    best = mine.loc["relation"]
    return (
        f"; {_in_words(best.component)} carries which attribute is asked for ({best.share:.0%} "
        f"lost without it [{best.low:.0%}, {best.high:.0%}])"
    )


def _in_words(component: str) -> str:
    """Such as ``head L1H3`` or ``the MLP of layer 3``."""
    if component.endswith("MLP"):
        return f"the MLP of layer {component[1:].split()[0]}"
    return f"head {component}"


def _for_good(of: pd.DataFrame) -> int:
    """The first step from which a component is named at all later ones."""
    of = of.sort_values("step", ascending=False)
    return int(of.step[of.named.cummin()].min())


def _attends_since(found: Localization, mechanism: str) -> str:
    """When the main head's attention was half-way; empty for MLPs and where it has no time."""
    label = f"{mechanism}: in place"
    if mechanism == "memory" or found.formed is None or label not in found.formed.curve.values:
        return ""
    at = found.formed.sel(curve=label)
    if not bool(at.emerged):
        return ""
    spacing = float(at.resolution_midpoint)
    step, low, high = (
        format_step(float(at[x]), spacing) for x in ("midpoint", "midpoint_low", "midpoint_high")
    )
    return (
        f"; its attention was half-way from its first to its last value at step {step} "
        f"[{low}, {high}], between checkpoints {format_step(spacing)} steps apart"
    )


def _order(found: Localization) -> str:
    n, n_steps = found.curves.sizes["fact"], found.curves.sizes["step"]
    sure = (
        f"How sure: n = {n} facts at {n_steps} checkpoint{'s' * (n_steps > 1)} of this one run; "
        "brackets are 95 % intervals over facts, and another run may differ"
    )
    order = found.orders.get("needed") or found.orders.get("in place")
    if not order:
        return f"{sure}; there is no order of formation to report."
    names = " → ".join(label.split(": ")[0] for label in order.labels)
    what = "effects" if found.orders.get("needed") else "scores"
    same = (
        f"the half-way steps of {what} are in the order {names} in {order.share:.0%} of resamples"
    )
    sure_of = "" if order.significant else ", which is not significant"
    return f"{sure}; {same} of the facts{sure_of}."


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
