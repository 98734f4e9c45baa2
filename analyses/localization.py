"""Which heads and MLPs do the jobs of factual recall, and when did each form?

The picture to be tested (arXiv 2503.21676, section 4.1): early attention gathers the name at its
last token, middle MLPs turn it into what is known of the person, late attention extracts the value
at the answer position. Every checkpoint of a run is asked the questions of
``interp.localization``; at each, ``jobs.roles`` says who has which role; curves of each job over
training say when it formed.
"""

from dataclasses import dataclass
from functools import partial
from html import escape

import numpy as np
import pandas as pd
import xarray as xr

from interp.config import ATTRIBUTES, Device

ROLES = ("name attention", "memory", "extraction", "relation")
KINDS = ("needed", "in place")


@dataclass(frozen=True)
class LocalizationConfig:
    """Which run to localize, and how thoroughly."""

    ckpt: str
    """A run folder."""
    steps: str = "all"
    """``all``, a list such as ``0,200,1000``, or ``every:4`` for every fourth checkpoint."""
    attributes: tuple[str, ...] = ATTRIBUTES
    """Which attributes the facts are about."""
    facts: int = 128
    """People asked for each attribute."""
    people: int = 640
    """People that a probe is fitted on, for each attribute."""
    out: str | None = None
    """Folder of the results; by default results/localization in the run folder."""
    report: str | None = None
    """The HTML report; by default localization.html in the run folder."""
    device: Device = "auto"
    """auto is CUDA where there is one."""
    seed: int = 0
    """Of the choice of facts, and of shuffled controls."""
    workers: int = 2
    """Checkpoints worked on side by side, each in a process of its own."""
    max_memory: float = 1.0
    """Gigabytes that the activations of a worker may take."""

    def __post_init__(self) -> None:
        for name in ("facts", "people", "workers"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class Localization:
    """What was found in a run."""

    answers: dict[str, xr.Dataset]
    """By question, with a leading ``step``."""
    roles: pd.DataFrame
    """One row a (step, attribute, cell), as ``interp.localization.jobs.roles`` gives them."""
    curves: xr.DataArray
    """(curve, step, fact): each job ``needed`` and ``in place``."""
    formed: xr.Dataset
    """``interp.emergence.emergence`` of the curves."""
    orders: dict
    """``interp.emergence.order`` of the jobs, for each of ``KINDS``."""


def run(config: LocalizationConfig, *, command: str = "", on_step=lambda n_done: None):
    """The suite, and what was found in it; result files that are there already are reused."""
    from interp.model import device_of
    from interp.results import join_steps
    from interp.suite import load_suite, select_steps
    from interp.sweep import digest_of, over_checkpoints

    suite = load_suite(config.ckpt)
    steps = select_steps(suite, config.steps)
    n = len(config.attributes)
    drawn = {"attribute": config.attributes, "seed": config.seed}
    facts = suite.facts(config.facts * n, **drawn)
    n_people = min(config.people, suite.config.n_people)
    people = suite.facts(n_people * n, **drawn)
    asked = {
        "facts": digest_of(facts),
        "people": digest_of(people),
        "n_facts": len(facts),
        "seed": config.seed,
    }
    compute = partial(
        _of_step,
        facts=facts,
        people=people,
        seed=config.seed,
        max_memory=config.max_memory,
        device=device_of(config.device),
    )
    from interp.localization.checkpoint import QUESTIONS

    done = over_checkpoints(
        suite,
        steps,
        QUESTIONS,
        compute,
        out=config.out or suite.path / "results" / "localization",
        asked=asked,
        workers=config.workers,
        command=command,
        on_step=on_step,
    )
    answers = {name: join_steps({step: done[step][name] for step in steps}) for name in QUESTIONS}
    return suite, find(answers)


def _of_step(suite, step: int, questions: list[str], *, facts, people, device: str, **options):
    from interp.localization.checkpoint import localize

    model = suite.load(step, device=device)
    return localize(model, facts, people, questions=questions, **options)


def find(answers: dict[str, xr.Dataset]) -> Localization:
    """Roles, curves and times from the answers."""
    from interp.emergence import emergence, order
    from interp.localization.jobs import roles

    needed, readings = answers["needs"], answers["readings"]
    steps = needed.step.values
    table = pd.concat(
        [roles(needed.sel(step=s), readings.gain.sel(step=s)).assign(step=int(s)) for s in steps],
        ignore_index=True,
    )
    curves = job_curves(answers, table)
    formed = emergence(curves)
    orders = {}
    for kind in KINDS:
        labels = [f"{role}: {kind}" for role in ROLES]
        labels = [x for x in labels if bool(formed.emerged.sel(curve=x))]
        if len(labels) > 1:
            orders[kind] = order(curves.sel(curve=labels), between="curve")
    return Localization(answers, table, curves, formed, orders)


def leaders(table: pd.DataFrame) -> pd.DataFrame:
    """The component with the largest share of each role at the last step, of those named; of those
    not named where nobody is: one row a role.
    """
    last = table[(table.step == table.step.max()) & (table.attribute == "all")]
    last = last[last.kind.isin(["head", "mlp"])]
    rows = []
    for role in ROLES:
        of_role = last[last.role == role]
        named = of_role[of_role.named]
        rows.append((named if len(named) else of_role).nlargest(1, "share"))
    return pd.concat(rows).set_index("role")


def job_curves(answers: dict[str, xr.Dataset], table: pd.DataFrame) -> xr.DataArray:
    """Two curves a job, per fact: ``needed``, nats of ``logit_diff`` lost when no component of the
    model does the job (all heads cut, or all MLPs swapped, at the leader's place); ``in place``, of
    heads the leader's attention along the job's edge, of MLPs how much more often the value can be
    read off after them than before, summed over layers.
    """
    found = leaders(table)
    needed = answers["needs"]
    whole = needed.isel(cell=np.flatnonzero(needed.kind == "all"))
    curves, labels = [], []
    for role in ROLES:
        place = found.place[role]
        at = np.flatnonzero((whole.role.values == role) & (whole.place.values == place))
        curves.append(whole.effect.isel(cell=int(at[0])))
        labels.append(f"{role}: needed")
        if role == "memory":
            gain = answers["readings"].gain.sel(role=place)
            curves.append(gain.sum("layer"))
        else:
            layer, head = (int(x) for x in found.component[role][1:].split("H"))
            pattern = answers["attention"].pattern.sel(edge=place)
            curves.append(pattern.isel(layer=layer, head=head))
        labels.append(f"{role}: in place")
    kept = [
        curve.drop_vars(set(curve.coords) - {"step"}).transpose("step", "fact") for curve in curves
    ]
    return xr.concat(kept, dim="curve").assign_coords(curve=labels)


def report(suite, found: Localization, command: str) -> str:
    """HTML page that leads with when each job formed."""
    from interp.dynamics import phases
    from interp.figures import localization as draw
    from interp.report import anchor, figure_html, page

    average = suite.metrics[
        (suite.metrics.split == "train") & (suite.metrics.attribute == "average")
    ]
    plateau = phases(average.step.to_numpy(), average.loss.to_numpy(), suite.no_knowledge_baseline)
    links = {role: f"#{anchor(_HEADINGS[role])}" for role in ROLES}
    first = draw.timeline(
        found.curves, found.formed, metrics=suite.metrics, phases=plateau, links=links
    )
    sections = [("When", _WHEN + figure_html("timeline", first) + _times(found))]
    for role in ROLES:
        content = _TEXTS[role] + figure_html(
            f"roles-{role.replace(' ', '-')}", draw.roles_over_training(found.roles, role)
        )
        content += figure_html(
            f"attributes-{role.replace(' ', '-')}", draw.roles_by_attribute(found.roles, role)
        )
        if role == "memory":
            content += _memory_figures(found)
        else:
            content += figure_html(
                f"attention-{role.replace(' ', '-')}", _attention_figure(found, role)
            )
        sections.append((_HEADINGS[role], content))
    direct = found.answers["direct"].isel(step=-1)
    sections.append(("Direct effects", figure_html("direct", draw.parts(direct))))
    sections.append(("What was run", _provenance(found, command)))
    return page(
        f"Who recalls facts in {suite.path.resolve().name}, and since when", _lead(found), sections
    )


_HEADINGS = {
    "name attention": "Name attention",
    "memory": "Memory",
    "extraction": "Extraction",
    "relation": "Relation",
}
_WHEN = """
<p><b>Needed</b> (solid): how much is lost when no component does the job: all heads cut along the
job's edge, or all MLPs at its place given the output they have with another name. It can only rise
once something is known. <b>In place</b> (dotted): how far the part looks as it does later, known or
not: the leading head's attention along the edge; for memory, how much more often the value can be
read off after the MLPs than before them. The first is a cause, the second is not. Click on a band
for the evidence.</p>"""
_TEXTS = {
    "name attention": "<p>One head's attention from a name token to the earlier ones is cut off "
    "before the softmax.</p>",
    "memory": "<p>One MLP's output at a token is replaced by what it is with another person's "
    "name. It is a memory only if the value can also be read off better after it than before: an "
    "MLP that is needed and fails there works on the name.</p>",
    "extraction": "<p>One head's attention from the answer position to all name tokens is cut "
    "off.</p>",
    "relation": "<p>One head's attention from the answer position to the words that say what is "
    "asked for is cut off.</p>",
}


def _lead(found: Localization) -> str:
    last = found.roles[
        (found.roles.step == found.roles.step.max())
        & (found.roles.attribute == "all")
        & found.roles.named
    ]
    rows = ""
    for role in ROLES:
        of_role = last[last.role == role].sort_values("share", ascending=False)
        who = "; ".join(
            f"<b>{escape(x.component)}</b> at {escape(x.place)}: {x.share:.2f} "
            f"[{x.low:.2f}, {x.high:.2f}]"
            for x in of_role.itertuples()
        )
        rows += f"<tr><th>{role}</th><td>{who or 'nobody'}</td></tr>"
    unnamed = found.roles[
        (found.roles.step == found.roles.step.max())
        & (found.roles.attribute == "all")
        & (found.roles.role == "memory")
        & (found.roles.kind == "mlp")
        & ~found.roles.named
        & (found.roles.share >= 0.05)
    ]
    others = "; ".join(
        f"{escape(x.component)} at {escape(x.place)} {x.share:.2f}" for x in unnamed.itertuples()
    )
    note = (
        f" MLPs that are needed, after which no value can be read off: {others}." if others else ""
    )
    n = found.curves.sizes["fact"]
    orders = "".join(_in_order(kind, x) for kind, x in found.orders.items())
    return (
        f"<p class='lead'>At step {found.roles.step.max()}, n = {n} facts, share of the logit "
        "difference that is lost without the component, with its 95 % interval over facts; named "
        f"are those that beat their shuffled control.{note}</p><table>{rows}</table>{orders}"
    )


def _in_order(kind: str, found) -> str:
    names = " → ".join(escape(label.split(": ")[0]) for label in found.labels)
    sure = "" if found.significant else "not "
    return (
        f"<p>In order of midpoints, <b>{kind}</b>: {names}; the same order in {found.share:.0%} of "
        f"bootstrap samples of facts; {sure}every step of it is significant (Holm-adjusted p &lt; "
        "0.05, and apart by more than the distance of checkpoints).</p>"
    )


def _times(found: Localization) -> str:
    rows = ""
    for label in found.formed.curve.values:
        x = found.formed.sel(curve=label)
        if bool(x.emerged):
            cells = "".join(
                f"<td>{float(x[name]):.0f} [{float(x[f'{name}_low']):.0f}, "
                f"{float(x[f'{name}_high']):.0f}] ± {float(x[f'resolution_{name}']):.0f}</td>"
                for name in ("onset", "midpoint", "completion")
            )
        else:
            cells = f"<td colspan='3'>no step: {escape(str(x.reason.item()))}</td>"
        rows += f"<tr><th>{escape(str(label))}</th>{cells}</tr>"
    return (
        "<p>Steps, with 95 % bootstrap intervals over facts, and ± the distance of the checkpoints "
        "between which it lies:</p><table><tr><th></th><th>onset</th><th>midpoint</th>"
        f"<th>completion</th></tr>{rows}</table>"
    )


def _memory_figures(found: Localization) -> str:
    from interp.figures import localization as draw
    from interp.report import figure_html

    readings, probes = (found.answers[x].isel(step=-1) for x in ("readings", "probes"))
    own = readings.accuracy.sel(of="all")
    heads = own.sel(reader=[x for x in own.reader.values if x != "unembed"]).max("reader")
    unembed = own.sel(reader="unembed", drop=True)
    best = xr.where(own.role == "final", unembed, heads).transpose(
        "labels", "layer", "site", "role"
    )
    probed = probes.accuracy.sel(of="all")
    panels = {
        "model's own weights": best.sel(labels="real"),
        "the same, shuffled": best.sel(labels="shuffled"),
        "linear probe": probed.sel(labels="real"),
        "probe, shuffled": probed.sel(labels="shuffled"),
    }
    n, n_people = (int(x.n.sel(of="all")) for x in (readings, probes))
    readable = draw.accuracies(
        panels,
        "How often the value can be read off the residual stream, last step",
        f"own weights: at final the unembedding, at names the best head's OV and the unembedding, "
        f"n = {n}; probes: fitted on other people, n = {n_people}",
    )
    severed = found.answers["severed"]
    share = (severed.patched - severed.corrupted).mean("fact") / (
        severed.clean - severed.corrupted
    ).mean("fact")
    last = share.isel(step=-1).sel(role=[x for x in share.role.values if x in best.role.values])
    last = last.expand_dims(site=["resid_pre"]).transpose("frozen", "layer", "site", "role")
    frozen = draw.accuracies(
        {f"{x} frozen": last.sel(frozen=x) for x in last.frozen.values},
        "Share recovered by the clean residual stream, last step",
        f"what is frozen stays as with the other name; n = {severed.sizes['fact']}",
    )
    return figure_html("readable", readable) + figure_html("severed", frozen)


def _attention_figure(found: Localization, role: str):
    from interp.figures import localization as draw

    leader = leaders(found.roles).loc[role]
    layer, head = (int(x) for x in leader.component[1:].split("H"))
    pattern = found.answers["attention"].pattern.isel(layer=layer, head=head)
    kept = [x for x in pattern.edge.values if x != "final ← names of all sentences"]
    return draw.lines(
        {str(edge): pattern.sel(edge=edge) for edge in kept},
        f"Where {leader.component} looks",
        f"share of attention, mean over n = {pattern.sizes['fact']} facts; not a cause",
        "share of attention",
    )


def _provenance(found: Localization, command: str) -> str:
    attrs = found.answers["needs"].attrs
    rows = {
        "command": command,
        "asked": attrs.get("request", ""),
        "made by": attrs.get("made_by", ""),
    }
    body = "".join(
        f"<tr><th>{name}</th><td><code>{escape(text)}</code></td></tr>"
        for name, text in rows.items()
    )
    return f"<table>{body}</table>"
