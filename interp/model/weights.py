"""A ``HookedDecoder``'s weights by layer, head and neuron.

A model in bf16 or fp16 is read in fp32: its activations as they are, the products after them
without more rounding.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from interp.model.attention import rotate, rotation, split_output_weight, split_qkv_weight
from interp.model.decoder import HookedDecoder, LayerNorm

HeadInput = Literal["q", "k", "v"]
_KINDS = ("q", "k", "v")


def widened(x: Tensor) -> Tensor:
    """``x`` in fp32 if its type is narrower, else unchanged."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


@dataclass(frozen=True)
class Weights:
    """A model's weights as probes and attributions use them, ``widened``; read-only."""

    model: HookedDecoder

    def attention_norm(
        self, layer: int, resid: Float[Tensor, "*cell d_model"]
    ) -> Float[Tensor, "*cell d_model"]:
        """The input of a layer's attention, given a residual stream."""
        return _normalised(self.model.blocks[layer].ln1, resid)

    def head_inputs(self, layer: int, kind: HeadInput) -> Float[Tensor, "head d_head d_model"]:
        """The weights that make every head's queries, keys or values, before rotation."""
        return widened(self._qkv(layer, "weight")[_KINDS.index(kind)])

    def head_input_biases(self, layer: int, kind: HeadInput) -> Float[Tensor, "head d_head"]:
        return widened(self._qkv(layer, "bias")[_KINDS.index(kind)])

    def rotated(
        self, x: Float[Tensor, "*cell pos head d_head"]
    ) -> Float[Tensor, "*cell pos head d_head"]:
        """Queries or keys of positions 0, 1, ..., rotated to them."""
        return rotate(x, rotation(torch.arange(x.shape[-3], device=x.device), self.model.cfg))

    def head_outputs(self, layer: int) -> Float[Tensor, "head d_model d_head"]:
        out = self.model.blocks[layer].attn.out
        return widened(split_output_weight(out.weight, self.model.cfg.n_heads))

    def attention_bias(self, layer: int) -> Float[Tensor, " d_model"]:
        """The part of the attention output that does not depend on its heads."""
        return widened(self.model.blocks[layer].attn.out.bias)

    def neuron_outputs(self, layer: int) -> Float[Tensor, "neuron d_model"]:
        """The output vector of each neuron of an MLP."""
        return widened(self.model.blocks[layer].mlp.down.weight).mT

    def neuron_inputs(self, layer: int) -> Float[Tensor, "neuron d_model"]:
        """The input weights of each neuron of an MLP."""
        return widened(self.model.blocks[layer].mlp.up.weight)

    def mlp_norm_weights(
        self, layer: int
    ) -> tuple[Float[Tensor, " d_model"], Float[Tensor, " d_model"]]:
        """Factors and bias of the LayerNorm before a layer's MLP."""
        norm = self.model.blocks[layer].ln2
        return widened(norm.weight), widened(norm.bias)

    def embedding(self) -> Float[Tensor, "d_vocab d_model"]:
        return widened(self.model.embed.weight)

    def attention_norm_weights(
        self, layer: int
    ) -> tuple[Float[Tensor, " d_model"], Float[Tensor, " d_model"]]:
        """Factors and bias of the LayerNorm before a layer's attention."""
        norm = self.model.blocks[layer].ln1
        return widened(norm.weight), widened(norm.bias)

    def final_norm(self, resid: Float[Tensor, "*cell d_model"]) -> Float[Tensor, "*cell d_model"]:
        """The input of the unembedding, given a residual stream."""
        return _normalised(self.model.ln_final, resid)

    def final_norm_weights(self) -> tuple[Float[Tensor, " d_model"], Float[Tensor, " d_model"]]:
        """Weight and bias of the final LayerNorm."""
        return widened(self.model.ln_final.weight), widened(self.model.ln_final.bias)

    def unembedding(self) -> Float[Tensor, "d_vocab d_model"]:
        return widened(self.model.unembed.weight)

    def _qkv(self, layer: int, kind: str) -> Float[Tensor, "qkv head d_head *rest"]:
        fused = getattr(self.model.blocks[layer].attn.qkv, kind)
        return split_qkv_weight(fused, self.model.cfg.n_heads)


def add_to_neuron_outputs(
    model: HookedDecoder, layer: int, change: Float[Tensor, "neuron d_model"]
) -> None:
    """Adds ``change`` to the output weights of a layer's neurons."""
    model.blocks[layer].mlp.down.weight.data += change.mT


def _normalised(
    norm: LayerNorm, resid: Float[Tensor, "*cell d_model"]
) -> Float[Tensor, "*cell d_model"]:
    x, weight, bias = (widened(x) for x in (resid, norm.weight, norm.bias))
    return F.layer_norm(x, weight.shape, weight, bias, norm.eps)
