"""A fresh model under training, its optimizer and its learning rate."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import cos, pi

import torch
from torch import nn

from interp.config import TrainConfig
from interp.model.decoder import DecoderConfig, HookedDecoder, device_of, initialise, remove

LONGEST_BIOGRAPHY = 512


@dataclass
class Trainee:
    """A model in training: what must be stored to resume it."""

    model: HookedDecoder
    optimizer: torch.optim.AdamW
    step: int = 0
    tokens_seen: int = 0
    beside: dict[str, nn.Parameter] = field(default_factory=dict)
    """What is trained beside the model's own weights."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self.model.named_parameters()
        yield from self.beside.items()


def make_trainee(config: TrainConfig, d_vocab: int) -> Trainee:
    """A freshly initialised model and its optimizer."""
    device = device_of(config.device)
    shape = DecoderConfig(
        config.n_layers,
        config.n_heads,
        config.d_model,
        config.d_mlp,
        d_vocab,
        LONGEST_BIOGRAPHY,
        parallel=config.parallel,
        device=device,
    )
    model = HookedDecoder(shape)
    initialise(model, std=config.init_std, seed=config.seed)
    for component in config.removed:
        remove(model, component)
    model.to(device)
    return Trainee(model, make_optimizer(config, model))


def make_optimizer(config: TrainConfig, model: HookedDecoder) -> torch.optim.AdamW:
    """A fresh AdamW; weight decay on matrices only."""
    matrices = [weight for weight in model.parameters() if weight.ndim == 2]
    vectors = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True
    )


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate at ``step``: a cosine from ``learning_rate`` at 0 to ``final_learning_rate`` at
    ``n_steps``.
    """
    share = 0.5 * (1 + cos(pi * step / config.n_steps))
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * share
