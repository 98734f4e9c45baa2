"""Checkpoint folders: which of a run's folders they are, and what may lie in one.

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
    "M.from_pretrained('{0}').save_pretrained('{1}')\""
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
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"no config.json in {folder}; give a step folder of a run, or a GPT-NeoX folder"
        )
    weights = folder / "model.safetensors"
    if not weights.is_file():
        if pickles := _named(folder, _PICKLES):
            raise ValueError(
                f"{pickles[0]} is a pickle, which is never opened; convert it with "
                f"{_convert(folder)}"
            )
        if shards := _named(folder, ["*.safetensors"]):
            raise ValueError(
                f"{folder} holds {shards[0].name} but no model.safetensors; put the weights into "
                f"one file with {_convert(folder)}"
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
    with weights.open("rb") as file:
        begins = file.read(9)
    if begins[8:] != b"{" and re.match(rb"PK\x03\x04|\x80[\x02-\x05]", begins):
        raise ValueError(
            f"{weights} is a pickle, which is never opened; name it pytorch_model.bin and convert "
            f"it with {_convert(folder)}"
        )


def _convert(folder: Path) -> str:
    """The command that writes a folder's model to another folder, which is not taken for a step."""
    return _CONVERT.format(folder, folder.with_name(f"converted-{folder.name}"))


def _named(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return sorted(path for pattern in patterns for path in folder.glob(pattern))
