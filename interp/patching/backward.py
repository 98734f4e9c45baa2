"""The backward pass of a ``HookedDecoder``, written out.

Of several gradients at once: what depends on the activations alone (attention patterns, slopes of
the non-linearity, scales of norms) is computed once for all of them, where autograd computes it
for each. Gradients are in fp32, or in the model's type if that is wider.
"""

from collections.abc import Collection, Iterator
from functools import partial

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from interp.model.attention import (
    Rotation,
    attend,
    rotate,
    rotation,
    scores,
    softmax,
    split_qkv_weight,
)
from interp.model.block import run_block, silent
from interp.model.decoder import Activation, Attention, Block, HookedDecoder, activate
from interp.model.norm import Norm
from interp.model.weights import norm_weights, normalised, widened
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
    return normalised(model.ln_final, resid) @ widened(model.unembed.weight).mT


def logits_backward(
    model: HookedDecoder,
    resid: Float[Tensor, "*cell d_model"],
    slope: Float[Tensor, "metric *cell d_vocab"],
    *,
    relp: bool = False,
) -> Float[Tensor, "metric *cell d_model"]:
    """The gradient by the last residual stream from that by the logits."""
    unembed = widened(model.unembed.weight)
    return _into_norm(slope, unembed, model.ln_final, resid, held=relp)


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
        relp: scales of norms and f(x) ÷ x of the non-linearity f are held.
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
) -> dict[str, Float[Tensor, "drop metric row pos *rest"]]:
    """Gradients by a block's activations from that by its output."""
    found = {"resid_post": slope, "mlp_out": slope}
    resid = kept["resid_pre" if block.parallel else "resid_mid"]
    found |= _mlp_backward(block, resid, slope, relp=relp)
    below_mlp = slope + found["mlp_in"]
    found["attn_out"] = slope if block.parallel else below_mlp
    if not block.parallel:
        found["resid_mid"] = below_mlp
    out = widened(block.attn.out.weight)
    if block.norm_after:
        z = _z_of(kept)
        written = F.linear(z, out, widened(block.attn.out.bias))
        by_z = through_norm(found["attn_out"], block.ln1_post, written, held=relp) @ out
    else:
        by_z = found["attn_out"] @ out
    found["z"] = by_z.unflatten(-1, (block.attn.n_heads, -1))
    found |= _attention_backward(kept, turn, found["z"])
    if block.attn.qk_norm != "none":
        read = kept["resid_pre"]
        read = read if block.norm_after else normalised(block.ln1, read)
        for kind in "qk":
            found[kind] = _through_head_norm(block.attn, kind, found[kind], read, held=relp)
    fused = torch.cat([_grouped(found[kind], block.attn) for kind in "qkv"], -2).flatten(-3)
    qkv = widened(block.attn.qkv.weight)
    if block.norm_after:
        through = fused @ qkv
    else:
        through = _into_norm(fused, qkv, block.ln1, kept["resid_pre"], held=relp)
    found["resid_pre"] = below_mlp + through
    return found


def _mlp_backward(
    block: Block,
    resid: Float[Tensor, "row pos d_model"],
    slope: Float[Tensor, "drop metric row pos d_model"],
    *,
    relp: bool,
) -> dict[str, Tensor]:
    """Gradients by an MLP's neurons, before and after the non-linearity, and by the residual stream
    that it reads, through it alone (``mlp_in``), from that by its output.
    """
    mlp, down = block.mlp, widened(block.mlp.down.weight)
    read = resid if block.norm_after else normalised(block.ln2, resid)
    inner = mlp.gate if mlp.gated else mlp.up
    pre = F.linear(read, widened(inner.weight), widened(inner.bias))
    if mlp.gated:
        beside = F.linear(read, widened(mlp.up.weight), widened(mlp.up.bias))
    if block.norm_after:
        neurons = activate(pre, mlp.activation) * (beside if mlp.gated else 1)
        written = F.linear(neurons, down, widened(mlp.down.bias))
        slope = through_norm(slope, block.ln2_post, written, held=relp)
    found = {"mlp_post": slope @ down}
    by_activated = found["mlp_post"] * beside if mlp.gated else found["mlp_post"]
    found["mlp_pre"] = by_activated * _activation_slope(pre, mlp.activation, held=relp)
    weight, back = widened(inner.weight), found["mlp_pre"]
    if mlp.gated:
        by_up = found["mlp_post"] * activate(pre, mlp.activation)
        weight, back = torch.cat((weight, widened(mlp.up.weight))), torch.cat((back, by_up), -1)
    if block.norm_after:
        found["mlp_in"] = back @ weight
    else:
        found["mlp_in"] = _into_norm(back, weight, block.ln2, resid, held=relp)
    return found


def _z_of(kept: dict[str, Tensor]) -> Float[Tensor, "row dest width"]:
    """z of every head, side by side."""
    q, k, v = kept["rot_q"], kept["rot_k"], kept["v"]
    return attend(q, k, v, torch.arange(q.shape[1], device=q.device)[None], silent)


def _grouped(
    slope: Float[Tensor, "*batch head d_head"], attention: Attention
) -> Float[Tensor, "*batch group n d_head"]:
    """Gradients by queries, keys or values as they lie in a fused row."""
    return slope.unflatten(-2, (attention.n_key_value_heads, -1))


def _through_head_norm(
    attention: Attention,
    kind: str,
    slope: Float[Tensor, "*batch head d_head"],
    read: Float[Tensor, "row pos d_model"],
    *,
    held: bool,
) -> Float[Tensor, "*batch head d_head"]:
    """The gradient by queries or keys before their norm, from that after it; ``read`` is what
    attention reads.
    """
    norm = attention.q_norm if kind == "q" else attention.k_norm
    n_heads, n_groups = attention.n_heads, attention.n_key_value_heads
    of_kind = "qk".index(kind)
    weight, bias = (
        split_qkv_weight(widened(x), n_heads, n_groups)[of_kind].flatten(0, 1)
        for x in (attention.qkv.weight, attention.qkv.bias)
    )
    x, heads = F.linear(read, weight, bias), slope.shape[-2:]
    if attention.qk_norm == "head":
        return through_norm(slope, norm, x.unflatten(-1, heads), held=held)
    return through_norm(slope.flatten(-2), norm, x, held=held).unflatten(-1, heads)


def _attention_backward(
    kept: dict[str, Tensor], turn: Rotation, slope: Float[Tensor, "drop metric row dest head d"]
) -> dict[str, Tensor]:
    """Gradients inside attention from those by its heads' outputs z."""
    q, k, v = kept["rot_q"], kept["rot_k"], kept["v"]
    pattern = softmax(scores(q, k, torch.arange(q.shape[1], device=q.device)[None]))
    n = q.shape[2] // k.shape[2]  # heads that share a key
    keys, values = (x.repeat_interleave(n, 2) for x in (k, v))
    found = {}
    axes = "row head dest src, drop metric row dest head d -> drop metric row src head d"
    found["v"] = einsum(pattern, slope, axes)
    axes = "drop metric row dest head d, row src head d -> drop metric row head dest src"
    found["pattern"] = einsum(slope, values, axes)
    weighted = found["pattern"] * pattern
    of_all = weighted.sum(-1, keepdim=True)
    found["attn_scores"] = weighted.addcmul_(pattern, of_all, value=-1)
    scaled = found["attn_scores"] * q.shape[-1] ** -0.5
    axes = "drop metric row head dest src, row src head d -> drop metric row dest head d"
    found["rot_q"] = einsum(scaled, keys, axes)
    axes = "drop metric row head dest src, row dest head d -> drop metric row src head d"
    found["rot_k"] = einsum(scaled, q, axes)
    for name in ("v", "rot_k"):
        found[name] = found[name].unflatten(-2, (k.shape[2], n)).sum(-2) if n > 1 else found[name]
    back = Rotation(turn.cos, -turn.sin)
    return found | {kind: rotate(found[f"rot_{kind}"], back) for kind in "qk"}


def _activation_slope(
    pre: Float[Tensor, "*cell neuron"], activation: Activation, *, held: bool
) -> Float[Tensor, "*cell neuron"]:
    """The derivative of the non-linearity; with f(x) ÷ x ``held``, that."""
    if held:
        return activate(pre, activation) / torch.where(pre.abs() < _STABLE, _STABLE, pre)
    ones = torch.ones_like(pre)
    if activation == "silu":
        return torch.ops.aten.silu_backward(ones, pre)
    how = "tanh" if activation == "gelu_tanh" else "none"
    return torch.ops.aten.gelu_backward(ones, pre, approximate=how)


def _into_norm(
    slope: Float[Tensor, "*batch out"],
    weight: Float[Tensor, "out d_model"],
    norm: Norm,
    x: Float[Tensor, "*cell d_model"],
    *,
    held: bool,
) -> Float[Tensor, "*batch d_model"]:
    """The gradient by a norm's input ``x`` from that by a linear map of its output; ``held``: with
    the norm's scale held.
    """
    return _by_input(slope @ norm.centred(weight * norm_weights(norm)[0]), norm, x, held=held)


def through_norm(
    slope: Float[Tensor, "*batch width"],
    norm: Norm,
    x: Float[Tensor, "*cell width"],
    *,
    held: bool,
) -> Float[Tensor, "*batch width"]:
    """The gradient by a norm's input ``x`` from that by its output."""
    return _by_input(norm.centred(slope * norm_weights(norm)[0]), norm, x, held=held)


def _by_input(
    through: Float[Tensor, "*batch width"],
    norm: Norm,
    x: Float[Tensor, "*cell width"],
    *,
    held: bool,
) -> Float[Tensor, "*batch width"]:
    """The gradient by a norm's input, from that by its output before the weight, ``through``, which
    is written over; its mean has been taken off where the norm does so.
    """
    scale = norm.factor(x)
    if not held:
        normed = norm.centred(x) * scale
        along = (normed * through).mean(-1, keepdim=True)
        through.addcmul_(normed, along, value=-1)
    return through.mul_(scale)
