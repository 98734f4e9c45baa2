"""Attention for training on batches whose padding costs nothing.

A right-padded batch travels as the flat list of its real tokens, so embedding, LayerNorm, MLP, head
and loss never see a pad. Only attention needs rows: it lays the tokens out, and takes its result
back. A pad sits to the right of every real token of its row, so the causal mask already hides it
from them. The backward passes are written out because the ones autograd derives scatter and slice,
which is slow on a CPU; tests compare them with autograd in float64.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


class Rotation(NamedTuple):
    """Rotary angles of positions, for the two halves of a head's rotated dimensions.

    ``pos`` may be preceded by batch axes; the axis of one is for the heads.
    """

    cos: Float[Tensor, "*pos 1 2 half"]
    sin: Float[Tensor, "*pos 1 2 half"]
    """−sin for the first half, sin for the second."""


class Ragged(NamedTuple):
    """Where the real tokens of a right-padded batch lie, and tables of its positions: a compiled
    step that made these itself would compute a cosine for every element it turns.
    """

    token_to_cell: Int[Tensor, " token"]
    """``row · n_pos + pos`` of each real token."""
    cell_to_token: Int[Tensor, "batch pos"]
    """The token in each cell; for a pad any token, its content is never used."""
    real: Float[Tensor, "batch pos"]
    """1 for a real token, 0 for a pad."""
    future: Float[Tensor, "pos pos"]
    """−inf where the source lies after the destination, else 0."""
    turn: Rotation


def rotate(x: Float[Tensor, "*cell d_head"], turn: Rotation) -> Float[Tensor, "*cell d_head"]:
    """``x`` with dimensions i and i + half turned by the angle of their position (Su et al. 2021,
    with GPT-NeoX's pairing); dimensions beyond the rotated ones stay.
    """
    n_rotary = 2 * turn.cos.shape[-1]
    cos, sin = turn.cos.to(x.dtype), turn.sin.to(x.dtype)
    pairs = x[..., :n_rotary].unflatten(-1, (2, -1))
    turned = torch.addcmul(pairs * cos, pairs.flip(-2), sin).flatten(-2)
    return turned if n_rotary == x.shape[-1] else torch.cat((turned, x[..., n_rotary:]), -1)


def attend(
    qkv: Float[Tensor, "token width"], ragged: Ragged, *, n_heads: int
) -> Float[Tensor, "token d_model"]:
    """Causal attention output z of the real tokens, heads side by side; ``width`` is (head, qkv,
    d_head), as in GPT-NeoX.
    """
    rows, turn = _Pad.apply(qkv, ragged), ragged.turn
    if qkv.is_cuda:
        q, k, v = rearrange(
            rows, "b p (head qkv d) -> qkv b p head d", head=n_heads, qkv=3
        ).unbind()
        q, k, v = (
            rearrange(x, "b p head d -> b head p d") for x in (rotate(q, turn), rotate(k, turn), v)
        )
        z = rearrange(
            F.scaled_dot_product_attention(q, k, v, is_causal=True), "b head p d -> b p (head d)"
        )
    else:
        turn = Rotation(turn.cos[..., 0, :, :], turn.sin[..., 0, :, :])
        z = rearrange(
            _Attention.apply(rows, turn, ragged.future, n_heads),
            "(b head) p d -> b p (head d)",
            head=n_heads,
        )
    return _Unpad.apply(z, ragged)


class _Attention(torch.autograd.Function):
    """Softmax attention, batch and heads in one axis; keeps the patterns in the dtype of the matrix
    products.
    """

    @staticmethod
    def forward(ctx, qkv: Tensor, turn: Rotation, future: Tensor, n_heads: int) -> Tensor:
        q, k, v = rearrange(
            qkv, "b p (head qkv d) -> qkv (b head) p d", head=n_heads, qkv=3
        ).unbind()
        ctx.n_heads, ctx.scale = n_heads, q.shape[-1] ** -0.5
        q, k = rotate(q, turn) * ctx.scale, rotate(k, turn)
        pattern = _wide(q @ k.mT).add(future).softmax(-1).to(q.dtype)
        ctx.save_for_backward(q, k, v, pattern, *turn)
        return pattern @ v

    @staticmethod
    def backward(ctx, d_z: Tensor) -> tuple[Tensor, None, None, None]:
        q, k, v, pattern, cos, sin = ctx.saved_tensors
        weighted = _wide(d_z @ v.mT) * pattern
        d_scores = (weighted - pattern * weighted.sum(-1, keepdim=True)).to(q.dtype)
        back = Rotation(cos, -sin)
        d_q, d_k = rotate(d_scores @ k, back) * ctx.scale, rotate(d_scores.mT @ q, back)
        return _join_heads(d_q, d_k, pattern.mT @ d_z, ctx.n_heads), None, None, None


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype == torch.bfloat16 else x


def embed(weight: Float[Tensor, "d_vocab d_model"], tokens: Int[Tensor, " token"]) -> Tensor:
    """Rows of ``weight``; the gradient adds up in one order, so that a run repeats exactly."""
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


class _Pad(torch.autograd.Function):
    """Tokens to rows. The gradient at a pad is zero, so the way back is a gather too."""

    @staticmethod
    def forward(ctx, tokens: Tensor, ragged: Ragged) -> Tensor:
        ctx.save_for_backward(ragged.token_to_cell)
        return _take_rows(tokens, ragged.cell_to_token.flatten()).unflatten(
            0, ragged.cell_to_token.shape
        )

    @staticmethod
    def backward(ctx, d_rows: Tensor) -> tuple[Tensor, None]:
        (token_to_cell,) = ctx.saved_tensors
        return _take_rows(d_rows.flatten(0, 1), token_to_cell), None


class _Unpad(torch.autograd.Function):
    """Rows to tokens; pads are dropped, and get no gradient."""

    @staticmethod
    def forward(ctx, rows: Tensor, ragged: Ragged) -> Tensor:
        ctx.save_for_backward(ragged.cell_to_token, ragged.real)
        return _take_rows(rows.flatten(0, 1), ragged.token_to_cell)

    @staticmethod
    def backward(ctx, d_tokens: Tensor) -> tuple[Tensor, None]:
        cell_to_token, real = ctx.saved_tensors
        d_rows = _take_rows(d_tokens, cell_to_token.flatten()).unflatten(0, cell_to_token.shape)
        return d_rows * real[..., None].to(d_rows.dtype), None


# Opaque to the compiler on purpose: fused into a neighbour, the two copies become scalar loops and
# cost several times more, and the sum is made by atomic additions, in another order each time.
@torch.library.custom_op("interp::take_rows", mutates_args=())
def _take_rows(x: Tensor, index: Tensor) -> Tensor:
    return x.index_select(0, index)


@_take_rows.register_fake
def _(x: Tensor, index: Tensor) -> Tensor:
    return x.new_empty(index.shape[0], x.shape[1])


@torch.library.custom_op("interp::join_heads", mutates_args=())
def _join_heads(q: Tensor, k: Tensor, v: Tensor, n_heads: int) -> Tensor:
    qkv = torch.stack(
        [rearrange(x, "(b head) p d -> b p head d", head=n_heads) for x in (q, k, v)], 3
    )
    return rearrange(qkv, "b p head qkv d -> b p (head qkv d)")


@_join_heads.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, n_heads: int) -> Tensor:
    return q.new_empty(q.shape[0] // n_heads, q.shape[1], n_heads * 3 * q.shape[2])


@torch.library.custom_op("interp::add_rows", mutates_args=())
def _add_rows(d_rows: Tensor, tokens: Tensor, d_vocab: int) -> Tensor:
    return torch.ops.aten.embedding_dense_backward(d_rows, tokens, d_vocab, -1, False)


@_add_rows.register_fake
def _(d_rows: Tensor, tokens: Tensor, d_vocab: int) -> Tensor:
    return d_rows.new_empty(d_vocab, d_rows.shape[1])
