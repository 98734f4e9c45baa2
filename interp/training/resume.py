"""The state from which training goes on: fp32 weights, both moments of the optimizer, and where it
stands; no pickle.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from interp.files import write_bytes
from interp.training.trainee import Trainee

_MOMENTS = ("exp_avg", "exp_avg_sq")


def write_state(trainee: Trainee, folder: Path) -> None:
    """Replaces the state in ``folder``."""
    folder.mkdir(exist_ok=True)
    tensors = {}
    for name, weight in trainee.model.named_parameters():
        tensors[name] = weight.detach()
        moments = trainee.optimizer.state.get(weight) or {
            moment: torch.zeros_like(weight) for moment in _MOMENTS
        }
        tensors |= {f"{moment}.{name}": moments[moment] for moment in _MOMENTS}
    first = next(trainee.model.parameters())
    optimizer_step = int(trainee.optimizer.state.get(first, {}).get("step", 0))
    position = {
        "step": str(trainee.step),
        "optimizer_step": str(optimizer_step),  # fewer, where the optimizer was begun anew
        "tokens_seen": str(trainee.tokens_seen),
    }
    write_bytes(
        folder / "state.safetensors",
        save({k: v.cpu().contiguous() for k, v in tensors.items()}, position),
    )


def read_state(trainee: Trainee, folder: Path) -> None:
    """Puts ``trainee`` where the state was written.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / "state.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
            position = file.metadata()
        wanted = {name for name, _ in trainee.model.named_parameters()}
        wanted |= {f"{moment}.{name}" for moment in _MOMENTS for name in wanted}
        if position is None or wanted != tensors.keys():
            raise SafetensorError("not the state of this run")
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged ({error}); delete the folder resume to start the run again"
        ) from None
    trainee.step, trainee.tokens_seen = int(position["step"]), int(position["tokens_seen"])
    optimizer_step = float(position.get("optimizer_step", position["step"]))
    with torch.no_grad():
        for name, weight in trainee.model.named_parameters():
            weight.copy_(tensors[name])
            state = {moment: tensors[f"{moment}.{name}"].to(weight.device) for moment in _MOMENTS}
            trainee.optimizer.state[weight] = {
                "step": torch.tensor(optimizer_step, device=weight.device),
                **state,
            }
