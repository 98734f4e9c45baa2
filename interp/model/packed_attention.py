"""Attention for training on batches in which padding costs nothing.

A right-padded batch travels as the flat list of its real tokens, so embedding, LayerNorm, MLP, head
and loss never see a pad. Only attention needs rows: it lays the tokens out, and takes its result
back. A pad sits to the right of every real token of its row, so the causal mask already hides it
from them. The backward passes are written out because the ones autograd derives scatter and slice,
which is slow on a CPU; tests compare them with autograd in float64.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from interp.model.attention import Rotation, rotate


class Ragged(NamedTuple):
    """Where the real tokens of a right-padded batch lie, and tables of their positions. The tables
    are computed outside the compiled step, which would otherwise compute a cosine for every element
    it rotates.
    """

    to_rows: Int[Tensor, "qkv batch_head pos"]
    """Of each cell, its place among the pieces of all tokens' fused rows (``qkv_pieces``); for a
    pad that of any token, whose content is never used.
    """
    to_tokens: Int[Tensor, "token piece"]
    """The flat place in ``to_rows`` of each piece of a real token."""
    heads_to_rows: Int[Tensor, "batch_head pos"]
    """``to_rows`` where a token has one piece per head, side by side."""
    heads_to_tokens: Int[Tensor, "token head"]
    real: Float[Tensor, "batch_head pos 1"]
    """1 for a real token, 0 for a pad."""
    future: Float[Tensor, "pos pos"]
    """−inf where the source lies after the destination, else 0."""
    turn: Rotation


def packed_attention(
    qkv: Float[Tensor, "token width"], ragged: Ragged
) -> Float[Tensor, "token d_model"]:
    """Causal attention output z of the real tokens, heads side by side, from their fused rows."""
    q, k, v = _ToRows.apply(qkv, ragged.to_rows, ragged.to_tokens)
    turn = Rotation(ragged.turn.cos[:, 0], ragged.turn.sin[:, 0])  # heads lie beside the batch
    if qkv.is_cuda:
        q, k, v = (x[None] for x in (rotate(q, turn), rotate(k, turn), v))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)[0] * ragged.real
    else:
        z = _Attention.apply(q, k, v, turn, ragged.future, ragged.real)
    return _ToTokens.apply(z, ragged.heads_to_rows, ragged.heads_to_tokens)


def patterns(
    qkv: Float[Tensor, "token width"], ragged: Ragged
) -> Float[Tensor, "batch_head dest src"]:
    """Softmax patterns of the real tokens, without gradient; a pad attends to nothing."""
    q, k, _ = _ToRows.apply(qkv.detach(), ragged.to_rows, ragged.to_tokens)
    turn = Rotation(ragged.turn.cos[:, 0], ragged.turn.sin[:, 0])
    scores = _wide(rotate(q, turn) @ rotate(k, turn).mT) * q.shape[-1] ** -0.5 + ragged.future
    return (scores.softmax(-1) * ragged.real).to(qkv.dtype)


def mix(
    values: Float[Tensor, "token d_model"],
    pattern: Float[Tensor, "batch_head dest src"],
    ragged: Ragged,
) -> Float[Tensor, "token d_model"]:
    """Attention output z of the real tokens, given every head's pattern."""
    places = ragged.heads_to_rows, ragged.heads_to_tokens
    return _ToTokens.apply(pattern @ _OneToRows.apply(values, *places), *places)


class _Attention(torch.autograd.Function):
    """Softmax attention with batch and heads in one axis; keeps the patterns in the dtype of the
    matrix products. Padding attends to nothing, so gradients that reach it are dropped here.
    """

    @staticmethod
    def forward(ctx, q, k, v, turn: Rotation, future: Tensor, real: Tensor) -> Tensor:
        ctx.scale = q.shape[-1] ** -0.5
        q, k = rotate(q, turn), rotate(k, turn)
        scores = _wide(q @ k.mT) * ctx.scale + future
        pattern = (scores.softmax(-1) * real).to(v.dtype)
        ctx.save_for_backward(q, k, v, pattern, *turn)
        return pattern @ v

    @staticmethod
    def backward(ctx, d_z: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, pattern, cos, sin = ctx.saved_tensors
        weighted = _wide(d_z @ v.mT) * pattern
        d_scores = weighted - pattern * weighted.sum(-1, keepdim=True)
        d_scores = (d_scores * ctx.scale).to(v.dtype)
        back = Rotation(cos, -sin)
        d_q, d_k = rotate(d_scores @ k, back), rotate(d_scores.mT @ q, back)
        return d_q, d_k, pattern.mT @ d_z, None, None, None


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.bfloat16 else x


def embed(weight: Float[Tensor, "d_vocab d_model"], tokens: Int[Tensor, " token"]) -> Tensor:
    """Rows of ``weight``; the gradient is summed in a fixed order, so that runs repeat exactly."""
    return _Embed.apply(weight, tokens)


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight: Tensor, tokens: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.d_vocab = weight.shape[0]
        return weight[tokens]

    @staticmethod
    def backward(ctx, d_rows: Tensor) -> tuple[Tensor, None]:
        (tokens,) = ctx.saved_tensors
        return _add_rows(d_rows, tokens, ctx.d_vocab), None


class _ToRows(torch.autograd.Function):
    """Tokens to rows of q, k and v of every head. The gradient at padding is zero, so the backward
    pass is a gather too.
    """

    @staticmethod
    def forward(ctx, tokens: Tensor, to_rows: Tensor, to_tokens: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(to_tokens)
        return _take_rows(tokens.unflatten(1, (to_tokens.shape[1], -1)), to_rows).unbind()

    @staticmethod
    def backward(ctx, d_q: Tensor, d_k: Tensor, d_v: Tensor) -> tuple[Tensor, None, None]:
        (to_tokens,) = ctx.saved_tensors
        return _join_rows(d_q, d_k, d_v, to_tokens).flatten(1), None, None


class _OneToRows(torch.autograd.Function):
    """Tokens to rows of one of q, k and v."""

    @staticmethod
    def forward(ctx, tokens: Tensor, to_rows: Tensor, to_tokens: Tensor) -> Tensor:
        ctx.save_for_backward(to_tokens)
        return _take_rows(tokens.unflatten(1, (to_tokens.shape[1], -1)), to_rows)

    @staticmethod
    def backward(ctx, d_rows: Tensor) -> tuple[Tensor, None, None]:
        (to_tokens,) = ctx.saved_tensors
        return _take_rows(d_rows, to_tokens).flatten(1), None, None


class _ToTokens(torch.autograd.Function):
    """Rows of z to tokens; padding is dropped, and its gradient is arbitrary."""

    @staticmethod
    def forward(ctx, z: Tensor, to_rows: Tensor, to_tokens: Tensor) -> Tensor:
        ctx.save_for_backward(to_rows, to_tokens)
        return _take_rows(z, to_tokens).flatten(1)

    @staticmethod
    def backward(ctx, d_tokens: Tensor) -> tuple[Tensor, None, None]:
        to_rows, to_tokens = ctx.saved_tensors
        d_z = d_tokens.unflatten(1, (to_tokens.shape[1], -1))
        return _take_rows(d_z, to_rows), None, None


# Opaque to the compiler on purpose: fused into a neighbour, the copies become scalar loops and
# cost several times more, and the sum is made by atomic additions, in another order each time.
_library = torch.library.Library("interp", "DEF")
_library.define("take_rows(Tensor x, Tensor index) -> Tensor")
_library.define("join_rows(Tensor q, Tensor k, Tensor v, Tensor index) -> Tensor")
_library.define("add_rows(Tensor d_rows, Tensor tokens, int d_vocab) -> Tensor")
_take_rows = torch.ops.interp.take_rows
_join_rows = torch.ops.interp.join_rows
_add_rows = torch.ops.interp.add_rows


@torch.library.impl(_library, "take_rows", "CompositeExplicitAutograd")
def _(x: Tensor, index: Tensor) -> Tensor:
    return x.flatten(0, 1).index_select(0, index.flatten()).view(*index.shape, x.shape[2])


@torch.library.register_fake("interp::take_rows")
def _(x: Tensor, index: Tensor) -> Tensor:
    return x.new_empty(*index.shape, x.shape[2])


@torch.library.impl(_library, "join_rows", "CompositeExplicitAutograd")
def _(q: Tensor, k: Tensor, v: Tensor, index: Tensor) -> Tensor:
    return torch.ops.interp.take_rows(torch.cat((q, k, v)), index)


@torch.library.register_fake("interp::join_rows")
def _(q: Tensor, k: Tensor, v: Tensor, index: Tensor) -> Tensor:
    return q.new_empty(*index.shape, q.shape[2])


@torch.library.impl(_library, "add_rows", "CompositeExplicitAutograd")
def _(d_rows: Tensor, tokens: Tensor, d_vocab: int) -> Tensor:
    return torch.ops.aten.embedding_dense_backward(d_rows, tokens, d_vocab, -1, False)


@torch.library.register_fake("interp::add_rows")
def _(d_rows: Tensor, tokens: Tensor, d_vocab: int) -> Tensor:
    return d_rows.new_empty(d_vocab, d_rows.shape[1])
