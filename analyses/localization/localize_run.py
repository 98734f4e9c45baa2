"""Localizes a run: computes the answers of its checkpoints, reuses stored ones, and writes the
page.
"""

from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import xarray as xr

from analyses.localization import LocalizationConfig, in_depth, sections, tables
from analyses.localization.questions import asked_in_depth, evidence
from interp.cluster.executors import executor_of
from interp.data.facts import FactSet
from interp.files import check_page, check_writable, write_bytes
from interp.jupyter import OnStep
from interp.localization.formation import Localization, leaders
from interp.model.decoder import device_of
from interp.report.page import Section, page, repeated_weights_note
from interp.results.localize import digest_of, localizable, localization_sweep, localize, results_of
from interp.results.over_checkpoints import over_checkpoints
from interp.results.pieces import Sweep
from interp.results.tasks import in_part
from interp.suite import Suite, facts_or_fewer, load_suite, select_steps


def run_and_report(config: LocalizationConfig, *, command: str, bar) -> str:
    """The components of each mechanism, and the path of the report that was written."""
    suite = load_suite(config.ckpt)
    total = len(select_steps(suite, config.steps))
    target = Path(config.report or suite.page("localization"))
    check_writable(Path(results_of(suite, config.out))), check_page(target)
    task = bar.add_task("localizing, checkpoint", total=total + 1)
    asked = _asked(suite, config)
    at = {"command": command, "on_step": lambda n_done: bar.update(task, completed=n_done)}
    if config.cluster.is_part:
        sweep = localization_sweep(suite, **asked, command=command)
        return in_part([sweep], config.cluster, workers=config.workers, on_step=at["on_step"])
    found = _localization(suite, config, asked, **at)
    write_bytes(target, report(suite, found, command).encode())
    about = f"{asked['facts']}\n" if config.facts_csv else ""
    return f"{about}{tables.roles_text(found)}\nreport: {target}  (open it in a browser)"


def run(
    config: LocalizationConfig, *, command: str = "", on_step: OnStep = lambda n_done: None
) -> tuple[Suite, Localization]:
    """The suite and its localization, with what is asked of the last checkpoint only; result files
    that already exist are reused.
    """
    suite = load_suite(config.ckpt)
    return suite, _localization(
        suite, config, _asked(suite, config), command=command, on_step=on_step
    )


def _localization(
    suite: Suite,
    config: LocalizationConfig,
    asked: dict[str, Any],
    *,
    command: str,
    on_step: OnStep,
) -> Localization:
    jobs = Path(asked["out"]) / "jobs"
    with executor_of(config.cluster, workers=config.workers, jobs=jobs) as executor:
        how: dict[str, Any] = {"workers": config.workers, "executor": executor}
        found = localize(suite, **asked, command=command, on_step=on_step, **how)
        depth = _in_depth(suite, found, asked, command, executor)
    on_step(len(found.steps) + 1)
    return replace(found, depth=depth)


def _in_depth(
    suite: Suite,
    found: Localization,
    asked: dict[str, Any],
    command: str,
    executor: Executor | None,
) -> dict[str, xr.Dataset]:
    """Answers to what is asked of the last checkpoint only, by question."""
    last, facts, device = found.steps[-1], asked["facts"], asked["device"]
    leading = leaders(found.mechanisms)[["component", "place"]].to_dict("index")
    options = {name: asked[name] for name in ("seed", "max_memory", "device")}
    depends = {"people": digest_of(asked["people"]), "seed": asked["seed"], "leading": leading}
    depth = {}
    for question in asked_in_depth(leading, has_people=asked["people"] is not None):
        compute = partial(
            in_depth.answer, facts=facts, leading=leading, compute=question.compute, **options
        )
        sweep = Sweep(
            suite=suite,
            steps=[last],
            names=[question.name],
            compute=compute,
            out=Path(asked["out"]),
            facts=facts,
            options=depends,
            device=device,
            command=command,
        )
        depth[question.name] = over_checkpoints(sweep, executor=executor)[last][question.name]
    return depth


def _asked(suite: Suite, config: LocalizationConfig) -> dict[str, Any]:
    """Arguments of ``localize``, but for those of how it is run."""
    facts, people = _asked_about(suite, config)
    return {
        "facts": facts,
        "people": people,
        "steps": select_steps(suite, config.steps),
        "seed": config.seed,
        "max_memory": config.max_memory,
        "device": device_of(config.device, here=False),
        "out": results_of(suite, config.out),
    }


def _asked_about(suite: Suite, config: LocalizationConfig) -> tuple[FactSet, FactSet | None]:
    """The facts, and those that probes are fitted on, of a run's people; None with a file."""
    if config.facts_csv:
        asked = {"n": config.facts, "relations": config.attributes or (), "seed": config.seed}
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
