"""A fresh model under training and its optimizer."""

from dataclasses import dataclass

import torch

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
