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
from interp.files import check_page, check_writable, write_bytes
from interp.jupyter import OnStep
from interp.localization.formation import Localization, leaders
from interp.model.decoder import device_of
from interp.report.page import Section, page, repeated_weights_note
from interp.results.localize import localization_sweep, localize, results_of
from interp.results.over_checkpoints import over_checkpoints
from interp.results.pieces import Sweep, facts_digest
from interp.results.tasks import in_part
from interp.suite import Suite, load_suite, select_steps


def run_and_report(config: LocalizationConfig, *, command: str, bar) -> str:
    """The components of each mechanism, and the path of the report that was written."""
    suite = load_suite(config.ckpt)
    total = len(select_steps(suite, config.steps))
    target = Path(config.report or suite.path / "localization.html")
    check_writable(Path(results_of(suite, config.out))), check_page(target)
    task = bar.add_task("localizing, checkpoint", total=total + 1)
    at = {"command": command, "on_step": lambda n_done: bar.update(task, completed=n_done)}
    if config.cluster.is_part:
        return _in_part(suite, config, **at)
    suite, found = run(config, **at)
    write_bytes(target, report(suite, found, command).encode())
    return f"{tables.roles_text(found)}\nreport: {target}  (open it in a browser)"


def _in_part(suite: Suite, config: LocalizationConfig, *, command: str, on_step: OnStep) -> str:
    sweep = localization_sweep(suite, **_asked(suite, config), command=command)
    return in_part([sweep], config.cluster, workers=config.workers, on_step=on_step)


def _asked(suite: Suite, config: LocalizationConfig) -> dict[str, Any]:
    """Arguments of ``localize``, but for those of how it is run."""
    n = len(config.attributes)
    drawn = {"attribute": config.attributes, "seed": config.seed}
    return {
        "facts": suite.facts(config.facts * n, **drawn),
        "people": suite.facts(min(config.people, suite.config.n_people) * n, **drawn),
        "steps": select_steps(suite, config.steps),
        "seed": config.seed,
        "max_memory": config.max_memory,
        "device": device_of(config.device, here=False),
        "out": results_of(suite, config.out),
    }


def run(
    config: LocalizationConfig, *, command: str = "", on_step: OnStep = lambda n_done: None
) -> tuple[Suite, Localization]:
    """The suite and its localization, with what is asked of the last checkpoint only; result files
    that already exist are reused.
    """
    suite = load_suite(config.ckpt)
    asked = _asked(suite, config)
    jobs = Path(asked["out"]) / "jobs"
    with executor_of(config.cluster, workers=config.workers, jobs=jobs) as executor:
        how: dict[str, Any] = {"workers": config.workers, "executor": executor}
        found = localize(suite, **asked, command=command, on_step=on_step, **how)
        depth = _in_depth(suite, found, asked, command, executor)
    on_step(len(found.steps) + 1)
    return suite, replace(found, depth=depth)


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
    depends = {"people": facts_digest(asked["people"]), "seed": asked["seed"], "leading": leading}
    depth = {}
    for question in asked_in_depth(leading):
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
