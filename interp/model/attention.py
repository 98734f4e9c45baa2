"""Causal softmax attention with rotary positions, and where heads lie in a ``HookedDecoder``'s
weights: a fused row holds (head, q k v, d_head), and z (head, d_head).

    pattern = softmax(rot(q) · rot(k) / √d_head),  z = pattern · v
"""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from interp.model.block import Tap
from interp.model.flop_count import add_flops

_LONG = 24
"""Sources from which on a softmax over the last axis is quick."""


class Rotation(NamedTuple):
    """Rotary angles of positions, for the two halves of a head's rotated dimensions.

    ``pos`` may be preceded by batch axes; the axis of one is for the heads.
    """

    cos: Float[Tensor, "*pos 1 2 half"]
    sin: Float[Tensor, "*pos 1 2 half"]
    """−sin for the first half, sin for the second."""


@runtime_checkable
class RotaryShape(Protocol):
    n_rotary: int
    rotary_base: float


def rotation(pos: Int[Tensor, "*pos"], cfg: RotaryShape) -> Rotation:
    """Rotary angles pos · base^(−2i / n_rotary), with an axis of one for the heads."""
    even = torch.arange(0, cfg.n_rotary, 2, dtype=torch.float32, device=pos.device)
    exponent = even / cfg.n_rotary
    angle = rearrange(pos, "... -> ... 1 1") * (1 / cfg.rotary_base**exponent)
    sin = angle.sin()
    return Rotation(torch.stack((angle.cos(),) * 2, -2), torch.stack((-sin, sin), -2))


def rotate(x: Float[Tensor, "*cell d_head"], turn: Rotation) -> Float[Tensor, "*cell d_head"]:
    """``x`` with dimensions i and i + half turned by the angle of their position (Su et al. 2021,
    with GPT-NeoX's pairing); dimensions beyond the rotated ones stay.
    """
    n_rotary = 2 * turn.cos.shape[-1]
    if not n_rotary:  # learned positions
        return x
    cos, sin = turn.cos.to(x.dtype), turn.sin.to(x.dtype)
    pairs = x[..., :n_rotary].unflatten(-1, (2, -1))
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        turned = torch.addcmul(pairs * cos, pairs.flip(-2), sin).flatten(-2)
        return turned if n_rotary == x.shape[-1] else torch.cat((turned, x[..., n_rotary:]), -1)
    turned = x.clone(memory_format=torch.contiguous_format)  # the same numbers in half the time
    out = turned[..., :n_rotary].unflatten(-1, (2, -1)).mul_(cos)
    out[..., 0, :].addcmul_(pairs[..., 1, :], sin[..., 0, :])
    out[..., 1, :].addcmul_(pairs[..., 0, :], sin[..., 1, :])
    return turned


def split_qkv(
    fused: Float[Tensor, "*cell width"], n_heads: int
) -> tuple[
    Float[Tensor, "*cell head d_head"],
    Float[Tensor, "*cell head d_head"],
    Float[Tensor, "*cell head d_head"],
]:
    """Queries, keys and values of every head, before rotation."""
    return rearrange(fused, "... (head qkv d) -> qkv ... head d", head=n_heads, qkv=3).unbind()


def split_qkv_weight(
    fused: Shaped[Tensor, "width *rest"], n_heads: int
) -> Shaped[Tensor, "qkv head d_head *rest"]:
    """A view of the fused projection's weight or bias."""
    return rearrange(fused, "(head qkv d) ... -> qkv head d ...", head=n_heads, qkv=3)


def split_output_weight(
    weight: Shaped[Tensor, "d_model width"], n_heads: int
) -> Shaped[Tensor, "head d_model d_head"]:
    """A view of the weight that takes z, heads side by side, to the residual stream."""
    return rearrange(weight, "m (head d) -> head m d", head=n_heads)


def qkv_pieces(n_heads: int) -> Int[np.ndarray, "qkv head"]:
    """Index of each head's q, k and v among the pieces of d_head numbers in a fused row."""
    return rearrange(np.arange(3 * n_heads), "(head qkv) -> qkv head", qkv=3)


def padded_attention(
    fused: Float[Tensor, "row pos width"], n_heads: int, turn: Rotation, tap: Tap
) -> Float[Tensor, "row pos d_model"]:
    """z of whole prompts, heads side by side. Taps: q, k, v, rot_q, rot_k, then those of
    ``attend``.
    """
    q, k, v = split_qkv(fused, n_heads)
    q, k, v = tap("q", q), tap("k", k), tap("v", v)
    q, k = tap("rot_q", rotate(q, turn)), tap("rot_k", rotate(k, turn))
    return attend(q, k, v, torch.arange(fused.shape[1], device=fused.device)[None], tap)


def attend(
    q: Float[Tensor, "row dest head d_head"],
    k: Float[Tensor, "row src head d_head"],
    v: Float[Tensor, "row src head d_head"],
    dest: Int[Tensor, "#row dest"],
    tap: Tap,
) -> Float[Tensor, "row dest d_model"]:
    """z at the positions ``dest``, heads side by side, from rotated queries there and the rotated
    keys and values of every position. Taps: attn_scores, pattern, z.
    """
    pattern = tap("pattern", softmax(tap("attn_scores", scores(q, k, dest))))
    return rearrange(tap("z", weigh(pattern, v)), "row dest head d -> row dest (head d)")


def scores(
    q: Float[Tensor, "row dest head d_head"],
    k: Float[Tensor, "row src head d_head"],
    dest: Int[Tensor, "#row dest"],
) -> Float[Tensor, "row head dest src"]:
    """Products of rotated queries and keys ÷ √d_head; −inf for sources after their destination."""
    add_flops(2 * q.numel() * k.shape[1])
    scaled = rearrange(q * q.shape[-1] ** -0.5, "row dest head d -> row head dest d")
    src = torch.arange(k.shape[1], device=q.device)
    future = torch.zeros(*dest.shape, len(src), dtype=q.dtype, device=q.device)
    future.masked_fill_(src > dest[..., None], -torch.inf)
    return (scaled @ rearrange(k, "row src head d -> row head d src")).add_(future[:, None])


def softmax(x: Float[Tensor, "*cell src"]) -> Float[Tensor, "*cell src"]:
    """Softmax over sources. A short last axis is moved to the front, where torch is up to five
    times faster; a destination without any source becomes NaN.
    """
    if x.shape[-1] >= _LONG or x.is_cuda:
        return x.softmax(-1)
    return x.movedim(-1, 0).contiguous().softmax(0).movedim(0, -1)


def weigh(
    pattern: Float[Tensor, "row head dest src"], v: Float[Tensor, "row src head d_head"]
) -> Float[Tensor, "row dest head d_head"]:
    """Heads' outputs z: values weighted by the pattern."""
    add_flops(2 * pattern.numel() * v.shape[-1])
    z = pattern @ rearrange(v, "row src head d -> row head src d")
    return rearrange(z, "row head dest d -> row dest head d")
