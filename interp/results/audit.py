"""What is wrong with a suite of checkpoints of any model: damaged or mixed-up files, steps that are
identical or out of order, weights that are no numbers, configs that differ.

Every file of weights is read once. Optimizer states and other pickles are not looked at.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pandas as pd

from interp.fields import argument, shortened
from interp.files import read_json
from interp.jupyter import OnStep, progress_bar
from interp.model.hf_config import WITHOUT_EFFECT
from interp.model.weight_scan import Scan, scan
from interp.results.repeated_weights import Repeat, repeated_weights
from interp.results.weight_drift import off_the_path, similarities
from interp.suite import Suite

CHECKS = ("files", "config", "tensors", "types", "numbers", "identical", "descent", "schedule")
"""What is examined, in this order."""


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with some steps, or only worth knowing."""

    check: str
    """One of ``CHECKS``."""
    steps: tuple[int, ...]
    text: str
    wrong: bool = True


@dataclass(frozen=True)
class Audit:
    """The findings on a suite, and its tensors."""

    findings: list[Finding]
    tensors: pd.DataFrame
    """A row a step and tensor: step, file, tensor, shape, dtype, digest."""

    @property
    def sound(self) -> bool:
        return not any(finding.wrong for finding in self.findings)


def audit(
    suite: Suite, steps: Sequence[int] | None = None, *, on_step: OnStep | None = None
) -> Audit:
    """What is wrong with the checkpoints at ``steps``, all if none are given.

    Raises:
        ValueError: no checkpoint at a step.
    """
    given = argument("steps", steps, tuple[int, ...] | None)
    steps = suite.steps if given is None else sorted(set(given))
    folders = {step: suite.step_dir(step) for step in steps}
    findings: list[Finding] = []
    scans: dict[int, Scan] = {}
    with progress_bar(len(steps), "reading", on_step) as on_step:
        for n_done, (step, folder) in enumerate(folders.items(), 1):
            try:
                scans[step] = scan(folder)
            except (ValueError, FileNotFoundError) as error:
                findings.append(Finding("files", (step,), str(error)))
            on_step(n_done)
    digests = {step: of.digests for step, of in scans.items()}
    findings += _configs({step: folders[step] for step in scans})
    findings += _different(digests)
    findings += [
        Finding("numbers", (step,), f"{_some(of.not_finite)}: NaN, or too large for fp32")
        for step, of in scans.items()
        if of.not_finite
    ]
    repeats = repeated_weights(digests)
    findings += _repeated(repeats, scans)
    findings += _off_the_path(scans, repeats)
    findings += _gaps(suite.steps)
    findings.sort(key=lambda one: CHECKS.index(one.check))
    return Audit(findings, _table(scans))


def _table(scans: dict[int, Scan]) -> pd.DataFrame:
    rows = [
        (step, of.files[name], name, *digest.split(":"))
        for step, of in scans.items()
        for name, digest in of.digests.items()
    ]
    return pd.DataFrame(rows, columns=["step", "file", "tensor", "shape", "dtype", "digest"])


def _some(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} others" if len(names) > 1 else "")


def _configs(folders: dict[int, Path]) -> Iterator[Finding]:
    """Keys of config.json whose values differ between steps."""
    configs: dict[int, dict] = {}
    for step, folder in folders.items():
        try:
            configs[step] = read_json(folder / "config.json")
        except ValueError as error:
            yield Finding("files", (step,), str(error))
    for key in dict.fromkeys(key for config in configs.values() for key in config):
        values = {step: json.dumps(of.get(key), sort_keys=True) for step, of in configs.items()}
        for steps, value, usual in _unlike(values):
            text = f"{key} is {shortened(value)}, at other steps {shortened(usual)}"
            yield Finding("config", steps, text, wrong=key not in WITHOUT_EFFECT)


def _unlike(values: dict[int, str]) -> Iterator[tuple[tuple[int, ...], str, str]]:
    """Steps whose value is not the most common, that value, and the most common."""
    (usual, _), *others = Counter(values.values()).most_common() or [("", 0)]
    for value, _ in others:
        yield tuple(step for step, of in values.items() if of == value), value, usual


def _different(digests: dict[int, dict[str, str]]) -> Iterator[Finding]:
    """Steps that lack tensors, have more, or have some of another shape or type."""
    for check, place in (("tensors", 0), ("types", 1)):
        found: dict[tuple, list[str]] = {}
        for name in dict.fromkeys(name for of in digests.values() for name in of):
            values = {
                step: of[name].split(":")[place] if name in of else "missing"
                for step, of in digests.items()
                if name in of or check == "tensors"
            }
            for unlike in _unlike(values):
                found.setdefault(unlike, []).append(name)
        for (steps, value, usual), names in found.items():
            of = "of shape " if check == "tensors" else ""
            got, other = (x if x == "missing" else of + (x or "()") for x in (value, usual))
            text = f"{_some(names)} is {got}, at other steps {other}"
            yield Finding(check, steps, text, wrong=check == "tensors")


def _repeated(repeats: list[Repeat], scans: dict[int, Scan]) -> Iterator[Finding]:
    """Steps with identical weights: all of them, all of one file among several, or some."""
    for repeat in repeats:
        files = scans[repeat.steps[0]].files
        for file in dict.fromkeys(files[name] for name in repeat.tensors):
            whole = [name for name, of in files.items() if of == file]
            alike = _alike(scans, repeat.steps, whole)
            names = whole if alike else [name for name in repeat.tensors if files[name] == file]
            what = f"all {len(whole)} tensors" if alike else _some(names)
            text = f"{what} of {file} are identical, though trained in between"
            yield Finding("identical", repeat.steps, text)
        if not repeat.tensors:
            yield Finding("identical", repeat.steps, "all weights are identical")


def _alike(scans: dict[int, Scan], steps: Sequence[int], names: Sequence[str]) -> bool:
    return all(len({scans[step].digests.get(name) for step in steps}) == 1 for name in names)


def _off_the_path(scans: dict[int, Scan], repeats: list[Repeat]) -> Iterator[Finding]:
    """Steps that don't descend from their neighbours, as a whole or in one file of several. What is
    known to be identical or damaged is left out.
    """
    left_out = {step for repeat in repeats if not repeat.tensors for step in repeat.steps}
    left_out |= {step for step, of in scans.items() if of.not_finite}
    shared = {name for repeat in repeats for name in repeat.tensors}
    usable = {step: of for step, of in scans.items() if step not in left_out}
    files = list(dict.fromkeys(file for of in usable.values() for file in of.files.values()))
    reported: set[int] = set()
    for file in [None, *(files if len(files) > 1 else [])]:
        samples = {
            step: {
                name: x
                for name, x in of.samples.items()
                if (name not in shared if file is None else of.files[name] == file)
            }
            for step, of in usable.items()
            if file is None or not _shared(repeats, step, file, of)
        }
        if not samples or not all(samples.values()):
            continue
        for drift in off_the_path(list(samples), similarities(samples)):
            if not set(drift.steps) <= reported:
                text = drift.why if file is None else f"{file} is {drift.why}"
                yield Finding("descent", drift.steps, text)
            reported |= set(drift.steps)


def _shared(repeats: list[Repeat], step: int, file: str, of: Scan) -> bool:
    """Whether tensors of a file at a step are known to be those of another step."""
    return any(
        step in repeat.steps and any(of.files[name] == file for name in repeat.tensors)
        for repeat in repeats
    )


def _gaps(steps: Sequence[int]) -> Iterator[Finding]:
    """Places where steps are missing from a pattern that goes on behind them: a distance or a ratio
    of neighbours that stands before and after, taken several times.
    """
    pairs = list(pairwise(steps))
    distances = [b - a for a, b in pairs]
    ratios = [b / a if a else 0.0 for a, b in pairs]
    for i, (a, b) in enumerate(pairs):
        every = [d for d in {*distances[:i]} & {*distances[i + 1 :]} if d < distances[i]]
        times = [r for r in {*ratios[:i]} & {*ratios[i + 1 :]} if r > 1]
        if apart := [d for d in every if distances[i] % d == 0]:
            how = f"{max(apart)} steps apart"
        elif times := [r for r in times if ratios[i] in (r**2, r**3, r**4)]:
            how = f"{max(times):g} times the one before"
        else:
            continue
        text = f"steps between these seem to be missing: others are {how}"
        yield Finding("schedule", (a, b), text, wrong=False)
