"""The residual stream that a layer's attention reads as a sum of parts, and what each part makes of
a head's queries, keys and values with the scale of the LayerNorm held.
"""

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from interp.model.weights import HeadInput, Weights

BIAS = "bias"
"""The part that no token decides: biases of norms, queries, keys, values and attention outputs."""
_BIAS = 1


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


def scale_of(
    resid: Float[Tensor, "*part fact pos d_model"], eps: float
) -> Float[Tensor, "*part fact pos 1"]:
    """What LayerNorm multiplies by: 1 ÷ √(variance + ε)."""
    return (resid.var(-1, unbiased=False, keepdim=True) + eps).rsqrt()


def head_vectors(
    weights: Weights,
    layer: int,
    kind: HeadInput,
    parts: Float[Tensor, "part fact pos d_model"],
    scale: Float[Tensor, "*part fact pos 1"],
    *,
    biases: bool = False,
) -> Float[Tensor, "part fact pos head d_head"]:
    """The queries, keys (both rotated) or values that each part makes; with ``biases``, the second
    of ``part_names`` has those of the norm and of the head.
    """
    factors, bias = weights.attention_norm_weights(layer)
    normed = (parts - parts.mean(-1, keepdim=True)) * scale * factors
    matrix = weights.head_inputs(layer, kind)
    heads = einsum(normed, matrix, "part fact pos m, h d m -> part fact pos h d")
    if biases:
        heads[_BIAS] += matrix @ bias + weights.head_input_biases(layer, kind)
    return heads if kind == "v" else weights.rotated(heads)
