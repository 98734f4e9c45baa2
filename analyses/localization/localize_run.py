"""Localizes a run: computes the answers of its checkpoints, reuses stored ones, and writes the
page.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import xarray as xr

from analyses.localization import LocalizationConfig, in_depth, sections, tables
from analyses.localization.findings import Localization, find, leaders, plateau
from analyses.localization.questions import asked_in_depth, evidence
from interp.data.facts import FactSet
from interp.files import check_page, check_writable, write_bytes
from interp.localization.localize import QUESTIONS, localize
from interp.model.decoder import device_of
from interp.report.page import Section, page, repeated_weights_note
from interp.results.store import join_steps
from interp.results.sweep import facts_digest, over_checkpoints
from interp.suite import Suite, load_suite, select_steps


def run_and_report(config: LocalizationConfig, *, command: str, bar) -> str:
    """The path of the report that was written."""
    suite = load_suite(config.ckpt)
    total = len(select_steps(suite, config.steps))
    target = Path(config.report or suite.path / "localization.html")
    check_writable(Path(_results_of(suite, config))), check_page(target)
    task = bar.add_task("localizing, checkpoint", total=total + 1)
    suite, found = run(config, command=command, on_step=lambda n: bar.update(task, completed=n))
    write_bytes(target, report(suite, found, command).encode())
    return f"report: {target}  (open it in a browser)"


def _results_of(suite: Suite, config: LocalizationConfig) -> str | Path:
    return config.out or suite.path / "results" / "localization"


def run(
    config: LocalizationConfig,
    *,
    command: str = "",
    on_step: Callable[[int], None] = lambda n_done: None,
) -> tuple[Suite, Localization]:
    """The suite and its localization; result files that already exist are reused."""
    suite = load_suite(config.ckpt)
    if suite.config.parallel:
        raise ValueError(
            f"{config.ckpt} has parallel blocks, whose MLP does not read what its attention wrote; "
            "localization needs sequential ones"
        )
    steps = select_steps(suite, config.steps)
    n = len(config.attributes)
    drawn = {"attribute": config.attributes, "seed": config.seed}
    facts = suite.facts(config.facts * n, **drawn)
    people = suite.facts(min(config.people, suite.config.n_people) * n, **drawn)
    device = device_of(config.device)
    asked = {"people": facts_digest(people), "seed": config.seed}
    options = {"seed": config.seed, "max_memory": config.max_memory, "device": device}
    where = {"out": _results_of(suite, config), "facts": facts, "device": device}
    ask = partial(over_checkpoints, suite, command=command, **where)
    compute = partial(_of_step, facts=facts, people=people, **options)
    how = {"options": asked, "workers": config.workers, "on_step": on_step}
    done = ask(steps, list(QUESTIONS), compute, **how)
    answers = {name: join_steps({step: done[step][name] for step in steps}) for name in QUESTIONS}
    found = find(answers, plateau(suite).plateau_end)
    leading = leaders(found.mechanisms)[["component", "place"]].to_dict("index")
    depth, asked = {}, asked | {"leading": leading}
    for question in asked_in_depth(leading):
        of_last = partial(in_depth.answer, facts=facts, leading=leading, **options)
        compute, name = partial(of_last, compute=question.compute), question.name
        depth[name] = ask(steps[-1:], [name], compute, options=asked)[steps[-1]][name]
    on_step(len(steps) + 1)
    return suite, replace(found, depth=depth)


def _of_step(
    suite: Suite,
    step: int,
    questions: list[str],
    *,
    facts: FactSet,
    people: FactSet,
    device: str,
    **options,
) -> dict[str, xr.Dataset]:
    model = suite.load(step, device=device)
    return localize(model, facts, people, questions=questions, **options)


def report(suite: Suite, found: Localization, command: str) -> str:
    """HTML page that leads with the components of each mechanism and when it formed."""
    content = [
        Section("When", sections.when(suite, found)),
        *evidence(found),
        Section("What was run", tables.provenance(found, command)),
    ]
    name = suite.path.resolve().name
    lead = [*tables.lead(found), *repeated_weights_note(found.answers)]
    return page(f"Which components recall facts in {name}, and since when", lead, content)
