"""Strict reader of users' CSV files: every column is known and every row is complete. What pandas
would skip, rename or shift is refused, naming file and row.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pandas as pd


def read_csv_table(
    path: Path,
    *,
    needed: Sequence[str],
    optional: Sequence[str] = (),
    renamed: Mapping[str, str] = MappingProxyType({}),
) -> pd.DataFrame:
    """Every field of a comma-separated UTF-8 file as text. The index numbers the rows below the
    header from 1 and also counts the rows left out: blank ones, and those with empty fields only,
    as spreadsheets write them. ``renamed``: names that columns may have in the file, too, and the
    names that they are given.

    Raises:
        FileNotFoundError, ValueError: no such file, not such a CSV, a column that is missing, twice
            there or not understood.
    """
    columns = f"write the columns {', '.join(needed)}"
    columns += f" and, if wanted, {' and '.join(optional)}" if optional else ""
    if not path.exists():
        raise FileNotFoundError(f"no file {path}; give a CSV with the columns {', '.join(needed)}")
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file; give a CSV")
    records = _records(path, _decoded(path))
    header = [renamed.get(x, x) for x in next((record for record in records if record), [])]
    _check_header(path, header, needed, optional, columns)
    rows, numbers = [], []
    for number, record in enumerate(records, 1):
        if not any(field.strip() for field in record):
            continue
        if len(record) != len(header):
            raise ValueError(
                f"{path}, row {number}: {len(record)} fields under {len(header)} columns; write "
                f"one under each of {', '.join(header)}, and quote those that hold commas"
            )
        rows.append(record)
        numbers.append(number)
    if not rows:
        raise ValueError(f"{path} holds no rows; write one below the header")
    return pd.DataFrame(rows, numbers, header, dtype=object)


def csv_header(path: Path) -> list[str]:
    """The names of a CSV's columns; empty where there is no such file, or it is empty, which
    ``read_csv_table`` refuses.

    Raises:
        ValueError: it is not a UTF-8 CSV.
    """
    records = _records(path, _decoded(path)) if path.is_file() else iter(())
    return next((record for record in records if record), [])


def _decoded(path: Path) -> str:
    content = path.read_bytes()
    if (nul := content.find(b"\0")) >= 0:
        line = 1 + content.count(b"\n", 0, nul)
        raise ValueError(f"{path}, line {line}: a NUL byte; save it as a UTF-8 text file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + content.count(b"\n", 0, error.start)
        raise ValueError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8; save it as a "
            "UTF-8 text file"
        ) from None


def _records(path: Path, text: str) -> Iterator[list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        yield from reader
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.line_num}: can't be read as a CSV ({error}); see that it is one"
        ) from None


def _check_header(
    path: Path, header: list[str], needed: Sequence[str], optional: Sequence[str], columns: str
) -> None:
    if not header:
        raise ValueError(f"{path} is empty; {columns}")
    for mark, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and mark in header[0]:
            raise ValueError(f"{path} has its fields separated by {name}; save it with commas")
    if missing := [name for name in needed if name not in header]:
        has = ", ".join(map(repr, header))
        raise ValueError(f"{path} has no column {', '.join(missing)} but {has}; {columns}")
    for name in header:
        if header.count(name) > 1:
            raise ValueError(f"{path} has a column {name!r} {header.count(name)} times; {columns}")
        if name not in (*needed, *optional):
            raise ValueError(f"{path} has a column {name!r}, which is not understood; {columns}")
