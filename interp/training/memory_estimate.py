"""A lower bound on the memory that training takes, so that sizes far beyond the machine are refused
before anything is allocated.

Counted are fp32 weights, gradients and AdamW's two moments of the blocks' matrices; the largest
activation of one batch of the shortest biographies, in two bytes per number; and one pointer per
value and one byte per template of the population. A run takes several times as much, so a run that
is not refused may still not fit.
"""

import os

import torch

from interp.config import ATTRIBUTES, N_TEMPLATES, TrainConfig
from interp.data.population import NAME_PARTS
from interp.model.decoder import device_of

_SHORTEST_SENTENCE = len(NAME_PARTS) + 3
"""Tokens: a name, a word, a value, a full stop."""


def check_memory(config: TrainConfig) -> None:
    """Raises a ValueError where training needs more memory than the machine, or its GPU, has."""
    device = device_of(config.device)
    needs = least_bytes(config)
    if device == "cpu":
        holders = [("this machine", _physical_memory(), needs)]
    else:
        gpu = torch.cuda.get_device_properties(device).total_memory
        people = {key: n for key, n in needs.items() if key.startswith("n_people")}
        others = {key: n for key, n in needs.items() if key not in people}
        holders = [("this machine", _physical_memory(), people), ("this GPU", gpu, others)]
    for holder, has, parts in holders:
        if (total := sum(parts.values())) > has:
            largest = max(parts, key=parts.get)
            raise ValueError(
                f"{largest} need about {_size(total)} to train, {holder} has {_size(has)}; choose "
                "smaller sizes"
            )


def least_bytes(config: TrainConfig) -> dict[str, int]:
    """Lower bounds in bytes of weights, activations and people, by the fields that decide them."""
    c = config
    weights = c.n_layers * (4 * c.d_model**2 + 2 * c.d_model * c.d_mlp)
    shortest = 1 + len(c.attributes) * _SHORTEST_SENTENCE  # 1: <bos>
    activation = c.batch_size * shortest * max(3 * c.d_model, c.d_mlp)
    n_values = len(c.attributes if c.people_csv else ATTRIBUTES)
    n_templates = c.n_train_templates if c.people_csv else N_TEMPLATES
    person = 8 * (len(NAME_PARTS) + n_values) + n_templates * n_values
    return {
        f"n_layers {c.n_layers} and {_wider(c, 2)}": 4 * 4 * weights,
        f"batch_size {c.batch_size} and {_wider(c, 3)}": 2 * activation,
        f"n_people {c.n_people} and n_held_out {c.n_held_out}": person
        * (c.n_people + c.n_held_out),
    }


def _wider(config: TrainConfig, times: int) -> str:
    """The field that decides whether ``times`` d_model or d_mlp is the larger."""
    wide = times * config.d_model >= config.d_mlp
    return f"d_model {config.d_model}" if wide else f"d_mlp {config.d_mlp}"


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _size(n_bytes: int) -> str:
    tera = n_bytes >= 10**13
    return f"{n_bytes // 10**12:,} TB" if tera else f"{n_bytes // 10**9:,} GB"
