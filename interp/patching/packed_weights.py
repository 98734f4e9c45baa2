"""A decoder's weights laid out for fast products, and its block computed with them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from interp.model.attention import Rotation, rotate, rotation, scores, split_qkv_weight
from interp.model.block import Tap, silent
from interp.model.decoder import Block, DecoderConfig, HookedDecoder
from interp.patching.tensor_ops import Linear


class PackedBlock:
    """The matrix products of a block. Keys and values can also be computed without queries, which
    the last layer needs at fewer positions.
    """

    def __init__(self, block: Block) -> None:
        self.parallel, self.n_heads, self.gelu = block.parallel, block.attn.n_heads, block.mlp.gelu
        self.ln1, self.ln2 = block.ln1.unhooked, block.ln2.unhooked
        weight, bias = (
            split_qkv_weight(x, self.n_heads).flatten(1, 2)
            for x in (block.attn.qkv.weight, block.attn.qkv.bias)
        )
        self.qkv = Linear(weight.flatten(0, 1), bias.flatten())
        self.q = Linear(weight[0], bias[0])
        self.kv = Linear(weight[1:].flatten(0, 1), bias[1:].flatten())
        self.out = Linear(block.attn.out.weight, block.attn.out.bias)
        self.up = Linear(block.mlp.up.weight, block.mlp.up.bias)
        self.down = Linear(block.mlp.down.weight, block.mlp.down.bias)

    def heads(
        self,
        resid: Float[Tensor, "*cell d_model"],
        turn: Rotation,
        tap: Tap = silent,
        *,
        kinds: str = "qkv",
    ) -> tuple[Tensor, ...]:
        """Rotated queries and keys, and values (*cell, head, d_head), of the residual stream before
        the block at positions whose angles are ``turn``.
        """
        product: Linear = getattr(self, kinds)
        heads = product(self.ln1(resid)).unflatten(-1, (len(kinds), self.n_heads, -1))
        computed = dict(zip(kinds, heads.unbind(-3)))
        parts = {kind: tap(kind, x) for kind, x in computed.items()}
        turned = kinds.replace("v", "")
        angles = Rotation(*(table.unsqueeze(-3) for table in turn))
        if any(parts[kind] is not computed[kind] for kind in turned):
            x = rotate(torch.stack([parts[kind] for kind in turned], -3), angles)
        else:
            x = rotate(heads[..., : len(turned), :, :], angles)
        parts |= {kind: tap(f"rot_{kind}", x) for kind, x in zip(turned, x.unbind(-3))}
        return tuple(parts[kind] for kind in kinds)

    def neurons(self, normed: Float[Tensor, "*cell d_model"], tap: Tap) -> Tensor:
        """Activations of the MLP's neurons."""
        if tap is silent or "mlp_pre" not in getattr(tap, "names", ("mlp_pre",)):
            return self.up(normed, gelu=self.gelu)  # in one operation
        return self.activated(tap("mlp_pre", self.up(normed)))

    def activated(self, pre: Float[Tensor, "*cell neuron"]) -> Float[Tensor, "*cell neuron"]:
        """Neurons after the non-linearity."""
        return F.gelu(pre, approximate=self.gelu)

    def mlp(self, mid: Float[Tensor, "*cell d_model"]) -> Float[Tensor, "*cell d_model"]:
        """``mlp_out`` from the residual stream that the MLP reads."""
        return self.down(self.neurons(self.ln2(mid), silent))


@dataclass(frozen=True)
class PackedModel:
    """The weights of a ``HookedDecoder``."""

    cfg: DecoderConfig
    blocks: list[PackedBlock]
    embedding: Float[Tensor, "d_vocab d_model"]
    positions: Float[Tensor, "pos d_model"] | None
    """What is added to token embeddings, if positions are learned."""
    ln_final: Callable[[Tensor], Tensor]
    unembed: Linear
    turn: Rotation
    """Of every position that is used."""

    def at_positions(
        self, embedded: Float[Tensor, "*cell d_model"], pos: Int[Tensor, "*cell"]
    ) -> Float[Tensor, "*cell d_model"]:
        """The residual stream before the first block, given token embeddings."""
        return embedded if self.positions is None else embedded + self.positions[pos]

    def logits(self, resid: Float[Tensor, "*cell d_model"]) -> Float[Tensor, "*cell d_vocab"]:
        """Logits of the last residual stream."""
        return self.unembed(self.ln_final(resid))

    def turn_at(self, pos: Int[Tensor, "*cell"]) -> Rotation:
        """Rotary angles of positions."""
        return Rotation(*(table[pos] for table in self.turn))

    def rotated(self, x: Float[Tensor, "fact pos head d_head"]) -> Tensor:
        """Queries or keys of whole prompts, rotated to their positions."""
        return rotate(x, Rotation(*(table[: x.shape[1]] for table in self.turn)))


def pack(model: HookedDecoder, n_pos: int) -> PackedModel:
    """Weights for prompts of at most ``n_pos`` tokens."""
    weight = model.embed.weight
    turn = rotation(torch.arange(n_pos, device=weight.device), model.cfg)
    return PackedModel(
        model.cfg,
        [PackedBlock(block) for block in model.blocks],
        weight.detach(),
        model.pos_embed.weight.detach() if model.cfg.learned_positions else None,
        model.ln_final.unhooked,
        Linear(model.unembed.weight),
        Rotation(*(table.to(weight.dtype) for table in turn)),
    )


def all_scores(
    q: Float[Tensor, "fact pos head d_head"], k: Float[Tensor, "fact pos head d_head"]
) -> Float[Tensor, "fact head dest src"]:
    """Attention scores of whole prompts."""
    return scores(q, k, torch.arange(q.shape[1], device=q.device)[None])
