"""What every command does alike: read arguments, say errors in one line, show progress."""

import errno
import io
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from inspect import cleandoc
from typing import NoReturn, TypeVar

import tyro

from interp.process import tune_process

T = TypeVar("T")
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def guarded(name: str, run: Callable[[list[str]], None]) -> None:
    """Runs a command; a user's error becomes one line and exit code 2."""
    tune_process()
    warnings.showwarning = lambda message, *_: print(f"{name}: note: {message}", file=sys.stderr)
    warnings.filterwarnings("ignore", module=r"(?!interp)")
    try:
        run(sys.argv[1:])
    except (ValueError, FileNotFoundError) as error:
        _exit(name, str(error))
    except BrokenPipeError:  # the reader of the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except MemoryError as error:
        _exit(name, f"not enough memory ({error or 'it is used up'}); ask for less at once")
    except OSError as error:
        what = f"{error.filename or 'a file'} ({error.strerror or error})"
        if error.errno in _DISK_FULL:
            _exit(
                name, f"can't write {what}; free some space and run the same again, nothing is lost"
            )
        _exit(name, f"can't use {what}; see that it can be read and written")
    except KeyboardInterrupt:
        again = "add --resume to go on" if name == "interp-train" else "run the same again to go on"
        print(f"{name}: stopped; {again}", file=sys.stderr)
        sys.exit(130)


def _exit(name: str, message: str) -> NoReturn:
    print(f"{name}: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def parse(kind: type[T], name: str, description: str, arguments: list[str]) -> T:
    """``arguments`` as a ``kind``; what tyro has against them is said in one line."""
    said = io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(said):
            return tyro.cli(
                kind,
                prog=name,
                description=cleandoc(description),
                args=arguments,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as end:
        if end.code == 0:
            print(_without_none(said.getvalue()))
            raise
        lines = [line.strip("│╭╮╰╯─- ") for line in said.getvalue().splitlines()]
        text = " ".join(
            line
            for line in lines[1:]
            if line and not line.startswith(("Parsing error", "For full", f"{name} "))
        )
        raise ValueError(_plainly(text)) from None


def _plainly(text: str) -> str:
    """What tyro has against the arguments, without Python's words and help texts."""
    text = re.sub(r" ?Argument helptext:.*", "", text)
    text = re.sub(r" Perhaps you meant: ([a-z][\w-]*) .*", r"; did you mean --\1?", text)
    for python, wanted in (
        ("invalid literal for int() with base 10", "a whole number, such as 100"),
        ("could not convert string to float", "a number, such as 0.95"),
        ("Could not find valid parse for arguments", "its values with blanks between, such as 0 1"),
    ):
        text = re.sub(
            rf"Error parsing (\S+): {re.escape(python)}: (.*)$", rf"\1 is \2; give {wanted}", text
        )
    return re.sub(r"^Error parsing \w+: ", "", text)


def _without_none(said: str) -> str:
    """A help text without ``{None}|`` before types and ``(default: None)`` after descriptions,
    tyro's words for what need not be given, and without blanks at the ends of lines.
    """
    said = re.sub(r"\{None\}\|(\S+)", lambda m: m[1].ljust(len(m[0])), said)
    said = re.sub(r"\{(\[.*\])\}", r"\1  ", said)
    said = re.sub(r"\s*\(default:\s+(None)?\)", "", said.replace("{None,", "{"))
    return re.sub(r" +$", "", said, flags=re.MULTILINE)


def command_line(name: str, arguments: list[str]) -> str:
    return shlex.join([name, *arguments])


def progress():
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
    )
    console = Console(stderr=True)
    return Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
