"""Part A: every row of the table, in a folder of its own."""

import re
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.fault_calls import CALLS
from benchmarks.fault_files import CURVES, PATHS, PROMPTS, RESULTS, STEPS
from benchmarks.fault_folders import FILES, PEOPLE, RECORD, SHAPE, TENSORS, TOKENS
from benchmarks.fault_inputs import mentioned, words
from benchmarks.fault_runner import (
    Digests,
    Ended,
    Findings,
    agree,
    command,
    files_of,
    judge,
    new_folder,
    numbers,
    page_numbers,
    run,
)
from benchmarks.fault_table import EMPTY, NUMBERS, SMALL, UNFIT, UNKNOWN, Row

ROWS = [
    *(*NUMBERS, *UNKNOWN, *EMPTY, *UNFIT, *FILES, *RECORD, *SHAPE, *TENSORS, *PEOPLE, *TOKENS),
    *(*STEPS, *PATHS, *RESULTS, *CURVES, *PROMPTS, *CALLS),
]
_Reference = tuple[Digests, str]


def bad_inputs(
    rows: Iterable[Row], template: Path, place: Path, found: Findings, *, seconds: float = 30
) -> Iterable[None]:
    """Adds a finding a row; yields after each."""
    references: dict[tuple[str, str], _Reference] = {}
    for row in rows:
        what = f"{row.what} [{shown(row.where)}]" if row.what != row.where else row.what
        if row.where.startswith("interp-"):
            kind, got = _of_command(row, template, place, references, seconds)
        else:
            kind, got = _of_call(row, template, place, seconds)
        found.add("A", what, kind, got)
        yield


def shown(where: str) -> str:
    """A command line without the flags that all short trainings have."""
    for name, value in SMALL.items():
        where = where.replace(f" --{name} {value}", "")
    return where.strip()


def prepared(row: Row, before: str, template: Path, place: Path) -> Path:
    """A folder with what the row names, after ``before``."""
    names = mentioned(row.where, row.before, row.right or "")
    folder = new_folder(place, template, names)
    if before:
        done = run(lambda: eval(before, words("")), folder)
        if done.code:
            raise RuntimeError(f"{row.what}: {before} ended with {done.said}")
    return folder


def _of_command(
    row: Row,
    template: Path,
    place: Path,
    references: dict[tuple[str, str], _Reference],
    seconds: float,
) -> tuple[str, str]:
    call = command(shlex.split(row.where))
    same = None
    if row.right is not None and (row.where, row.right) not in references:
        folder = prepared(row, row.right, template, place)
        references[row.where, row.right] = _outcome(run(call, folder), folder, row)
    folder = prepared(row, row.before, template, place)
    was = files_of(folder)
    ended = run(call, folder, seconds=seconds)
    if row.right is not None and not ended.code:
        wanted, printed = references[row.where, row.right]
        got, said = _outcome(ended, folder, row)
        same = agree(got, wanted) and said == printed
    elif row.right is not None and not row.message:
        same = False
    lost = [name for name, digest in was.items() if files_of(folder).get(name) != digest]
    kind, got = judge(ended, row.message, same)
    if kind in ("clean error", "other message") and lost:
        return "data lost", f"{', '.join(lost[:3])} changed, though: {got}"
    return kind, got


def _outcome(ended: Ended, folder: Path, row: Row) -> _Reference:
    """What a command computed, or of interp-report, what its page shows; and what it printed."""
    of_page = row.where.startswith("interp-report")
    return page_numbers(folder) if of_page else numbers(folder), ended.out


def _of_call(row: Row, template: Path, place: Path, seconds: float) -> tuple[str, str]:
    folder = prepared(row, row.before, template, place)
    was = files_of(folder)
    ended = run(_evaluating(row.where), folder, seconds=seconds)
    message = re.search(r"^refused (.*)", ended.out, re.MULTILINE | re.DOTALL)
    if ended.hung:
        return "hang", "stopped after its time limit"
    if message:
        line = message[1].removesuffix("\n")
        if any(files_of(folder).get(name) != digest for name, digest in was.items()):
            return "data lost", line
        fits = row.message and "\n" not in line and re.search(row.message, line, re.IGNORECASE)
        return ("clean error" if fits else "other message"), line
    value = re.search(r"^value (.*)", ended.out, re.MULTILINE)
    if value:
        right = row.right is not None and value[1] == row.right
        return ("right value" if right else "silent"), f"returned {value[1][:100]}"
    last = (ended.said.strip().splitlines() or [f"exit {ended.code}"])[-1]
    return "traceback", last[:200]


def _evaluating(expression: str) -> Callable[[], None]:
    def call() -> None:
        names = words(expression)
        try:
            value = eval(expression, names)
        except (ValueError, FileNotFoundError) as error:
            print(f"refused {error}")
        else:
            print(f"value {value!r}")

    return call
