"""What all commands share: parsing arguments, reporting errors in one line, a progress bar."""

import errno
import io
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from inspect import cleandoc
from textwrap import fill
from typing import NoReturn, TypeVar

import tyro

# tyro's only structured report of what is wrong with arguments; unstable, hence the bounds on
# tyro's version in setup.cfg.
from tyro._errors import (
    BadValue,
    InstantiationFailure,
    InvalidChoice,
    MissingArgs,
    ParseErrorEvent,
    on_parse_error,
)

from interp.cluster import PiecesMissing, TaskEnded
from interp.process import tune_process

T = TypeVar("T")
_MARKERS = (tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone)
_WANTED = {
    "INT": "a whole number, such as 100",
    "FLOAT": "a number, such as 0.95",
    "STR": "some text",
    "[INT [INT ...]]": "its values with blanks between, such as 0 1",
}
"""What a flag takes, by the word that its help text has for that."""
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def guarded(name: str, run: Callable[[list[str]], None]) -> None:
    """Runs a command; reports a user's error in one line, with exit code 2."""
    tune_process()
    warnings.showwarning = lambda message, *_: print(f"{name}: note: {message}", file=sys.stderr)
    warnings.filterwarnings("ignore", module=r"(?!interp)")
    try:
        run(sys.argv[1:])
    except TaskEnded as ended:
        print(ended)
    except PiecesMissing as missing:
        print(missing)
        sys.exit(1)
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
    """``arguments`` parsed into a ``kind``; ``--help`` prints the help text and exits.

    Raises:
        ValueError: an argument is missing, unknown, or has a value that it can't have.
    """
    said = io.StringIO()
    try:
        with on_parse_error(_refuse), redirect_stdout(said):
            config, unknown = tyro.cli(
                kind,
                prog=name,
                description=cleandoc(description),
                args=arguments,
                config=_MARKERS,
                return_unknown_args=True,
            )
    except SystemExit:
        # tyro can leave out a default only where a field is annotated with tyro.conf.arg, and
        # configurations don't import tyro.
        text = re.sub(r"\s*\(default:\s+(None)?\)", "", said.getvalue())
        text = re.sub(r"(?m)^( {10,})\S.*(?:\n\1\S.*)+", _refilled, text)
        print("\n".join(line.rstrip() for line in text.splitlines()))
        raise
    _refuse_unknown(kind, unknown)
    return config


def _refilled(lines: re.Match) -> str:
    """An option's help as one paragraph; tyro keeps the line breaks of the source."""
    indent = lines[1]
    text = " ".join(lines[0].split())
    return fill(text, 80, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def parse_known(kind: type[T], name: str, arguments: list[str]) -> T:
    """Those of ``arguments`` that are fields of ``kind``, parsed, and the rest."""
    with on_parse_error(_refuse):
        return tyro.cli(
            kind,
            prog=name,
            args=arguments,
            config=_MARKERS,
            add_help=False,
            return_unknown_args=True,
        )[0]


def _refuse(event: ParseErrorEvent) -> NoReturn:
    """Raises a ValueError that says in one line why tyro rejects the arguments."""
    match event:
        case MissingArgs():
            flags = [one.arg.lowered.name_or_flags[-1] for one in event.missing_arguments]
            names = ", ".join(flag.removeprefix("--") for flag in flags)
            said = f"Missing from {event.prog}: {names}; give {' and '.join(flags)}"
            if unknown := event.unrecognized_tokens:
                said += f" instead of {' '.join(unknown)}, which is unknown"
        case InvalidChoice():
            said = f"invalid choice {event.value!r} for {_flag(event)}; give {_wanted(event)}"
        case BadValue():
            said = f"{_flag(event)} has no value; give {_wanted(event)}"
        case InstantiationFailure(argument=None):  # what the configuration itself refuses
            said = event.message
        case InstantiationFailure():
            got = re.search(r"""\[.*?\]|'[^']*'|"[^"]*\"""", event.message)
            said = f"{_flag(event)} is {got[0] if got else event.message}; give {_wanted(event)}"
        case _:
            said = f"the arguments can't be read; see {event.prog} --help"
    raise ValueError(said)


def _flag(event: BadValue | InvalidChoice | InstantiationFailure) -> str:
    return event.argument.lowered.name_or_flags[-1]


def _wanted(event: BadValue | InvalidChoice | InstantiationFailure) -> str:
    metavar = event.argument.lowered.metavar
    return _WANTED.get(metavar) or f"one of {metavar.strip('{}').replace(',', ', ')}"


def _refuse_unknown(kind: type, unknown: list[str]) -> None:
    """Raises a ValueError that names the unknown arguments and the flag most like the first."""
    if not unknown:
        return
    nested = [one.type for one in fields(kind) if is_dataclass(one.type)]
    flags = [f"--{one.name.replace('_', '-')}" for of in (kind, *nested) for one in fields(of)]
    alike = get_close_matches(unknown[0], flags, n=1)
    advice = f"did you mean {alike[0]}?" if alike else "see --help"
    raise ValueError(f"Unrecognized options: {', '.join(unknown)}; {advice}")


def command_line(name: str, arguments: list[str]) -> str:
    """The command as results record it: without the options that say who computes a result and
    change none, so that all who share the work record the same.
    """
    kept, left_out = [], False
    for word in arguments:
        flag = word.partition("=")[0].replace("_", "-")
        left_out = flag in _WHO if word.startswith("--") else left_out and word != "--"
        if not left_out:
            kept.append(word)
    return shlex.join([name, *kept])


_WHO = ("--workers", "--task-id", "--n-tasks", "--executor", "--scheduler", "--submitit")


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
