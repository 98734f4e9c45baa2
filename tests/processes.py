"""Processes that are there at once: forked from one that has imported interp, without type checks,
and has computed nothing yet.
"""

import os
import resource
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

_FORKED = get_context("forkserver")
_FORKED.set_forkserver_preload(
    ["analyses.interp_analyse", "interp.results.sweep", "interp.training.loop"]
)


def start(run: Callable | str, *arguments: object) -> BaseProcess:
    """A function, or code that finds its arguments in ``sys.argv[1:]``, run in another process."""
    if isinstance(run, str):
        run, arguments = _run_code, (run, arguments)
    child = _FORKED.Process(target=run, args=arguments)
    child.start()
    return child


def finish(
    run: Callable | str, *arguments: object, limit: int | None = None
) -> tuple[int, str, str]:
    """The same, waited for: exit code, what it printed, and what it said on stderr.

    Args:
        limit: most bytes in a file it writes.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("out", "err")]
        child = start(_redirected, files, limit, run, arguments)
        child.join()
        return child.exitcode, *(file.read_text() for file in files)


def _redirected(
    files: list[Path], limit: int | None, run: Callable | str, arguments: tuple
) -> None:
    for stream, file in zip((sys.stdout, sys.stderr), files):
        os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY), stream.fileno())
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if isinstance(run, str):
        _run_code(run, arguments)
    else:
        run(*arguments)


def _run_code(code: str, arguments: tuple) -> None:
    sys.argv = ["-c", *map(str, arguments)]
    exec(code, {"__name__": "__main__"})
