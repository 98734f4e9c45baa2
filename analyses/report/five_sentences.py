"""What a run's results say, in five sentences that need no knowledge of the code."""

import pandas as pd

from interp.data.batches import people_of
from interp.dynamics.plateau import Phases, format_step
from interp.localization.formation import Localization, leaders
from interp.report.overview import PLACE_WORDS, ROLE_WORDS
from interp.suite import Suite

_DOES = {
    "name attention": "carry parts of a name to the next part",
    "memory": "write the value, which can't be read before",
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
    others = mine[mine.component != best.component].drop_duplicates("component")
    first = f"{_in_words(best.component)} ({place}: {_share(best)} lost without it)"
    names = [first, *(f"{_in_words(x.component)} ({_share(x)})" for x in others.itertuples())]
    does = _DOES[mechanism]
    if others.empty:
        does = does.replace("carry", "carries", 1).replace("write", "writes", 1)
    of = whole[(whole.component == best.component) & (whole.place == best.place)]
    all_there = whole[
        (whole.step == whole.step.max()) & (whole.kind == "all") & (whole.place == best.place)
    ].iloc[0]
    name = _in_words(best.component)
    text = (
        f"{what}: {_listed(names)} {does}; without all {kind}s there {_share(all_there)} of recall "
        f"is lost{_half_way(found, mechanism, best.component)}; {name} passes the test at every "
        f"checkpoint from step {_for_good(of):,} on"
    )
    return text + (_relation(found) if mechanism == "extraction" else "") + "."


def _share(of) -> str:
    return f"{of.share:.0%} [{of.low:.0%}, {of.high:.0%}]"


def _relation(found: Localization) -> str:
    """The head that carries what is asked for; empty if none was shown to."""
    mine = leaders(found.mechanisms)
    if "relation" not in mine.index:
        return ""
    best = mine.loc["relation"]
    return (
        f"; {_in_words(best.component)} ({_share(best)} lost without it) carries which attribute "
        f"is asked for{_half_way(found, 'relation', best.component)}"
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


def _half_way(found: Localization, mechanism: str, component: str) -> str:
    """When the attention of the main head was half-way, or for memory how well values can be read.
    An interval narrower than the distance of the checkpoints is not given: between them nothing
    was measured.
    """
    label = f"{mechanism}: in place"
    if found.formed is None or label not in found.formed.curve.values:
        return ""
    at = found.formed.sel(curve=label)
    what = f"the attention of {_in_words(component)}"
    what = "how well the value can be read" if mechanism == "memory" else what
    if not bool(at.emerged):
        return f"; for {what} there is no half-way step ({at.reason.item()})"
    spacing = float(at.resolution_midpoint)
    step, low, high = (
        format_step(float(at[x]), spacing) for x in ("midpoint", "midpoint_low", "midpoint_high")
    )
    wide = float(at.midpoint_high) - float(at.midpoint_low) >= spacing
    interval = f" [{low}, {high}]" if wide else ""
    return (
        f"; {what} was half-way at about step {step}{interval}, between checkpoints "
        f"{format_step(spacing)} steps apart"
    )


def _order(found: Localization) -> str:
    n, n_steps = found.curves.sizes["fact"], found.curves.sizes["step"]
    sure = (
        f"How sure: n = {n} facts at {n_steps} checkpoint{'s' * (n_steps > 1)} of this one run; "
        "brackets are 95 % intervals over facts, and another run may differ; the test asks for at "
        "least 5 % and more than on an unrelated pair of values, which few facts show late"
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
