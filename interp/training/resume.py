"""The state from which training resumes: fp32 weights, both moments of the optimizer, and the step;
no pickle. The newest checkpoint can be rewritten from it.
"""

from collections.abc import Collection
from pathlib import Path

import torch

from interp.config import TrainConfig
from interp.files import write_bytes
from interp.model.checkpoint_folder import step_folders, step_name
from interp.model.checkpoint_io import check_checkpoint, read_checkpoint, write_checkpoint
from interp.model.decoder import DecoderConfig
from interp.model.tensor_file import opened, read_tensors, to_bytes
from interp.training.optimizer import Trainee

_MOMENTS = ("exp_avg", "exp_avg_sq")


def write_state(trainee: Trainee, folder: Path) -> None:
    """Replaces the state in ``folder``."""
    folder.mkdir(exist_ok=True)
    tensors = {}
    for name, weight in trainee.named_parameters():
        tensors[name] = weight.detach()
        moments = trainee.optimizer.state.get(weight) or {
            moment: torch.zeros_like(weight) for moment in _MOMENTS
        }
        tensors |= {f"{moment}.{name}": moments[moment] for moment in _MOMENTS}
    taken = [int(state["step"]) for state in trainee.optimizer.state.values()]
    optimizer_step = max(taken, default=0)
    position = {
        "step": str(trainee.step),
        "optimizer_step": str(optimizer_step),  # fewer, where the optimizer was begun anew
        "tokens_seen": str(trainee.tokens_seen),
    }
    write_bytes(folder / "state.safetensors", to_bytes(tensors, position))


def read_state(trainee: Trainee, folder: Path, *, steps: Collection[int]) -> None:
    """Restores the stored state into ``trainee``; its step must be one of ``steps``.

    Raises:
        ValueError: the file is damaged, or not the state of this run.
    """
    path = folder / "state.safetensors"
    if not path.is_file():
        raise _damaged(path, "it is not a file")
    tensors = read_tensors(path)
    with opened(path) as file:
        position = file.metadata() or {}
    weights = dict(trainee.named_parameters())
    if wrong := _wrong_tensor(tensors, weights):
        raise _damaged(path, wrong)
    numbers = {}
    for name in ("step", "optimizer_step", "tokens_seen"):
        text = position.get(name, position.get("step", "") if name == "optimizer_step" else "")
        if not (text.isascii() and text.isdecimal()):
            raise _damaged(path, f"{name} is {text!r}, not a whole number")
        numbers[name] = int(text)
    if numbers["step"] not in steps:
        raise _damaged(
            path, f"it is of step {numbers['step']}, at which this run has no checkpoint"
        )
    if numbers["optimizer_step"] > numbers["step"]:
        raise _damaged(path, f"optimizer_step is {numbers['optimizer_step']}, later than step")
    trainee.step, trainee.tokens_seen = numbers["step"], numbers["tokens_seen"]
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(tensors[name])
            state = {moment: tensors[f"{moment}.{name}"].to(weight.device) for moment in _MOMENTS}
            trainee.optimizer.state[weight] = {
                "step": torch.tensor(float(numbers["optimizer_step"]), device=weight.device),
                **state,
            }


def mend_checkpoints(config: TrainConfig, out: Path, trainee: Trainee) -> None:
    """Rewrites the checkpoint at the state's step if it is missing or damaged.

    Raises:
        ValueError: an older one is, or one is of another shape.
    """
    folders, newest = step_folders(out), trainee.step
    older = [step for step in config.checkpoint_steps if step < newest and config.keep == "all"]
    for step in older:
        folder = folders.get(step, out / step_name(step))
        try:
            shape = check_checkpoint(folder)
        except (FileNotFoundError, ValueError) as error:
            raise ValueError(
                f"{error} (an older checkpoint of {out}, which resuming can't make again: copy "
                f"{folder.name} from elsewhere, or train again into another --out)"
            ) from None
        _check_shape(folder, shape, trainee)
    folder = folders.get(newest, out / step_name(newest))
    try:
        shape = read_checkpoint(folder).cfg
    except (FileNotFoundError, ValueError):
        dtype = getattr(torch, config.checkpoint_dtype)
        write_checkpoint(trainee.model, folder, dtype=dtype)
    else:
        _check_shape(folder, shape, trainee)


def _check_shape(folder: Path, shape: DecoderConfig, trainee: Trainee) -> None:
    for name in ("n_layers", "n_heads", "d_model", "d_mlp", "d_vocab", "parallel"):
        ours, theirs = getattr(trainee.model.cfg, name), getattr(shape, name)
        if ours != theirs:
            raise ValueError(
                f"{folder} has {name} {theirs}, this run {ours}; it is not a checkpoint of this "
                "run, move it away"
            )


def _wrong_tensor(tensors: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> str | None:
    wanted = dict(weights)
    for moment in _MOMENTS:
        wanted |= {f"{moment}.{name}": weight for name, weight in weights.items()}
    if other := wanted.keys() ^ tensors.keys():
        name = min(other)
        return f"it lacks {name}" if name in wanted else f"{name} is no weight of this run"
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            return f"{name} has shape {tuple(tensor.shape)}, not {tuple(wanted[name].shape)}"
        if tensor.dtype != torch.float32:
            return f"{name} is of type {tensor.dtype}, not float32"
        if not tensor.isfinite().all():
            return f"{name} holds NaN or infinite numbers"
    return None


def _damaged(path: Path, wrong: str) -> ValueError:
    return ValueError(
        f"{path} is damaged ({wrong}); copy it again, or train again into another --out"
    )
