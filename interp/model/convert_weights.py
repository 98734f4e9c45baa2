"""Checkpoints with pickled weights (``pytorch_model.bin``), written again as safetensors.

A pickle can run code when it is opened. ``torch.load(weights_only=True)`` makes tensors and plain
containers of it and nothing else; a file that asks for more is refused.
"""

import os
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from interp.files import read_json, write_json
from interp.model.checkpoint_folder import INDEX, WEIGHTS, check_file_itself, weight_files

_WHOLE, _BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_COPIED = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("tokenizer.model", "vocab.txt", "chat_template.jinja"),
)

_SOURCE = "converted_from.json"
"""Which files of weights a converted checkpoint was made of."""


def convert_checkpoint(source: Path, target: Path) -> bool:
    """Writes the checkpoint in ``source`` to ``target`` with its weights as safetensors, in as many
    files; config.json and the tokenizer are copied, and so are weights that are safetensors
    already. A kill leaves no half-written folder. Returns False where it was there already.

    Tensors that share memory, such as an output layer tied to the embedding, are each written.
    A file's tensors are in memory together.

    Raises:
        FileNotFoundError, ValueError: a file is missing or damaged, holds more than tensors, or
            another checkpoint is in ``target``.
    """
    config = source / "config.json"
    check_file_itself(config)
    if not config.is_file():
        raise FileNotFoundError(f"no config.json in {source}; copy it beside the weights")
    if target.exists():
        there, made_from = target / "config.json", target / _SOURCE
        same = there.is_file() and there.read_bytes() == config.read_bytes()
        if not (same and made_from.is_file() and read_json(made_from) == _stamp(source)):
            raise ValueError(f"{target} is there and holds something else; choose another --out")
        return False
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        if (source / WEIGHTS).is_file() or (source / INDEX).is_file():
            for path in (*weight_files(source), source / INDEX):
                _copy(path, temporary)
        else:
            _convert_files(source, temporary)
        copy_tokenizer(source, temporary)
        write_json(temporary / _SOURCE, _stamp(source))
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return True


def _stamp(source: Path) -> dict[str, list[int]]:
    """Size and time of every file of weights in a folder, by name."""
    found = {}
    for path in sorted(source.iterdir()):
        if path.suffix in (".bin", ".safetensors"):
            of = path.stat()
            found[path.name] = [of.st_size, of.st_mtime_ns]
    return found


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies config.json and the files of the tokenizer, those that there are."""
    for name in _COPIED:
        _copy(source / name, target)


def _copy(path: Path, target: Path) -> None:
    if path.is_file():
        shutil.copyfile(path, target / path.name)  # what a link of the hub's cache links to


def _convert_files(source: Path, target: Path) -> None:
    places: dict[str, str] = {}
    shards = _pickled_files(source)
    for path, listed in shards.items():
        weights = _unpickled(path)
        if listed is not None and (wrong := listed ^ weights.keys()):
            raise ValueError(
                f"{path} and {_BIN_INDEX} don't agree about {min(wrong)}; copy both again"
            )
        name = path.name.replace("pytorch_model", "model").replace(".bin", ".safetensors")
        save_file(_apart(weights), target / name, {"format": "pt"})
        with (target / name).open("rb") as file:
            os.fsync(file.fileno())
        places |= dict.fromkeys(weights, name)
    if list(shards) != [source / _WHOLE]:
        write_json(target / INDEX, {"metadata": {}, "weight_map": dict(sorted(places.items()))})


def _pickled_files(source: Path) -> dict[Path, set[str] | None]:
    """The pickled weights of a checkpoint, each with the names of its tensors by the index."""
    index, whole = source / _BIN_INDEX, source / _WHOLE
    check_file_itself(index), check_file_itself(whole)
    files: dict[Path, set[str] | None] = {whole: None}
    if index.is_file() and not whole.is_file():
        listed: dict[Path, set[str]] = {}
        for name, file in read_json(index).get("weight_map", {}).items():
            if not isinstance(file, str) or not re.fullmatch(r"pytorch_model[\w.-]*\.bin", file):
                raise ValueError(f"{index} is damaged ({name} is in {file!r}); copy it again")
            listed.setdefault(source / file, set()).add(name)
        files = dict(sorted(listed.items()))
    for path in files:
        check_file_itself(path)
        if not path.is_file():
            what = f"though {_BIN_INDEX} lists it" if index.is_file() else f"nor {WEIGHTS}"
            raise FileNotFoundError(f"no {path.name} in {source}, {what}; copy it again")
    for path in sorted(source.glob("pytorch_model*.bin")):
        if path not in files:
            raise ValueError(f"{path} is not among the weights that the index lists; move it away")
    return files


def _unpickled(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"  # older files are read into memory as a whole
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # of a cut file, torch raises whatever its unpickler meets
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{path} is damaged, or holds more than tensors, which is never run ({reason[:120]})"
        ) from None
    if not isinstance(weights, dict) or not weights:
        raise ValueError(f"{path} holds no tensors by name; save the model's state_dict there")
    for name, weight in weights.items():
        if not isinstance(name, str) or not isinstance(weight, Tensor):
            raise ValueError(
                f"{path} holds {name!r}, a {type(weight).__name__}; save the model's state_dict "
                "there, and nothing else"
            )
    return weights


def _apart(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights without shared memory, which safetensors can't write."""
    seen: set[int] = set()
    apart = {}
    for name, weight in weights.items():
        place = weight.untyped_storage().data_ptr()
        apart[name] = weight.clone() if place in seen else weight
        apart[name] = apart[name].contiguous()
        seen.add(place)
    return apart
