"""The residual stream that a layer's attention reads as a sum of parts, and what each part makes of
a head's queries, keys and values with the scales of norms held.
"""

from typing import NamedTuple

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from interp.model.weights import HeadInput, Weights, norm_weights

BIAS = "bias"
"""The part that no token decides: biases of norms, queries, keys, values and attention outputs."""
BIAS_PART, EVERY = 1, slice(None)


def part_names(n_layers: int, n_heads: int) -> list[str]:
    """The parts that the last layer's attention reads, in the order in which they are written;
    earlier layers read the first of them.
    """
    parts = ["embed", BIAS]
    for layer in range(n_layers - 1):
        parts += [*(f"L{layer}H{head}" for head in range(n_heads)), f"L{layer}-MLP"]
    return parts


def parts_of(
    weights: Weights, written: list[Float[Tensor, "fact pos d_model"]], layer: int
) -> Float[Tensor, "part fact pos d_model"]:
    """The parts that a layer's attention reads, in the order of ``part_names``.

    Args:
        written: what every component writes (``component_outputs``).
    """
    bias = torch.zeros_like(written[0])
    for earlier in range(layer):
        bias = bias + weights.attention_bias(earlier)
    n = 1 + layer * (weights.model.cfg.n_heads + 1)
    return torch.stack([written[0], bias, *written[1:n]])


class Scales(NamedTuple):
    """What the norms of a layer's attention multiply by, in a run or for each of several parts."""

    of_stream: Float[Tensor, "*part fact pos 1"]
    of_heads: dict[HeadInput, Float[Tensor, "*part fact pos #head 1"]]
    """Norms of queries and keys, where the model has them."""


def scales_of(
    weights: Weights, layer: int, resid: Float[Tensor, "*part fact pos d_model"]
) -> Scales:
    """The scales of the norms when attention reads ``resid``."""
    norm, attention = weights.attention_norm(layer), weights.model.blocks[layer].attn
    of_stream = resid.new_ones(*resid.shape[:-1], 1) if norm is None else norm.factor(resid)
    of_heads: dict[HeadInput, Tensor] = {}
    for kind in ("q", "k") if attention.qk_norm != "none" else ():
        matrix, read = weights.head_inputs(layer, kind), weights.attention_input(layer, resid)
        x = einsum(read, matrix, "... m, h d m -> ... h d")
        x = x + weights.head_input_biases(layer, kind)
        head_norm = attention.q_norm if kind == "q" else attention.k_norm
        if attention.qk_norm == "all":
            of_heads[kind] = head_norm.factor(x.flatten(-2))[..., None]
        else:
            of_heads[kind] = head_norm.factor(x)
    return Scales(of_stream, of_heads)


def head_vectors(
    weights: Weights,
    layer: int,
    kind: HeadInput,
    parts: Float[Tensor, "part fact pos d_model"],
    scales: Scales,
    *,
    biases: int | slice | None = None,
) -> Float[Tensor, "part fact pos head d_head"]:
    """The queries, keys (both after their norm and rotated) or values that each part makes.

    Args:
        biases: which of ``parts`` get those of the norm and of the head: ``BIAS_PART``, or
            ``EVERY`` one, if each is a whole residual stream.
    """
    norm, matrix = weights.attention_norm(layer), weights.head_inputs(layer, kind)
    factors, bias = (1, torch.zeros_like(parts[0, 0, 0])) if norm is None else norm_weights(norm)
    centred = parts if norm is None else norm.centred(parts)
    normed = centred * scales.of_stream * factors
    heads = einsum(normed, matrix, "part fact pos m, h d m -> part fact pos h d")
    if biases is not None:
        heads[biases] += matrix @ bias + weights.head_input_biases(layer, kind)
    if kind in scales.of_heads:
        attention = weights.model.blocks[layer].attn
        weight, _ = norm_weights(attention.q_norm if kind == "q" else attention.k_norm)
        weight = weight if attention.qk_norm == "head" else weight.unflatten(0, heads.shape[-2:])
        heads = heads * scales.of_heads[kind] * weight
    return weights.by_head(heads if kind == "v" else weights.rotated(heads))
