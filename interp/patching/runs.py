"""What patching keeps of a forward pass, and the inputs it runs on."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.facts import NO_TOKEN, FactSet


@dataclass(frozen=True)
class Prompts:
    """One run's input, with the value's tokens after the prompt so that the whole value can be
    scored.
    """

    tokens: Int[Tensor, "fact pos"]
    n_prompt: Int[Tensor, " fact"]
    n_value: Int[Tensor, " fact"]
    answers: Int[Tensor, "fact value_token"]
    other: Int[Tensor, " fact"]
    """First token of the corrupted prompt's value."""


@dataclass(frozen=True)
class Layer:
    """What one block computed in a run; queries are rotated and scaled, keys rotated."""

    resid_pre: Float[Tensor, "fact pos d_model"]
    resid_mid: Float[Tensor, "fact pos d_model"]
    attn_out: Float[Tensor, "fact pos d_model"]
    mlp_out: Float[Tensor, "fact pos d_model"]
    z: Float[Tensor, "fact pos head d_head"]
    q: Float[Tensor, "fact pos head d_head"]
    k: Float[Tensor, "fact pos head d_head"]
    v: Float[Tensor, "fact pos head d_head"]


@dataclass(frozen=True)
class Run:
    """A whole forward pass, kept."""

    layers: list[Layer]
    resid_final: Float[Tensor, "fact pos d_model"]


def prompts(facts: FactSet, device: torch.device | str) -> tuple[Prompts, Prompts]:
    """The clean and the corrupted run's input; both go on with the clean value."""
    n_value = (facts.answers != NO_TOKEN).sum(1)
    n_pos = int((facts.lengths + n_value).max()) - 1
    both = []
    for prompt in (facts.clean, facts.corrupted):
        tokens = torch.zeros(len(facts), n_pos, dtype=torch.long)
        tokens[:, : prompt.shape[1]] = prompt
        for i in range(facts.answers.shape[1] - 1):
            rows = torch.nonzero(n_value > i + 1)[:, 0]
            tokens[rows, facts.lengths[rows] + i] = facts.answers[rows, i]
        moved = (
            x.to(device)
            for x in (
                tokens,
                facts.lengths,
                n_value,
                facts.answers.clamp(min=0),
                facts.corrupted_answers[:, 0],
            )
        )
        both.append(Prompts(*moved))
    return both[0], both[1]
