"""A ``HookedDecoder``'s weights by layer, head and neuron.

A model in bf16 or fp16 is read in fp32: its activations as they are, the products after them
without more rounding.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from einops import einsum
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from interp.model.attention import rotate, rotation, split_output_weight, split_qkv_weight
from interp.model.decoder import HookedDecoder
from interp.model.norm import Norm

HeadInput = Literal["q", "k", "v"]
_KINDS = ("q", "k", "v")


def widened(x: Tensor) -> Tensor:
    """``x`` in fp32 if its type is narrower, else unchanged."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


@dataclass(frozen=True)
class Weights:
    """A model's weights as probes and attributions use them, ``widened``; read-only."""

    model: HookedDecoder

    def attention_input(
        self, layer: int, resid: Float[Tensor, "*cell d_model"]
    ) -> Float[Tensor, "*cell d_model"]:
        """The input of a layer's attention, given a residual stream."""
        block = self.model.blocks[layer]
        return widened(resid) if block.norm_after else normalised(block.ln1, resid)

    def attention_norm(self, layer: int) -> Norm | None:
        """The norm that a layer's attention reads the residual stream through."""
        block = self.model.blocks[layer]
        return None if block.norm_after else block.ln1

    def head_inputs(
        self, layer: int, kind: HeadInput
    ) -> Float[Tensor, "head_or_group d_head d_model"]:
        """The weights that make every head's queries, or the keys or values of every group of heads
        that shares them, before norms and rotation.
        """
        return widened(self._qkv(layer, "weight")[_KINDS.index(kind)])

    def head_input_biases(
        self, layer: int, kind: HeadInput
    ) -> Float[Tensor, "head_or_group d_head"]:
        return widened(self._qkv(layer, "bias")[_KINDS.index(kind)])

    def by_head(
        self, x: Shaped[Tensor, "*lead group d_head"]
    ) -> Shaped[Tensor, "*lead head d_head"]:
        """Keys or values for every head, given those of groups; for every head stays as it is."""
        return x.repeat_interleave(self.model.cfg.n_heads // x.shape[-2], -2)

    def turned(
        self, layer: int, kind: Literal["q", "k"], x: Float[Tensor, "*cell pos head d_head"]
    ) -> Float[Tensor, "*cell pos head d_head"]:
        """Queries or keys of positions 0, 1, ..., after their norm and rotated."""
        attention = self.model.blocks[layer].attn
        norm = getattr(attention, f"{kind}_norm", None)
        if norm is not None:
            of_all = self.model.cfg.qk_norm == "all"
            flat = normalised(norm, x.flatten(-2) if of_all else x)
            x = flat.unflatten(-1, x.shape[-2:]) if of_all else flat
        return self.rotated(x)

    def rotated(
        self, x: Float[Tensor, "*cell pos head d_head"]
    ) -> Float[Tensor, "*cell pos head d_head"]:
        """Queries or keys of positions 0, 1, ..., rotated to them."""
        return rotate(x, rotation(torch.arange(x.shape[-3], device=x.device), self.model.cfg))

    def head_outputs(self, layer: int) -> Float[Tensor, "head d_model d_head"]:
        """What takes each head's z to the residual stream; where a norm follows, with its weight,
        but not its scale (``written_by_heads``).
        """
        block = self.model.blocks[layer]
        out = widened(split_output_weight(block.attn.out.weight, self.model.cfg.n_heads))
        return out * widened(block.ln1_post.weight)[:, None] if block.norm_after else out

    def written_by_heads(
        self, layer: int, z: Float[Tensor, "*cell head d_head"]
    ) -> Float[Tensor, "*cell head d_model"]:
        """What each head writes into the residual stream, given the z of all of them. A norm that
        follows has the scale of their sum.
        """
        written = einsum(widened(z), self.head_outputs(layer), "... h d, h m d -> ... h m")
        return written * self.attention_output_factor(layer, z)[..., None, :]

    def attention_output_factor(
        self, layer: int, z: Float[Tensor, "*cell head d_head"]
    ) -> Float[Tensor, "*cell 1"]:
        """The scale of the norm that follows attention with these z; 1 without."""
        block = self.model.blocks[layer]
        if not block.norm_after:
            return widened(z).new_ones(*z.shape[:-2], 1)
        weight, bias = widened(block.attn.out.weight), widened(block.attn.out.bias)
        return block.ln1_post.factor(F.linear(widened(z).flatten(-2), weight, bias))

    def attention_bias(self, layer: int) -> Float[Tensor, " d_model"]:
        """The part of the attention output that does not depend on its heads; 0 where a norm
        follows, because such models have none.
        """
        return widened(self.model.blocks[layer].attn.out.bias)

    def neuron_outputs(self, layer: int) -> Float[Tensor, "neuron d_model"]:
        """The output vector of each neuron of an MLP; where a norm follows, with its weight, but
        not its scale.
        """
        block = self.model.blocks[layer]
        out = widened(block.mlp.down.weight).mT
        return out * widened(block.ln2_post.weight) if block.norm_after else out

    def mlp_output_factor(
        self, layer: int, neurons: Float[Tensor, "*cell d_mlp"]
    ) -> Float[Tensor, "*cell 1"]:
        """The scale of the norm that follows an MLP with these activations; 1 without."""
        block = self.model.blocks[layer]
        if not block.norm_after:
            return widened(neurons).new_ones(*neurons.shape[:-1], 1)
        weight, bias = widened(block.mlp.down.weight), widened(block.mlp.down.bias)
        return block.ln2_post.factor(F.linear(widened(neurons), weight, bias))

    def embedding(self) -> Float[Tensor, "d_vocab d_model"]:
        return widened(self.model.embed.weight)

    def final_norm(self, resid: Float[Tensor, "*cell d_model"]) -> Float[Tensor, "*cell d_model"]:
        """The input of the unembedding, given a residual stream."""
        return normalised(self.model.ln_final, resid)

    def unembedding(self) -> Float[Tensor, "d_vocab d_model"]:
        return widened(self.model.unembed.weight)

    def _qkv(self, layer: int, kind: str) -> tuple[Tensor, Tensor, Tensor]:
        fused, cfg = getattr(self.model.blocks[layer].attn.qkv, kind), self.model.cfg
        return split_qkv_weight(fused, cfg.n_heads, cfg.n_key_value_heads)


def norm_weights(norm: Norm) -> tuple[Float[Tensor, " width"], Float[Tensor, " width"]]:
    """Factors and bias of a norm, ``widened``; RMSNorm's bias is 0."""
    weight = widened(norm.weight)
    return weight, torch.zeros_like(weight) if norm.bias is None else widened(norm.bias)


def normalised(norm: Norm, x: Float[Tensor, "*cell width"]) -> Float[Tensor, "*cell width"]:
    """A norm of ``x``, ``widened``."""
    x = widened(x)
    weight, bias = (y.to(x.dtype) for y in norm_weights(norm))
    if norm.kind == "rms":
        return F.rms_norm(x, weight.shape, weight, norm.eps)
    return F.layer_norm(x, weight.shape, weight, bias, norm.eps)


def add_to_neuron_outputs(
    model: HookedDecoder, layer: int, change: Float[Tensor, "neuron d_model"]
) -> None:
    """Adds ``change`` to the output weights of a layer's neurons."""
    model.blocks[layer].mlp.down.weight.data += change.mT
