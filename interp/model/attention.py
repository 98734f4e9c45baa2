"""Causal softmax attention with rotary positions, and where heads lie in a ``HookedDecoder``'s
weights: a fused row holds for each group of heads that shares a key its queries, its key and its
value (where none is shared: head, q k v, d_head), and z (head, d_head).

    pattern = softmax(rot(q) · rot(k) / √d_head),  z = pattern · v
"""

from functools import lru_cache
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


Scaling = tuple[tuple[str, object], ...]
"""Keys and values of a config's ``rope_parameters`` but for base and rotated share; empty where
frequencies are not scaled.
"""


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
    rotary_scaling: Scaling


def rotation(pos: Int[Tensor, "*pos"], cfg: RotaryShape) -> Rotation:
    """Rotary angles pos · base^(−2i / n_rotary), with an axis of one for the heads; scaled ones
    where ``rotary_scaling`` says so.
    """
    frequency, factor = _frequencies(cfg, pos.device)
    angle = rearrange(pos, "... -> ... 1 1") * frequency
    sin = angle.sin() * factor
    return Rotation(torch.stack((angle.cos() * factor,) * 2, -2), torch.stack((-sin, sin), -2))


def _frequencies(cfg: RotaryShape, device: torch.device) -> tuple[Float[Tensor, " half"], float]:
    """Radians per position of each pair of dimensions, and what cosine and sine are multiplied
    by.
    """
    if cfg.rotary_scaling:
        return _scaled_frequencies(cfg.n_rotary, cfg.rotary_base, cfg.rotary_scaling, device)
    even = torch.arange(0, cfg.n_rotary, 2, dtype=torch.float32, device=device)
    return 1 / cfg.rotary_base ** (even / cfg.n_rotary), 1.0


@lru_cache(maxsize=64)
def _scaled_frequencies(
    n_rotary: int, base: float, scaling: Scaling, device: torch.device
) -> tuple[Float[Tensor, " half"], float]:
    """The same as transformers computes them, copied to the device once."""
    with torch.device("cpu"):
        from transformers import LlamaConfig
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        given = dict(scaling) | {"rope_theta": base}
        config = LlamaConfig(head_dim=n_rotary, rope_parameters=given)
        frequency, factor = ROPE_INIT_FUNCTIONS[given["rope_type"]](config)
    return frequency.to(device), float(factor)


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
    fused: Float[Tensor, "*cell width"], n_heads: int, n_key_value_heads: int
) -> tuple[
    Float[Tensor, "*cell head d_head"],
    Float[Tensor, "*cell key_value_head d_head"],
    Float[Tensor, "*cell key_value_head d_head"],
]:
    """Queries, keys and values of every head, before norms and rotation."""
    n = n_heads // n_key_value_heads + 2
    pieces = rearrange(fused, "... (group n d) -> ... group n d", group=n_key_value_heads, n=n)
    return pieces[..., :-2, :].flatten(-3, -2), pieces[..., -2, :], pieces[..., -1, :]


def fused_pieces(
    fused: Shaped[Tensor, "width *rest"], n_heads: int, n_key_value_heads: int
) -> Shaped[Tensor, "group piece d_head *rest"]:
    """A view of the fused projection's weight or bias: of each group of heads the queries' pieces,
    then that of its key and that of its value.
    """
    n = n_heads // n_key_value_heads + 2
    return rearrange(fused, "(group n d) ... -> group n d ...", group=n_key_value_heads, n=n)


def split_qkv_weight(
    fused: Shaped[Tensor, "width *rest"], n_heads: int, n_key_value_heads: int
) -> tuple[
    Shaped[Tensor, "head d_head *rest"],
    Shaped[Tensor, "key_value_head d_head *rest"],
    Shaped[Tensor, "key_value_head d_head *rest"],
]:
    """What makes queries, keys and values in the fused projection's weight or bias; views where
    every head has keys of its own.
    """
    pieces = fused_pieces(fused, n_heads, n_key_value_heads)
    return pieces[:, :-2].flatten(0, 1), pieces[:, -2], pieces[:, -1]


def split_output_weight(
    weight: Shaped[Tensor, "d_model width"], n_heads: int
) -> Shaped[Tensor, "head d_model d_head"]:
    """A view of the weight that takes z, heads side by side, to the residual stream."""
    return rearrange(weight, "m (head d) -> head m d", head=n_heads)


def qkv_pieces(n_heads: int) -> Int[np.ndarray, "qkv head"]:
    """Index of each head's q, k and v among the pieces of d_head numbers in a fused row."""
    return rearrange(np.arange(3 * n_heads), "(head qkv) -> qkv head", qkv=3)


def attend(
    q: Float[Tensor, "row dest head d_head"],
    k: Float[Tensor, "row src key_value_head d_head"],
    v: Float[Tensor, "row src key_value_head d_head"],
    dest: Int[Tensor, "#row dest"],
    tap: Tap,
) -> Float[Tensor, "row dest width"]:
    """z at the positions ``dest``, heads side by side, from rotated queries there and the rotated
    keys and values of every position. Taps: attn_scores, pattern, z.
    """
    pattern = tap("pattern", softmax(tap("attn_scores", scores(q, k, dest))))
    return rearrange(tap("z", weigh(pattern, v)), "row dest head d -> row dest (head d)")


def scores(
    q: Float[Tensor, "row dest head d_head"],
    k: Float[Tensor, "row src key_value_head d_head"],
    dest: Int[Tensor, "#row dest"],
) -> Float[Tensor, "row head dest src"]:
    """Products of rotated queries and keys ÷ √d_head; −inf for sources after their destination.
    Consecutive heads share a key.
    """
    add_flops(2 * q.numel() * k.shape[1])
    n = q.shape[2] // k.shape[2]
    scaled = rearrange(q * q.shape[-1] ** -0.5, "row dest (group n) d -> row group (n dest) d", n=n)
    products = scaled @ rearrange(k, "row src group d -> row group d src")
    by_head = rearrange(products, "row group (n dest) src -> row (group n) dest src", n=n)
    src = torch.arange(k.shape[1], device=q.device)
    future = torch.zeros(*dest.shape, len(src), dtype=q.dtype, device=q.device)
    future.masked_fill_(src > dest[..., None], -torch.inf)
    return by_head.add_(future[:, None])


def softmax(x: Float[Tensor, "*cell src"]) -> Float[Tensor, "*cell src"]:
    """Softmax over sources. A short last axis is moved to the front, where torch is up to five
    times faster; a destination without any source becomes NaN.
    """
    if x.shape[-1] >= _LONG or x.is_cuda:
        return x.softmax(-1)
    return x.movedim(-1, 0).contiguous().softmax(0).movedim(0, -1)


def weigh(
    pattern: Float[Tensor, "row head dest src"], v: Float[Tensor, "row src key_value_head d_head"]
) -> Float[Tensor, "row dest head d_head"]:
    """Heads' outputs z: values weighted by the pattern. Consecutive heads share values."""
    add_flops(2 * pattern.numel() * v.shape[-1])
    n = pattern.shape[1] // v.shape[2]
    weights = rearrange(pattern, "row (group n) dest src -> row group (n dest) src", n=n)
    z = weights @ rearrange(v, "row src group d -> row group src d")
    return rearrange(z, "row group (n dest) d -> row dest (group n) d", n=n)


def apart(weights: dict[str, Tensor], n_heads: int, n_key_value_heads: int) -> dict[str, Tensor]:
    """Weights by name, with the fused projections ``attn.qkv`` taken apart into ``attn.q``,
    ``attn.k`` and ``attn.v``.
    """
    found = {}
    for name, weight in weights.items():
        if ".attn.qkv." not in name:
            found[name] = weight
            continue
        for kind, part in zip("qkv", split_qkv_weight(weight, n_heads, n_key_value_heads)):
            found[name.replace(".qkv.", f".{kind}.")] = part.flatten(0, 1)
    return found


def fused(weights: dict[str, Tensor], n_key_value_heads: int) -> dict[str, Tensor]:
    """The inverse of ``apart``."""
    found = {}
    for name, weight in weights.items():
        if ".attn.q." in name:
            parts = [weight, *(weights[name.replace(".q.", f".{kind}.")] for kind in "kv")]
            heads = "(group n d) ... -> group n d ..."
            n_rows = weights[name.replace(".q.", ".k.")].shape[0] // n_key_value_heads
            groups = [rearrange(x, heads, group=n_key_value_heads, d=n_rows) for x in parts]
            together = rearrange(torch.cat(groups, 1), "group n d ... -> (group n d) ...")
            found[name.replace(".q.", ".qkv.")] = together
        elif ".attn.k." not in name and ".attn.v." not in name:
            found[name] = weight
    return found
