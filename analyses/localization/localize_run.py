"""Localizes a run: computes the answers of its checkpoints, reuses stored ones, and writes the
page.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from analyses.localization import LocalizationConfig, in_depth, sections, tables
from analyses.localization.questions import asked_in_depth, evidence
from interp.data.facts import FactSet
from interp.files import check_page, check_writable, write_bytes
from interp.localization.formation import Localization, leaders
from interp.model.decoder import device_of
from interp.report.page import Section, page, repeated_weights_note
from interp.results.localize import digest_of, localizable, localize, results_of
from interp.results.sweep import over_checkpoints
from interp.suite import Suite, facts_or_fewer, load_suite, select_steps


def run_and_report(config: LocalizationConfig, *, command: str, bar) -> str:
    """The components of each mechanism, and the path of the report that was written."""
    suite = load_suite(config.ckpt)
    total = len(select_steps(suite, config.steps))
    target = Path(config.report or suite.page("localization"))
    check_writable(Path(results_of(suite, config.out))), check_page(target)
    task = bar.add_task("localizing, checkpoint", total=total + 1)
    facts, people = _asked_about(suite, config)
    found = _localization(
        suite,
        config,
        facts,
        people,
        command=command,
        on_step=lambda n_done: bar.update(task, completed=n_done),
    )
    write_bytes(target, report(suite, found, command).encode())
    about = f"{facts}\n" if config.facts_csv else ""
    return f"{about}{tables.roles_text(found)}\nreport: {target}  (open it in a browser)"


def run(
    config: LocalizationConfig,
    *,
    command: str = "",
    on_step: Callable[[int], None] = lambda n_done: None,
) -> tuple[Suite, Localization]:
    """The suite and its localization, with what is asked of the last checkpoint only; result files
    that already exist are reused.
    """
    suite = load_suite(config.ckpt)
    about = _asked_about(suite, config)
    return suite, _localization(suite, config, *about, command=command, on_step=on_step)


def _localization(
    suite: Suite,
    config: LocalizationConfig,
    facts: FactSet,
    people: FactSet | None,
    *,
    command: str,
    on_step: Callable[[int], None],
) -> Localization:
    steps = select_steps(suite, config.steps)
    device = device_of(config.device)
    options = {"seed": config.seed, "max_memory": config.max_memory, "device": device}
    where = {"out": results_of(suite, config.out), "command": command}
    found = localize(
        suite,
        facts,
        people=people,
        steps=steps,
        workers=config.workers,
        on_step=on_step,
        **where,
        **options,
    )
    leading = leaders(found.mechanisms)[["component", "place"]].to_dict("index")
    asked = {"people": digest_of(people), "seed": config.seed, "leading": leading}
    depth = {}
    for question in asked_in_depth(leading, has_people=people is not None):
        of_last = partial(in_depth.answer, facts=facts, leading=leading, **options)
        compute, name = partial(of_last, compute=question.compute), question.name
        last = {"facts": facts, "options": asked, "device": device}
        done = over_checkpoints(suite, steps[-1:], [name], compute, **last, **where)
        depth[name] = done[steps[-1]][name]
    on_step(len(steps) + 1)
    return replace(found, depth=depth)


def _asked_about(suite: Suite, config: LocalizationConfig) -> tuple[FactSet, FactSet | None]:
    """The facts, and those that probes are fitted on, of a run's people; None with a file."""
    if config.facts_csv:
        asked = {"n": config.facts, "relations": config.attributes, "seed": config.seed}
        return localizable(suite.read_facts(config.facts_csv, **asked)), None
    named = config.attributes or suite.texts.attributes
    n, drawn = len(named), {"attribute": named, "seed": config.seed}
    facts = facts_or_fewer(suite, config.facts * n, **drawn)
    n_people = min(config.people, suite.config.n_people) if suite.config else config.people
    if suite.own_templates is None:
        return facts, suite.facts(n_people * n, **drawn)
    return localizable(facts), suite.facts(n_people * n, fewer=True, **drawn)


def report(suite: Suite, found: Localization, command: str) -> str:
    """HTML page that leads with the components of each mechanism and when it formed."""
    content = [
        Section("When", sections.when(suite, found)),
        *evidence(found),
        Section("What was run", tables.provenance(found, command)),
    ]
    lead = [*tables.lead(found), *repeated_weights_note(found.answers)]
    return page(f"Which components recall facts in {suite.name}, and since when", lead, content)
