"""Checkpoint folders: which folders of a run they are, and which files one may hold.

Weights are read from ``model.safetensors`` only. A pickle can run code when it is opened, so none
ever is: it is refused with the command that converts it.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from interp.fields import LARGEST_STEP

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
_CONVERT = (
    'python -c "from transformers import AutoModelForCausalLM as M; '
    "M.from_pretrained('{0}'{1}).save_pretrained('{2}')\""
)


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


def check_files(folder: Path) -> None:
    """Checks that a checkpoint folder has its two files, and no others that change its model.

    Raises:
        FileNotFoundError, ValueError: config.json or model.safetensors is missing; there are other
            weights, or pickled ones.
    """
    weights = folder / "model.safetensors"
    for path in (folder / "config.json", weights):
        if path.is_symlink() and not path.exists():
            raise FileNotFoundError(
                f"{path} is a link to {path.readlink()}, which is not there; copy what it links to"
            )
        if path.is_file() and _begins(path, 20).startswith(b"version https://git"):
            raise ValueError(
                f"{path} is a pointer of Git LFS to the file; fetch that with git lfs pull"
            )
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"no config.json in {folder}; give a step folder of a run, or a GPT-NeoX folder"
        )
    if not weights.is_file():
        if pickles := _named(folder, _PICKLES):
            raise ValueError(
                f"{pickles[0]} is a pickle, which is never opened; convert it with "
                f"{_convert(folder)}"
            )
        if shards := _named(folder, ["*.safetensors"]):
            variant = re.fullmatch(r"model\.([A-Za-z]\w*)\.safetensors", shards[0].name)
            raise ValueError(
                f"{folder} holds {shards[0].name} but no model.safetensors; put the weights into "
                f"one file with {_convert(folder, variant and variant[1])}"
            )
        raise FileNotFoundError(
            f"no model.safetensors in {folder}; copy the checkpoint again, or train it again"
        )
    for path in _named(folder, ["*.safetensors", "adapter_config.json"]):
        if path != weights:
            raise ValueError(
                f"{path} stands beside model.safetensors, and it is unknown how they belong "
                "together; move it away, or merge it into the weights"
            )
    begins = _begins(weights, 9)
    if begins[8:] != b"{" and re.match(rb"PK\x03\x04|\x80[\x02-\x05]", begins):
        raise ValueError(
            f"{weights} is a pickle, which is never opened; name it pytorch_model.bin and convert "
            f"it with {_convert(folder)}"
        )


def _convert(folder: Path, variant: str | None = None) -> str:
    """The command that converts a folder to another folder, whose name is not that of a step."""
    asked = f", variant='{variant}'" if variant else ""
    return _CONVERT.format(folder, asked, folder.with_name(f"converted-{folder.name}"))


def _begins(path: Path, n: int) -> bytes:
    with path.open("rb") as file:
        return file.read(n)


def _named(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return sorted(path for pattern in patterns for path in folder.glob(pattern))
