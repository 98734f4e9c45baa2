"""The backward pass of a ``HookedDecoder``, written out.

Of several gradients at once: what depends on the activations alone (attention patterns, slopes of
the non-linearity, LayerNorm's scales) is computed once for all of them, where autograd computes it
for each. Gradients are in fp32, or in the model's type if that is wider.
"""

from collections.abc import Collection, Iterator
from functools import partial

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from interp.model.attention import Rotation, rotate, rotation, scores, softmax
from interp.model.block import run_block
from interp.model.decoder import Block, HookedDecoder, LayerNorm
from interp.model.weights import widened
from interp.patching.activations import ActivationCache

NEEDED = frozenset(("resid_pre", "resid_mid", "resid_post", "rot_q", "rot_k", "v"))
"""Activations that a backward pass starts from; parallel blocks have no resid_mid."""
_STABLE = 1e-6
"""RelP divides by pre-activations that are at least so far from 0."""
_RESIDUAL = {"resid_pre", "resid_mid", "resid_post"}


@torch.no_grad()
def run_blocks(
    model: HookedDecoder,
    embed: Float[Tensor, "row pos d_model"],
    names: Collection[str],
) -> ActivationCache:
    """The activations ``names`` of a forward pass from embeddings."""
    pos, cache = torch.arange(embed.shape[1], device=embed.device), []
    turn, resid = rotation(pos, model.cfg), embed
    if model.cfg.learned_positions:
        resid = resid + model.pos_embed.weight[pos]
    for block in model.blocks:
        layer = {} if cache else {"embed": embed}

        def record(name: str, x: Tensor, layer: dict[str, Tensor] = layer) -> Tensor:
            layer[name] = x
            return x

        resid = run_block(block, resid, partial(block.attn, turn=turn), record)
        cache.append({name: x for name, x in layer.items() if name in names})
    return cache


def logits_of(
    model: HookedDecoder, resid: Float[Tensor, "*cell d_model"]
) -> Float[Tensor, "*cell d_vocab"]:
    """Logits of the last residual stream."""
    return _normalised(model.ln_final, resid) @ widened(model.unembed.weight).mT


def logits_backward(
    model: HookedDecoder,
    resid: Float[Tensor, "*cell d_model"],
    slope: Float[Tensor, "metric *cell d_vocab"],
    *,
    relp: bool = False,
) -> Float[Tensor, "metric *cell d_model"]:
    """The gradient by the last residual stream from that by the logits."""
    return _through_norm(slope, widened(model.unembed.weight), model.ln_final, resid, held=relp)


@torch.no_grad()
def block_gradients(
    model: HookedDecoder,
    cache: ActivationCache,
    row: slice,
    slope: Float[Tensor, "metric row pos d_model"],
    names: Collection[str],
    *,
    relp: bool = False,
    drop_layers: bool = False,
) -> Iterator[tuple[int, dict[str, Float[Tensor, "drop metric row *rest"]]]]:
    """Layers from the last to the first, with gradients by their activations ``names``.

    Args:
        cache: ``NEEDED`` activations.
        row: rows of ``cache`` that gradients are taken of.
        slope: the gradients by the last residual stream.
        relp: LayerNorm's scale and gelu(x) ÷ x are held.
        drop_layers: after the plain gradients give those with the outputs of one layer detached:
            for the residual stream, of this layer and of each later one; for activations inside the
            layer, of each later one. With an earlier layer detached they are the plain ones.
    """
    slope = slope[None]
    turn = rotation(torch.arange(slope.shape[3], device=slope.device), model.cfg)
    for layer in reversed(range(model.cfg.n_layers)):
        kept = {name: widened(cache[layer][name][row]) for name in NEEDED & cache[layer].keys()}
        found = _block_backward(model.blocks[layer], kept, turn, slope, relp=relp)
        if drop_layers:
            for name in found.keys() & _RESIDUAL & {"resid_pre", *names}:
                found[name] = torch.cat((found[name][:1], slope[:1], found[name][1:]))
        slope = found["resid_pre"]
        if layer == 0:
            found["embed"] = slope
        yield layer, {name: x for name, x in found.items() if name in names}


def _block_backward(
    block: Block,
    kept: dict[str, Tensor],
    turn: Rotation,
    slope: Float[Tensor, "drop metric row pos d_model"],
    *,
    relp: bool,
) -> dict[str, Float[Tensor, "drop metric row *rest"]]:
    """Gradients by a block's activations from that by its output."""
    found = {"resid_post": slope, "mlp_out": slope}
    resid = kept["resid_pre" if block.parallel else "resid_mid"]
    up = widened(block.mlp.up.weight)
    pre = F.linear(_normalised(block.ln2, resid), up, widened(block.mlp.up.bias))
    found["mlp_post"] = slope @ widened(block.mlp.down.weight)
    found["mlp_pre"] = found["mlp_post"] * _gelu_slope(pre, block.mlp.gelu, held=relp)
    below_mlp = slope + _through_norm(found["mlp_pre"], up, block.ln2, resid, held=relp)
    found["attn_out"] = slope if block.parallel else below_mlp
    if not block.parallel:
        found["resid_mid"] = below_mlp
    n_heads, out = block.attn.n_heads, widened(block.attn.out.weight)
    found["z"] = (found["attn_out"] @ out).unflatten(-1, (n_heads, -1))
    found |= _attention_backward(kept, turn, found["z"])
    fused = torch.stack([found[kind] for kind in "qkv"], -2).flatten(-3)  # (head, qkv, d_head)
    qkv = widened(block.attn.qkv.weight)
    through = _through_norm(fused, qkv, block.ln1, kept["resid_pre"], held=relp)
    found["resid_pre"] = below_mlp + through
    return found


def _attention_backward(
    kept: dict[str, Tensor], turn: Rotation, slope: Float[Tensor, "drop metric row dest head d"]
) -> dict[str, Tensor]:
    """Gradients inside attention from those by its heads' outputs z."""
    q, k, v = kept["rot_q"], kept["rot_k"], kept["v"]
    pattern = softmax(scores(q, k, torch.arange(q.shape[1], device=q.device)[None]))
    found = {}
    axes = "row head dest src, drop metric row dest head d -> drop metric row src head d"
    found["v"] = einsum(pattern, slope, axes)
    axes = "drop metric row dest head d, row src head d -> drop metric row head dest src"
    found["pattern"] = einsum(slope, v, axes)
    weighted = found["pattern"] * pattern
    of_all = weighted.sum(-1, keepdim=True)
    found["attn_scores"] = weighted.addcmul_(pattern, of_all, value=-1)
    scaled = found["attn_scores"] * q.shape[-1] ** -0.5
    axes = "drop metric row head dest src, row src head d -> drop metric row dest head d"
    found["rot_q"] = einsum(scaled, k, axes)
    axes = "drop metric row head dest src, row dest head d -> drop metric row src head d"
    found["rot_k"] = einsum(scaled, q, axes)
    back = Rotation(turn.cos, -turn.sin)
    return found | {kind: rotate(found[f"rot_{kind}"], back) for kind in "qk"}


def _gelu_slope(
    pre: Float[Tensor, "*cell neuron"], approximate: str, *, held: bool
) -> Float[Tensor, "*cell neuron"]:
    """The derivative of GELU; with gelu(x) ÷ x ``held``, that."""
    if not held:
        ones = torch.ones_like(pre)
        return torch.ops.aten.gelu_backward(ones, pre, approximate=approximate)
    return F.gelu(pre, approximate=approximate) / torch.where(pre.abs() < _STABLE, _STABLE, pre)


def _normalised(
    norm: LayerNorm, x: Float[Tensor, "*cell d_model"]
) -> Float[Tensor, "*cell d_model"]:
    return F.layer_norm(x, x.shape[-1:], widened(norm.weight), widened(norm.bias), norm.eps)


def _through_norm(
    slope: Float[Tensor, "*batch out"],
    weight: Float[Tensor, "out d_model"],
    norm: LayerNorm,
    x: Float[Tensor, "*cell d_model"],
    *,
    held: bool,
) -> Float[Tensor, "*batch d_model"]:
    """The gradient by LayerNorm's input ``x`` from that by a linear map of its output; ``held``:
    with LayerNorm's scale held.
    """
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + norm.eps).rsqrt()
    weight = weight * widened(norm.weight)
    through = slope @ (weight - weight.mean(-1, keepdim=True))
    if not held:
        normed = centred * scale
        along = (normed * through).mean(-1, keepdim=True)
        through.addcmul_(normed, along, value=-1)
    return through.mul_(scale)
