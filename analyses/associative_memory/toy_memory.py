"""A one-hidden-layer ReLU MLP that stores key-value pairs, many of them trained together.

Keys and value embeddings are Gaussian vectors projected to the unit sphere. The logits of a key k
are its output's dot products with the value embeddings e_v:

    logit_v = e_v · (W_outᵀ relu(W_inᵀ k + b_in) + b_out)

Source: Zucchet et al. 2025, arXiv 2503.21676, appendix F.4. Left open there, and chosen here: both
layers have biases; weights and biases start uniform in ±1/√(inputs of the layer); logits are not
scaled; AdamW has β = (0.9, 0.999), ε = 1e-8, decays all weights and biases, and forgets its moments
before fine-tuning; the cosine falls from the learning rate to 0 without a warm-up; values are drawn
uniformly. Every tensor has a leading ``model`` axis: no model's training depends on another's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

Weights = dict[str, Tensor]
"""``W_in`` (model d_model d_mlp), ``W_out`` (model d_mlp d_model), and, where there are biases,
``b_in`` (model d_mlp) and ``b_out`` (model d_model)."""
Moments = dict[str, dict[str, Tensor]]
"""AdamW's state of each part of the weights: ``exp_avg`` and ``exp_avg_sq``, of the part's shape,
and ``step``."""
PAIRS, INITIAL, PRETRAINING, FINE_TUNING = range(4)
"""Independent random streams of a seed."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a memory; the defaults are the paper's."""

    d_model: int = 64
    d_mlp: int = 256
    n_values: int = 30


@dataclass(frozen=True)
class Choice:
    """What the paper's description leaves open and that may decide what the memory can learn."""

    initial: Literal["uniform", "he-normal"] = "uniform"
    """``uniform``: ±1/√inputs, biases too, as PyTorch's ``Linear``. ``he-normal``: standard
    deviation √(2/inputs), biases 0 (He et al. 2015, equation 10)."""
    biases: bool = True
    logit_scale: float = 1.0
    keeps_moments: bool = False
    """Fine-tuning goes on with AdamW's moments and step count of pre-training; else it starts with
    none."""


class Pairs(NamedTuple):
    """Key-value pairs of each model."""

    keys: Float[Tensor, "model pair d_model"]
    values: Int[Tensor, "model pair"]
    """Index of the value."""
    embeddings: Float[Tensor, "model value d_model"]
    """Of the possible values, times the logit scale."""

    def of(self, models: Int[Tensor, " other"]) -> "Pairs":
        """Pairs of these models, which may be repeated."""
        return Pairs(*(part[models] for part in self))


class Mixture(NamedTuple):
    """What batches are drawn from: the first ``n_old`` pairs and the ``n_new`` after them."""

    n_old: int
    n_new: int
    replay_weight: float
    """How often an old pair is drawn, relative to a new one; 0 is no replay."""

    @property
    def share_of_old(self) -> float:
        """Expected share of old pairs in a batch."""
        old = self.n_old * self.replay_weight
        return old / (old + self.n_new)


def draw_pairs(seeds: Sequence[int], n_pairs: int, shape: Shape, choice: Choice) -> Pairs:
    """Pairs of one model per seed, in float64."""
    drawn = []
    for seed in seeds:
        rng = np.random.default_rng([seed, PAIRS])
        embeddings = choice.logit_scale * _on_sphere(rng, shape.n_values, shape.d_model)
        keys = _on_sphere(rng, n_pairs, shape.d_model)
        drawn.append((keys, rng.integers(shape.n_values, size=n_pairs), embeddings))
    return Pairs(*(torch.from_numpy(np.stack(part)) for part in zip(*drawn)))


def initial_weights(seeds: Sequence[int], shape: Shape, choice: Choice) -> Weights:
    """Untrained weights of one model per seed, in float64."""
    rngs = [np.random.default_rng([seed, INITIAL]) for seed in seeds]
    weights = {}
    layers = {"in": (shape.d_model, shape.d_mlp), "out": (shape.d_mlp, shape.d_model)}
    for name, (inputs, outputs) in layers.items():
        sizes = {f"W_{name}": (inputs, outputs), f"b_{name}": (outputs,)}
        for part, size in sizes.items():
            if part.startswith("b") and not choice.biases:
                continue
            if choice.initial == "uniform":
                drawn = [rng.uniform(-(inputs**-0.5), inputs**-0.5, size) for rng in rngs]
            elif part.startswith("b"):
                drawn = [np.zeros(size) for _ in rngs]
            else:
                drawn = [rng.normal(0, (2 / inputs) ** 0.5, size) for rng in rngs]
            weights[part] = torch.from_numpy(np.stack(drawn))
    return weights


def logits(
    weights: Weights,
    keys: Float[Tensor, "model batch d_model"],
    embeddings: Float[Tensor, "model value d_model"],
) -> Float[Tensor, "model batch value"]:
    """Each key's score for each value."""
    hidden = _affine(keys, weights["W_in"], weights.get("b_in")).relu()
    out = _affine(hidden, weights["W_out"], weights.get("b_out"))
    return torch.bmm(out, embeddings.mT)


def training(
    weights: Weights,
    pairs: Pairs,
    mixtures: Sequence[Mixture],
    *,
    seeds: Sequence[int],
    stage: int,
    learning_rates: Sequence[float],
    batch_size: int = 128,
    weight_decay: float = 0.01,
    moments: Moments | None = None,
) -> Iterator[tuple[int, Weights, Moments]]:
    """Trains all models, one AdamW step each per learning rate, and yields (steps taken, weights,
    moments) before the first step and after each. The same tensors are yielded again and again:
    they change in place. What was given is left as it is.

    Args:
        mixtures, seeds: of each model. Models of the same seed draw from the same stream.
        stage: which stream of the seed batches are drawn from.
        moments: those to start with; without them, there are none.
    """
    weights = {name: part.clone().requires_grad_() for name, part in weights.items()}
    optimizer = torch.optim.AdamW(weights.values(), weight_decay=weight_decay, fused=True)
    for name, part in (moments or {}).items():
        optimizer.state[weights[name]] = {key: value.clone() for key, value in part.items()}
    moments = {name: optimizer.state[part] for name, part in weights.items()}
    rngs = [np.random.default_rng([seed, stage]) for seed in seeds]
    models = rearrange(torch.arange(len(seeds)), "model -> model 1")
    yield 0, weights, moments
    for step, rate in enumerate(learning_rates, 1):
        drawn = [draw_batch(rng, of, batch_size) for rng, of in zip(rngs, mixtures)]
        batch = torch.from_numpy(np.stack(drawn))
        scores = logits(weights, pairs.keys[models, batch], pairs.embeddings)
        answers = rearrange(pairs.values[models, batch], "model batch -> (model batch)")
        scores = rearrange(scores, "model batch value -> (model batch) value")
        loss = F.cross_entropy(scores, answers, reduction="sum") / batch_size  # models add up
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        yield step, weights, moments


def draw_batch(
    rng: np.random.Generator, mixture: Mixture, batch_size: int
) -> Int[np.ndarray, " batch"]:
    """Indices of pairs, drawn with replacement."""
    n_old, n_new, _ = mixture
    is_old = rng.random(batch_size) < mixture.share_of_old
    old = rng.integers(n_old, size=batch_size)
    new = n_old + rng.integers(max(n_new, 1), size=batch_size)  # without new pairs, none is drawn
    return np.where(is_old, old, new)


def cosine_rates(peak: float, n_steps: int) -> list[float]:
    """Learning rates of steps that fall from ``peak`` along half a cosine to 0 at ``n_steps``."""
    return list(peak * (1 + np.cos(np.pi * np.arange(n_steps) / n_steps)) / 2)


@torch.no_grad()
def answered(
    weights: Weights, pairs: Pairs, model: int, n_pairs: int
) -> tuple[Bool[Tensor, " pair"], Float[Tensor, " pair"]]:
    """Whether the likeliest value is the right one, and −ln p of the right one (nats), for each of
    a model's first pairs.
    """
    one = slice(model, model + 1)
    weights = {name: part[one] for name, part in weights.items()}
    (scores,) = logits(weights, pairs.keys[one, :n_pairs], pairs.embeddings[one])
    right = pairs.values[model, :n_pairs]
    return scores.argmax(-1) == right, F.cross_entropy(scores, right, reduction="none")


def measure(weights: Weights, pairs: Pairs, mixtures: Sequence[Mixture]) -> list[dict[str, float]]:
    """Accuracy and mean loss (nats per pair) of each model on all of its old and all of its new
    pairs; NaN where it has none.
    """
    found = []
    for model, (n_old, n_new, _) in enumerate(mixtures):
        correct, loss = answered(weights, pairs, model, n_old + n_new)
        old, new = slice(n_old), slice(n_old, None)
        found.append({
            "old_accuracy": float(correct[old].double().mean()),
            "old_loss": float(loss[old].double().mean()),
            "new_accuracy": float(correct[new].double().mean()),
            "new_loss": float(loss[new].double().mean()),
        })  # fmt: skip
    return found


def _on_sphere(rng: np.random.Generator, n: int, d: int) -> Float[np.ndarray, "n d"]:
    gaussian = rng.normal(size=(n, d))
    return gaussian / np.linalg.norm(gaussian, axis=-1, keepdims=True)


def _affine(
    x: Float[Tensor, "model batch inputs"],
    weight: Float[Tensor, "model inputs outputs"],
    bias: Float[Tensor, "model outputs"] | None,
) -> Float[Tensor, "model batch outputs"]:
    if bias is None:
        return torch.bmm(x, weight)
    return torch.baddbmm(repeat(bias, "model outputs -> model 1 outputs"), x, weight)
