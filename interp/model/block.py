"""A transformer block, written once: attention, MLP and the residual sums.

    mid = resid + out(z),  post = mid + down(neurons(norm(mid)));  parallel: neurons(norm(resid))

Norms come first, on what attention and MLP read, or last, as part of ``out`` and ``down``.

Every activation goes through a tap, ``x = tap(name, x)``, so that one block serves all: ``silent``
trains, hook points hook, a recorder keeps an activation cache, a function that returns something
else patches. How attention gets z is the caller's: padded, packed, by another model's patterns, or
at a few positions only.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

Tap = Callable[[str, Tensor], Tensor]
"""Gets an activation's name and value, returns what the block goes on with. One with ``names``
(such as a recorder's) may be spared activations that it does not name.
"""


@runtime_checkable
class BlockWeights(Protocol):
    """The functions of activations that a block is made of."""

    parallel: bool
    """The MLP reads what the attention reads, not what it wrote."""
    attention_input: Callable[[Tensor], Tensor]
    """Of the residual stream: its norm, if norms come first."""
    mlp_input: Callable[[Tensor], Tensor]
    out: Callable[[Tensor], Tensor]
    """What attention writes, from z; the norm is included if norms come last."""
    down: Callable[[Tensor], Tensor]

    def neurons(self, normed: Tensor, tap: Tap) -> Tensor:
        """Activations after the non-linearity; those before it pass through the tap as ``mlp_pre``.
        Both may be computed in one operation if the tap is ``silent`` or does not name it.
        """
        ...


def silent(name: str, x: Tensor) -> Tensor:
    """``x`` unchanged: the tap that only computes."""
    return x


def run_block(
    weights: BlockWeights,
    resid: Float[Tensor, "*cell d_model"],
    attention: Callable[[Tensor, Tap], Tensor],
    tap: Tap,
) -> Float[Tensor, "*cell d_model"]:
    """The residual stream after a block; ``attention`` computes z, heads side by side, from the
    normalised stream. Taps: resid_pre, those of ``attention``, then those of ``after_attention``.
    """
    resid = tap("resid_pre", resid)
    return after_attention(weights, resid, attention(weights.attention_input(resid), tap), tap)


def after_attention(
    weights: BlockWeights,
    resid: Float[Tensor, "*cell d_model"],
    z: Float[Tensor, "*cell width"],
    tap: Tap,
) -> Float[Tensor, "*cell d_model"]:
    """The residual stream after a block, from that before it and z at the same positions. Taps:
    attn_out, resid_mid (sequential blocks only), mlp_pre, mlp_post, mlp_out, resid_post.
    """
    mid = resid + tap("attn_out", weights.out(z))
    if not weights.parallel:
        resid = mid = tap("resid_mid", mid)
    neurons = tap("mlp_post", weights.neurons(weights.mlp_input(resid), tap))
    return tap("resid_post", mid + tap("mlp_out", weights.down(neurons)))
