"""Pre-trains toy memories, fine-tunes them on new pairs, and measures what becomes of the old ones.

Damage to old pairs is also split by layer. One layer of the pre-trained memory is replaced by the
fine-tuned one, and the other is kept (a transplant): what old pairs lose then is lost through that
layer alone. The two losses need not add up, and new pairs that need both layers are not evidence
that either stores them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import log

import pandas as pd
import torch
from einops import reduce
from jaxtyping import Float, Int
from torch import Tensor

from analyses.associative_memory.toy_memory import (
    FINE_TUNING,
    PRETRAINING,
    Choice,
    Mixture,
    Moments,
    Pairs,
    Shape,
    Weights,
    answered,
    cosine_rates,
    draw_pairs,
    initial_weights,
    measure,
    training,
)

CHOSEN = "as chosen"
CHOICES = {
    CHOSEN: Choice(),
    "no biases": Choice(biases=False),
    "He normal initialisation": Choice(initial="he-normal"),
    "logits times 8": Choice(logit_scale=8.0),
    "moments kept": Choice(keeps_moments=True),
}
LAYERS = {"first": ("W_in", "b_in"), "second": ("W_out", "b_out")}
N_BINS = 5
TOP_UNITS = 0.1

OnStep = Callable[[int], None]


@dataclass(frozen=True)
class Size:
    """Sizes of the study; the defaults are the paper's."""

    shape: Shape = field(default_factory=Shape)
    n_old: int = 8192
    pretraining_steps: int = 16_000
    fine_tuning_steps: int = 4000
    n_new: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    n_new_with_replay: int = 128
    replay_weights: tuple[float, ...] = (2, 1 / 2, 1 / 8, 1 / 32, 1 / 128, 1 / 512)
    pretraining_rate: float = 0.03
    fine_tuning_rate: float = 0.001
    evaluated: tuple[int, ...] = tuple(sorted({
        0, 1, 2, 5, 10, 20, 50, 100, 200, *range(31, 250, 31), *range(250, 4001, 125)
    }))  # fmt: skip
    """Fine-tuning steps; those of the paper's figure N, and earlier ones."""
    looked_into: tuple[int, ...] = (250, 1000, 4000)
    """Steps at which layers and cosines are looked at."""

    @property
    def mixtures(self) -> list[Mixture]:
        """Without replay by number of new pairs, then with replay by weight."""
        without = [Mixture(self.n_old, n, 0.0) for n in self.n_new]
        n = self.n_new_with_replay
        return without + [Mixture(self.n_old, n, weight) for weight in self.replay_weights]

    def model_steps(self, n_seeds: int) -> int:
        """Steps of all models, pre-training and fine-tuning, for all choices."""
        tuned = len(self.mixtures) + len(CHOICES) - 1
        pretrained = len(CHOICES) * self.pretraining_steps
        return n_seeds * (pretrained + tuned * self.fine_tuning_steps)


SIZES = {
    "smoke": Size(
        shape=Shape(d_model=16, d_mlp=48, n_values=5),
        n_old=64,
        pretraining_steps=200,
        fine_tuning_steps=20,
        n_new=(4, 8),
        n_new_with_replay=8,
        replay_weights=(1.0, 1 / 4),
        evaluated=(0, 1, 5, 20),
        looked_into=(5, 20),
    ),
    "paper": Size(),
}


def study(size: Size, seeds: Sequence[int], on_step: OnStep) -> dict[str, pd.DataFrame]:
    """All tables, by the name of their file.

    Args:
        on_step: is told how many model-steps were taken since it was last called.
    """
    tables, by_choice = {}, []
    for name, choice in CHOICES.items():
        weights, pairs, moments = pretrained(size, seeds, choice, on_step)
        moments = moments if choice.keeps_moments else {}
        chosen = name == CHOSEN
        mixtures = size.mixtures if chosen else [Mixture(size.n_old, size.n_new_with_replay, 0.0)]
        found = fine_tuned(size, weights, pairs, mixtures, seeds, on_step, moments)
        if chosen:
            tables = found
        alike = found["associative_memory"].query(
            f"n_new == {size.n_new_with_replay} and replay_weight == 0"
        )
        by_choice.append(alike.drop(columns=["n_new", "replay_weight"]).assign(choice=name))
    choices = pd.concat(by_choice, ignore_index=True)
    return tables | {"associative_memory_choices": choices}


def pretrained(
    size: Size, seeds: Sequence[int], choice: Choice, on_step: OnStep
) -> tuple[Weights, Pairs, Moments]:
    """One memory per seed, trained on its old pairs; its pairs, old ones first; the optimizer's
    moments.
    """
    n_pairs = size.n_old + max(*size.n_new, size.n_new_with_replay)
    pairs = Pairs(*_float32(draw_pairs(seeds, n_pairs, size.shape, choice)))
    weights = initial_weights(seeds, size.shape, choice)
    weights = dict(zip(weights, _float32(weights.values())))
    steps = training(
        weights,
        pairs,
        [Mixture(size.n_old, 0, 1.0)] * len(seeds),
        seeds=seeds,
        stage=PRETRAINING,
        learning_rates=cosine_rates(size.pretraining_rate, size.pretraining_steps),
    )
    for step, weights, moments in steps:  # noqa: B007
        on_step(len(seeds) if step else 0)
    return {name: part.detach() for name, part in weights.items()}, pairs, moments


def fine_tuned(
    size: Size,
    weights: Weights,
    pairs: Pairs,
    mixtures: Sequence[Mixture],
    seeds: Sequence[int],
    on_step: OnStep,
    moments: Moments,
) -> dict[str, pd.DataFrame]:
    """Tables of all mixtures, each from the pre-trained memory of each seed."""
    model_of = torch.arange(len(seeds)).repeat(len(mixtures))
    each = [mixture for mixture in mixtures for _ in seeds]
    seed_of = list(seeds) * len(mixtures)
    start, pairs = {name: part[model_of] for name, part in weights.items()}, pairs.of(model_of)
    curves, layers, cosines = [], [], []
    steps = training(
        start,
        pairs,
        each,
        seeds=seed_of,
        stage=FINE_TUNING,
        learning_rates=[size.fine_tuning_rate] * size.fine_tuning_steps,
        moments={name: _repeated(part, model_of) for name, part in moments.items()},
    )
    for step, tuned, _ in steps:
        on_step(len(each) if step else 0)
        if step not in size.evaluated:
            continue
        at = [{"n_new": of.n_new, "replay_weight": of.replay_weight, "step": step} for of in each]
        measured = _with_seeds(at, measure(tuned, pairs, each), seed_of)
        curves += measured
        if step in size.looked_into:
            layers += [row | {"fine_tuned": "both"} for row in measured]
            for name in LAYERS:
                found = transplanted(start, tuned, name, pairs, each)
                layers += _with_seeds(at, found, seed_of)
        if step in (0, *size.looked_into):
            for model, (where, of) in enumerate(zip(at, each)):
                if not of.replay_weight:
                    rows = by_cosine(tuned, pairs, of, model)
                    cosines += [where | row | {"seed": seed_of[model]} for row in rows]
    return {
        "associative_memory": pd.DataFrame(curves),
        "associative_memory_layers": pd.DataFrame(layers),
        "associative_memory_cosine": pd.DataFrame(cosines),
    }


def transplanted(
    start: Weights, tuned: Weights, layer: str, pairs: Pairs, mixtures: Sequence[Mixture]
) -> list[dict]:
    """Accuracies and losses of each pre-trained memory with one layer replaced by the fine-tuned
    one, and how far that layer has moved: the norm of its change (weights and biases) relative to
    its norm, and the share of the squared change of its matrix in the tenth of the hidden units
    that changed most (0.1 where all change alike).
    """
    moved = [name for name in LAYERS[layer] if name in start]
    mixed = start | {name: tuned[name].detach() for name in moved}
    change = _norm(mixed[name] - start[name] for name in moved)
    relative = change / _norm(start[name] for name in moved)
    matrix = LAYERS[layer][0]
    axes = "model d unit -> model unit" if layer == "first" else "model unit d -> model unit"
    of_unit = reduce((mixed[matrix] - start[matrix]) ** 2, axes, "sum")
    n_top = max(1, int(TOP_UNITS * of_unit.shape[-1]))
    top = of_unit.sort(-1, descending=True).values[:, :n_top].sum(-1) / of_unit.sum(-1)
    return [
        row
        | {"fine_tuned": layer, "relative_change": float(far), "share_of_top_units": float(share)}
        for row, far, share in zip(measure(mixed, pairs, mixtures), relative, top)
    ]


def largest_cosine(
    old: Float[Tensor, "old d_model"], new: Float[Tensor, "new d_model"]
) -> Float[Tensor, " old"]:
    """The cosine of each old key with the new key nearest to it; keys have norm 1."""
    return (old @ new.T).max(-1).values


def by_cosine(weights: Weights, pairs: Pairs, of: Mixture, model: int) -> list[dict]:
    """One row per fifth of a model's old pairs, ordered by the cosine of their key with the nearest
    new key: mean of that cosine, accuracy, loss, number of pairs.
    """
    keys = pairs.keys[model]
    cosine = largest_cosine(keys[: of.n_old], keys[of.n_old : of.n_old + of.n_new])
    correct, loss = answered(weights, pairs, model, of.n_old)
    rows = []
    for fifth, at in enumerate(cosine.argsort(stable=True).tensor_split(N_BINS)):
        mean = {"largest_cosine": cosine, "old_accuracy": correct, "old_loss": loss}
        row = {name: float(values[at].double().mean()) for name, values in mean.items()}
        rows.append({"fifth": fifth} | row | {"n": len(at)})
    return rows


def no_knowledge(size: Size) -> float:
    """Loss of somebody who knows nothing (nats per pair): values are uniform."""
    return log(size.shape.n_values)


def _repeated(moments: dict[str, Tensor], models: Int[Tensor, " other"]) -> dict[str, Tensor]:
    """Moments of these models; the step count is common to all."""
    return {key: part[models] if part.ndim else part for key, part in moments.items()}


def _with_seeds(at: list[dict], found: list[dict], seed_of: Sequence[int]) -> list[dict]:
    return [where | row | {"seed": seed} for where, row, seed in zip(at, found, seed_of)]


def _norm(parts: Iterable[Tensor]) -> Float[Tensor, " model"]:
    """Of each model, over all its parts together."""
    return sum(part.flatten(1).square().sum(-1) for part in parts).sqrt()


def _float32(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [part.float() if part.is_floating_point() else part for part in tensors]
