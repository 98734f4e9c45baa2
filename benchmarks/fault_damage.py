"""How files are damaged; the words of the column ``before`` in ``benchmarks.fault_table``."""

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file

MISSING = object()


def write(path: str, content: str | bytes = "") -> None:
    """Replaces a file, making its folder if need be."""
    remove(path)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content.encode() if isinstance(content, str) else content)


def remove(path: str) -> None:
    """Of a file, a link or a folder, if it is there."""
    if Path(path).is_dir() and not Path(path).is_symlink():
        shutil.rmtree(path)
    else:
        Path(path).unlink(missing_ok=True)


def copy(source: str, target: str) -> None:
    remove(target)
    (shutil.copytree if Path(source).is_dir() else shutil.copy2)(source, target)


def move(source: str, target: str) -> None:
    Path(source).rename(target)


def garbage(path: str) -> None:
    """200 bytes that are not of any format."""
    write(path, random.Random(0).randbytes(200))


def fifo(path: str) -> None:
    """A pipe without a writer, in the file's place."""
    remove(path)
    os.mkfifo(path)


def loop(path: str) -> None:
    """A symbolic link to itself."""
    remove(path)
    os.symlink(Path(path).name, path)


def folder(path: str) -> None:
    """An empty folder in the file's place."""
    remove(path)
    Path(path).mkdir(parents=True)


def cut(path: str, share: float) -> None:
    """Keeps the first part of a file only."""
    size = Path(path).stat().st_size
    os.truncate(path, int(size * share))


def flip(path: str, at: float, bit: int = 0) -> None:
    """Flips one bit; ``at`` is a place as a share of the file."""
    content = bytearray(Path(path).read_bytes())
    content[int(at * len(content))] ^= 1 << bit
    Path(path).write_bytes(content)


def key(path: str, name: str, value: object = MISSING) -> None:
    """Sets a key of a JSON file, or deletes it; dots lead into objects."""
    whole = json.loads(Path(path).read_text())
    *outer, last = name.split(".")
    at = whole
    for part in outer:
        at = at[part]
    if value is MISSING:
        del at[last]
    else:
        at[last] = value
    Path(path).write_text(json.dumps(whole))


def nested(path: str, depth: int = 10_000) -> None:
    write(path, "[" * depth + "]" * depth)


def table(path: str, column: str, values: object = MISSING) -> None:
    """Sets a column of a parquet file, or drops it; a function is given the column."""
    frame = pd.read_parquet(path)
    if values is MISSING:
        frame = frame.drop(columns=column)
    else:
        frame[column] = values(frame[column]) if callable(values) else values
    frame.to_parquet(path, index=False)


def weights(path: str, change: str, name: str = "embed_out.weight") -> None:
    """Changes one tensor of a safetensors file of fp32 weights."""
    tensors = load_file(path)
    one = tensors[name]
    tensors[name] = {
        "nan": lambda: np.full_like(one, np.nan),
        "infinite": lambda: np.full_like(one, np.inf),
        "int64": lambda: one.astype(np.int64),
        "float16": lambda: one.astype(np.float16),
        "transposed": lambda: np.ascontiguousarray(one.T),
        "longer": lambda: np.concatenate([one, one]),
        "scalar": lambda: np.ones((), np.float32),
        "missing": lambda: None,
        "extra": lambda: one,
        "empty": lambda: one[:0],
    }[change]()
    if change == "missing":
        del tensors[name]
    if change == "extra":
        tensors["gpt_neox.layers.0.attention.rank_one.weight"] = one
    save_file(tensors, path, metadata={"format": "pt"})


def result_variable(path: str, name: str, value: float | None) -> None:
    """Sets a variable of a result file to a number, or drops it."""
    import xarray as xr

    result = xr.load_dataset(path, engine="scipy")
    if value is None:
        result = result.drop_vars(name)
    else:
        result[name] = result[name] * value
    write(path, bytes(result.to_netcdf(engine="scipy")))


def result_attribute(path: str, name: str, value: str | None) -> None:
    """Sets an attribute of a result file, or drops it."""
    import xarray as xr

    result = xr.load_dataset(path, engine="scipy")
    result.attrs.pop(name, None)
    result.attrs |= {} if value is None else {name: value}
    write(path, bytes(result.to_netcdf(engine="scipy")))


def newest(pattern: str) -> str:
    """The first file, by name, that a pattern matches."""
    return str(sorted(Path(".").glob(pattern))[0])
