"""Checkpoint folders: which folders of a run they are, and which files hold the weights of one.

Weights are read from ``model.safetensors``, or from the shards that
``model.safetensors.index.json`` lists. A pickle can run code when it is opened, so none ever is
here: it is refused with the command that converts it.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from interp.fields import LARGEST_STEP
from interp.files import read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
_NO_WEIGHTS = re.compile(
    r"(optimizer|scheduler|scaler|training_args|trainer_state|rng_state(_\d+)?)\.\w+"
)
"""Pickles of a Trainer that hold no weights; they are never opened."""


def step_name(step: int) -> str:
    """Name of the folder that a new checkpoint is written to."""
    return f"step-{step:06d}"


def step_of(folder: Path) -> int | None:
    """The step in a folder's name, such as step-000600 or step-600; None where there is none."""
    name = re.fullmatch(r"step-([0-9]+)", folder.name)
    return int(name[1]) if name else None


def step_folders(run: Path) -> dict[int, Path]:
    """A run's checkpoint folders by step, sorted.

    Raises:
        ValueError: two folders of one step, or something that is named like a checkpoint folder and
            is none.
    """
    folders: dict[int, Path] = {}
    for path in sorted(run.iterdir()):
        if not re.match(r"step(-|[ _]?[0-9])", path.name):
            continue
        step = step_of(path)
        if step is None or step > LARGEST_STEP or not path.is_dir():
            raise ValueError(
                f"{path} is not a checkpoint folder; rename it, or make it a folder step-N with N "
                f"up to {LARGEST_STEP}"
            )
        if step in folders:
            raise ValueError(
                f"{folders[step]} and {path} are both step {step}; rename or move one of them"
            )
        folders[step] = path
    return dict(sorted(folders.items()))


def weight_files(folder: Path) -> dict[Path, list[str] | None]:
    """The files of a checkpoint's weights, each with the names of its tensors by the index; None
    where there is no index, because one file holds all.

    Raises:
        FileNotFoundError, ValueError: config.json, or a file with weights, is missing; there are
            other weights, or pickled ones; the index is damaged.
    """
    for path in (folder / "config.json", folder / WEIGHTS, folder / INDEX):
        check_file_itself(path)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"no config.json in {folder}; give a step folder of a run, or a Hugging Face model's"
        )
    if (folder / INDEX).is_file():
        files: dict[Path, list[str] | None] = {**_shards(folder)}
    else:
        files = {folder / WEIGHTS: None}
        if not (folder / WEIGHTS).is_file():
            _refuse_others(folder)
    for path in _named(folder, ["*.safetensors", "adapter_config.json"]):
        if path not in files:
            beside = INDEX if (folder / INDEX).is_file() else WEIGHTS
            raise ValueError(
                f"{path} stands beside {beside}, and it is unknown how they belong "
                "together; move it away, or merge it into the weights"
            )
    for path in files:
        begins = _begins(path, 9)
        if begins[8:] != b"{" and re.match(rb"PK\x03\x04|\x80[\x02-\x05]", begins):
            raise ValueError(
                f"{path} is a pickle, which is never opened; name it pytorch_model.bin and convert "
                f"it with {_convert(folder)}"
            )
    return files


def check_file_itself(path: Path) -> None:
    """Raises an error where a file is a link to nothing, or Git LFS's pointer to the file."""
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(
            f"{path} is a link to {path.readlink()}, which is not there; copy what it links to"
        )
    if path.is_file() and _begins(path, 20).startswith(b"version https://git"):
        raise ValueError(
            f"{path} is a pointer of Git LFS to the file; fetch that with git lfs pull"
        )


def _shards(folder: Path) -> dict[Path, list[str]]:
    """The shards that the index lists, each with the names of its tensors."""
    path = folder / INDEX
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{path} is damaged (it has no weight_map); copy it again")
    shards: dict[Path, list[str]] = {}
    for name, file in places.items():
        if not isinstance(file, str) or not re.fullmatch(r"[\w.-]+\.safetensors", file):
            raise ValueError(f"{path} is damaged ({name} is in {file!r}); copy it again")
        shards.setdefault(folder / file, []).append(name)
    for shard in shards:
        check_file_itself(shard)
        if not shard.is_file():
            raise FileNotFoundError(
                f"no {shard.name} in {folder}, though {INDEX} lists it; copy it again"
            )
    return dict(sorted(shards.items()))


def _refuse_others(folder: Path) -> None:
    """Raises an error that says what a folder without model.safetensors holds instead."""
    pickles = [x for x in _named(folder, _PICKLES) if not _NO_WEIGHTS.fullmatch(x.name)]
    if pickles:
        raise ValueError(
            f"{pickles[0]} is a pickle, which is never opened; convert it with {_convert(folder)}"
        )
    if shards := _named(folder, ["*.safetensors"]):
        advice = (
            f"copy {INDEX} to it"
            if re.search(r"-\d+-of-\d+\.", shards[0].name)
            else f"rename it to {WEIGHTS} if it holds all weights"
        )
        raise ValueError(f"{folder} holds {shards[0].name} but no {WEIGHTS}; {advice}")
    raise FileNotFoundError(f"no {WEIGHTS} in {folder}; copy the checkpoint again")


def _convert(folder: Path) -> str:
    """The command that converts a folder, or the suite that it is a step of, to another folder
    beside it, whose name is not that of a step.
    """
    whole = folder
    if folder.parent.name == "snapshots":
        whole = folder.parents[1]
    elif re.search(r"(step|checkpoint|ckpt)[-_]?[0-9]", folder.name) and folder.parent.name:
        whole = folder.parent
    return f"interp-convert --ckpt {whole} --out {whole.with_name(f'converted-{whole.name}')}"


def _begins(path: Path, n: int) -> bytes:
    with path.open("rb") as file:
        return file.read(n)


def _named(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return sorted(path for pattern in patterns for path in folder.glob(pattern))
