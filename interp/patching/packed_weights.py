"""A decoder's weights laid out once for fast products, and its block computed with them."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from interp.model.decoder import Block, DecoderConfig, HookedDecoder, rotation
from interp.model.packed_attention import Rotation
from interp.patching.tensor_ops import Linear, add_flops, rotate, softmax


@runtime_checkable
class Tap(Protocol):
    """Called with the name and value of an activation; what it returns is used instead."""

    names: Collection[str]
    """Activations that it records or changes; of others it returns what it was given."""

    def __call__(self, name: str, x: Tensor) -> Tensor: ...


class PackedBlock:
    """A block's matrix products; keys and values also apart from queries, which the last layer
    needs at fewer positions.
    """

    def __init__(self, block: Block) -> None:
        self.parallel, self.ln1, self.ln2 = block.parallel, block.ln1, block.ln2
        self.n_heads = block.attn.n_heads
        weight, bias = (
            rearrange(x, f"(head qkv d) {rest} -> qkv (head d) {rest}", head=self.n_heads, qkv=3)
            for x, rest in ((block.attn.qkv.weight, "i"), (block.attn.qkv.bias, ""))
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
        kinds: str = "qkv",
        tap: Tap | None = None,
    ) -> tuple[Tensor, ...]:
        """Rotated queries and keys, and values (*cell, head, d_head), of the residual stream before
        the block at positions whose angles are ``turn``.
        """
        product: Linear = getattr(self, kinds)
        heads = product(self.ln1.unhooked(resid)).unflatten(-1, (len(kinds), self.n_heads, -1))
        parts = dict(zip(kinds, heads.unbind(-3)))
        if tap:
            parts = {kind: tap(kind, x) for kind, x in parts.items()}
        turned = kinds.replace("v", "")
        x = rotate(heads[..., : len(turned), :, :], *(table.unsqueeze(-3) for table in turn))
        parts |= dict(zip(turned, x.unbind(-3)))
        if tap:
            parts |= {kind: tap(f"rot_{kind}", parts[kind]) for kind in turned}
        return tuple(parts[kind] for kind in kinds)

    def finish(
        self,
        resid: Float[Tensor, "*cell d_model"],
        z: Float[Tensor, "*cell head d_head"],
        tap: Tap | None = None,
    ) -> Float[Tensor, "*cell d_model"]:
        """The residual stream after the block, from the outputs of its heads."""
        if tap is None:
            attn_out = self.out(z.flatten(-2))
            mid = resid if self.parallel else resid + attn_out
            return mid + self.mlp(mid) + (attn_out if self.parallel else 0)
        attn_out = tap("attn_out", self.out(tap("z", z).flatten(-2)))
        mid = resid if self.parallel else tap("resid_mid", resid + attn_out)
        normed = self.ln2.unhooked(mid)
        if "mlp_pre" in tap.names:
            neurons = F.gelu(tap("mlp_pre", self.up(normed)))
        else:
            neurons = self.up(normed, gelu=True)  # in one operation
        mlp_out = tap("mlp_out", self.down(tap("mlp_post", neurons)))
        return tap("resid_post", mid + mlp_out + (attn_out if self.parallel else 0))

    def mlp(self, mid: Float[Tensor, "*cell d_model"]) -> Float[Tensor, "*cell d_model"]:
        """``mlp_out`` from the residual stream that the MLP reads."""
        return self.down(self.up(self.ln2.unhooked(mid), gelu=True))


@dataclass(frozen=True)
class PackedModel:
    """The weights of a ``HookedDecoder``."""

    cfg: DecoderConfig
    blocks: list[PackedBlock]
    embedding: Float[Tensor, "d_vocab d_model"]
    ln_final: nn.Module
    unembed: Linear
    turn: Rotation
    """Of every position that is used."""

    def logits(self, resid: Float[Tensor, "*cell d_model"]) -> Float[Tensor, "*cell d_vocab"]:
        """Of the last residual stream."""
        return self.unembed(self.ln_final.unhooked(resid))

    def turn_at(self, pos: Int[Tensor, "*cell"]) -> Rotation:
        """Rotary angles of positions."""
        return Rotation(*(table[pos] for table in self.turn))

    def rotated(self, x: Float[Tensor, "fact pos head d_head"]) -> Tensor:
        """Queries or keys of whole prompts, rotated to their positions."""
        return rotate(x, *(table[: x.shape[1]] for table in self.turn))


def pack(model: HookedDecoder, n_pos: int) -> PackedModel:
    """Weights for prompts of at most ``n_pos`` tokens."""
    weight = model.embed.weight
    turn = rotation(torch.arange(n_pos, device=weight.device), model.cfg)
    return PackedModel(
        model.cfg,
        [PackedBlock(block) for block in model.blocks],
        weight.detach(),
        model.ln_final,
        Linear(model.unembed.weight),
        Rotation(*(table.to(weight.dtype) for table in turn)),
    )


def scores(
    q: Float[Tensor, "row dest head d_head"],
    k: Float[Tensor, "row src head d_head"],
    dest: Int[Tensor, "row dest"],
) -> Float[Tensor, "row head dest src"]:
    """Attention scores of rotated queries and keys; −inf for sources after their destination."""
    add_flops(2 * q.numel() * k.shape[1])
    q = q.movedim(2, 1) * q.shape[-1] ** -0.5
    found = q @ rearrange(k, "row src head d -> row head d src")
    src = torch.arange(k.shape[1], device=q.device)
    future = torch.zeros(*dest.shape, len(src), dtype=q.dtype, device=q.device)
    return found.add_(future.masked_fill_(src > dest[..., None], -torch.inf)[:, None])


def all_scores(
    q: Float[Tensor, "fact pos head d_head"], k: Float[Tensor, "fact pos head d_head"]
) -> Float[Tensor, "fact head dest src"]:
    """``scores`` of whole prompts."""
    return scores(q, k, torch.arange(q.shape[1], device=q.device).expand(q.shape[:2]))


def weigh(
    pattern: Float[Tensor, "row head dest src"], values: Float[Tensor, "row src head d_head"]
) -> Float[Tensor, "row dest head d_head"]:
    """Outputs z of the heads."""
    add_flops(2 * pattern.numel() * values.shape[-1])
    return (pattern @ values.movedim(2, 1)).movedim(1, 2)


def attend(
    q: Float[Tensor, "row dest head d_head"],
    k: Float[Tensor, "row src head d_head"],
    v: Float[Tensor, "row src head d_head"],
    dest: Int[Tensor, "row dest"],
    tap: Tap | None = None,
) -> Float[Tensor, "row dest head d_head"]:
    """Outputs z of the heads at ``dest``, from rotated queries and keys."""
    found = scores(q, k, dest)
    if tap is None:
        return weigh(softmax(found), v)
    return weigh(tap("pattern", softmax(tap("attn_scores", found))), v)
