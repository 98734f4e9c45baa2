"""Files written so that a kill at any moment leaves the old or the new file, never half of one;
files read so that an error names the file and what is wrong with it; locks against a second
process.

Several machines may write to one folder. What is relied on there is that renaming a file within its
folder is atomic, on NFS and Lustre too. Locks only spare work and are not relied on for results:
NFS may not know the locks of other machines.
"""

import errno
import json
import os
import re
import shutil
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    import pandas as pd


_ABANDONED_AFTER = 7 * 24 * 3600
"""Seconds after which a temporary file of another machine is taken for that of a killed process."""


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces ``path`` by ``content``: writes it beside the old file under a temporary name,
    flushes it to disk, and renames it. Temporary files of the same name left by a killed process
    are removed.
    """
    for leftover in path.parent.glob(f".{escape(path.name)}.*.tmp"):
        if is_abandoned(leftover):
            leftover.unlink(missing_ok=True)
    temporary = temporary_of(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk doesn't name the file
        raise


def temporary_of(path: Path) -> Path:
    """The name beside ``path`` under which this process writes it: hidden, with the names of this
    machine and process, so that no two processes share it.
    """
    return path.with_name(f".{path.name}.{machine()}.{os.getpid()}.tmp")


def machine() -> str:
    """This machine's name, as it stands in names of files."""
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname()) or "unnamed"


def is_abandoned(temporary: Path) -> bool:
    """Whether the process that wrote a temporary file has ended. Of another machine's processes
    that is unknown; such a file counts as abandoned when it has not changed for a week.
    """
    writer = re.fullmatch(r"\..+\.([A-Za-z0-9-]+)\.([0-9]{1,10})\.tmp", temporary.name)
    if not writer:  # not of this package
        return False
    if writer[1] == machine():
        return not _is_running(int(writer[2]))
    try:
        return time.time() - temporary.stat().st_mtime > _ABANDONED_AFTER
    except FileNotFoundError:  # finished, or removed by another process
        return False


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (OverflowError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def write_json(path: Path, content: object) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def read_json(path: Path, *, advice: str = "copy it again") -> dict:
    """The object in a JSON file.

    Args:
        advice: what to do about a damaged file.

    Raises:
        ValueError: it can't be read, is not JSON, holds something else than one object, or NaN, or
            a key twice.
    """
    try:
        content = json.loads(
            path.read_bytes().decode(), parse_constant=_no_number, object_pairs_hook=_each_key_once
        )
    except OSError as error:
        raise ValueError(f"{path} can't be read ({error.strerror}); see that it can") from None
    except (ValueError, RecursionError) as error:  # broken JSON and other encodings are ValueErrors
        raise ValueError(f"{path} is damaged ({error}); {advice}") from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} is damaged (it holds {str(content)[:40]!r}, not an object); {advice}"
        )
    return content


def _no_number(name: str) -> None:
    raise ValueError(f"it holds {name}, which is no number")


def _each_key_once(pairs: list[tuple[str, object]]) -> dict:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"it holds {twice!r} twice")
    return content


def table_bytes(table: "pd.DataFrame") -> bytes:
    """The contents of a parquet file with checksums."""
    return table.to_parquet(index=False, write_page_checksum=True)


def read_table(path: Path) -> "pd.DataFrame":
    """The table in a parquet file.

    Raises:
        FileNotFoundError, ValueError: it is missing or damaged.
    """
    import pandas as pd

    if not path.is_file():
        raise FileNotFoundError(
            f"no {path.name} in {path.parent}; the run folder is incomplete, copy it again"
        )
    try:
        return pd.read_parquet(path, page_checksum_verification=True)
    except PermissionError:
        raise ValueError(f"{path} can't be read (no permission); see that it can") from None
    except (ValueError, OSError):
        raise ValueError(f"{path} is damaged; copy it again, or train again") from None


def check_writable(folder: Path) -> None:
    """Makes sure that ``folder`` exists and can be written to.

    Raises:
        ValueError: nothing can be written there.
    """
    if "\0" in str(folder):
        raise ValueError(f"{str(folder)!r} can't be a folder's name; choose another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"can't write to {folder} ({error.strerror}); choose another folder"
        ) from None


def check_page(path: Path) -> None:
    """Makes sure that a page can be written. Its name must end with .html, so that no file of a run
    is overwritten.

    Raises:
        ValueError: it has another name, or no file can be written there.
    """
    check_file(path)
    if path.suffix != ".html":
        raise ValueError(f"{path} is no HTML file; name one, such as {path.name}.html")


def check_file(path: Path) -> None:
    """Makes sure that the folder of ``path`` exists and can be written to.

    Raises:
        ValueError: no file can be written there.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a file; name one")
    check_writable(path.parent)


@contextmanager
def only_process(folder: Path, doing: str) -> Iterator[None]:
    """Locks ``folder`` for this process; the operating system releases the lock when the process
    ends, however it ends.

    Raises:
        ValueError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ValueError(
            f"another process is {doing} {folder}; wait until it has ended, or stop it"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"the file system of {folder} has no locks; see that no other process is {doing} it",
            stacklevel=3,
        )
    try:
        for leftover in (*folder.glob(".*.tmp"), *folder.glob("resume/.*.tmp")):
            if is_abandoned(leftover):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP)
"""Of file systems that are mounted without locks."""
