"""Attention attribution by integrated gradients (Hao et al. 2021, https://arxiv.org/abs/2004.11207):
how much of the answer goes through each head's attention from one token to another.

With A the attention patterns of all heads of one layer in the clean run, α A in their place, and m
the ``logit_diff``, the attribution is A ∘ ∫ ∂m/∂(α A) dα from 0 to 1, by ``n_points`` midpoints.
Over the heads and edges of a layer it adds up to m(A) − m(0), as points grow. A head is credited
while the others of its layer are scaled down with it, so that a large attribution is no evidence of
an effect of its own; compare with patching ``edge`` by zero.
"""

import torch
import xarray as xr
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from interp.attribution.edges import check_token_roles, first_tokens, logit_diff
from interp.data.facts import FactSet, role_masks
from interp.fields import argument
from interp.localization.inputs import check_inputs
from interp.model.decoder import HookedDecoder
from interp.model.weights import widened
from interp.patching.activations import Prompts, prompts

FACTS_AT_ONCE = 32


def pattern_attribution(model: HookedDecoder, facts: FactSet, *, n_points: int = 20) -> xr.Dataset:
    """Integrated gradients of ``logit_diff`` by every head's attention pattern.

    Returns:
        ``attribution`` (layer, head, dest, src, fact): nats, positive towards the clean answer,
        summed over the tokens of a role; NaN for roles that a prompt lacks. ``clean`` (fact):
        ``logit_diff``; ``without`` (layer, fact): that with the layer's patterns all 0.
    """
    check_inputs(model, facts, twins=True), check_token_roles(facts)
    argument("n_points", n_points, int, least=1)
    pieces = [_of_batch(model, part, n_points) for part in facts.batches(FACTS_AT_ONCE)]
    found = xr.concat(pieces, "fact").transpose(..., "fact")
    there = [bool((facts.roles == i).any()) for i in range(len(facts.role_names))]
    return found.isel(dest=there, src=there)


def _of_batch(model: HookedDecoder, facts: FactSet, n_points: int) -> xr.Dataset:
    given, _ = prompts(first_tokens(facts), model.embed.weight.device)
    layers = range(model.cfg.n_layers)
    names = [_hook(layer) for layer in layers]
    with torch.inference_mode():
        logits, cache = model.run_with_cache(given.tokens, names_filter=names)
    masks = role_masks(facts)[:, :, : given.tokens.shape[1]].to(given.tokens.device)
    lacks = ~masks.any(-1)
    absent, by_role = lacks[:, None] | lacks, masks.to(widened(logits))
    attributions, without = [], []
    for layer in layers:
        pattern = cache[_hook(layer)].clone()
        slope = _mean_gradient(model, given, layer, pattern, n_points)
        of_edge = widened(pattern) * slope
        found = einsum(of_edge, by_role, by_role, "f h i j, d f i, s f j -> h d s f")
        attributions.append(found.masked_fill(absent, torch.nan))
        without.append(logit_diff(_run(model, given, layer, torch.zeros_like(pattern)), given))
    attrs = {"units": "nats", "sign": "positive towards the clean answer"}
    values = {
        "attribution": (("layer", "head", "dest", "src", "fact"), torch.stack(attributions)),
        "clean": (("fact",), logit_diff(logits, given)),
        "without": (("layer", "fact"), torch.stack(without)),
    }
    coords = {"dest": list(facts.role_names), "src": list(facts.role_names)}
    coords["attribute"] = ("fact", facts.texts.attribute.to_numpy(object))
    return xr.Dataset(
        {name: (dims, x.cpu().numpy(), attrs) for name, (dims, x) in values.items()}, coords
    )


def _mean_gradient(
    model: HookedDecoder,
    given: Prompts,
    layer: int,
    pattern: Float[Tensor, "fact head dest src"],
    n_points: int,
) -> Float[Tensor, "fact head dest src"]:
    """The mean gradient of ``logit_diff`` by a layer's pattern, over midpoints from 0 to it."""
    total = torch.zeros_like(pattern, dtype=widened(pattern).dtype)
    for i in range(n_points):
        with torch.enable_grad():
            point = ((i + 0.5) / n_points * pattern).requires_grad_()
            score = logit_diff(_run(model, given, layer, point), given).sum()
            total += torch.autograd.grad(score, point)[0]
    return total / n_points


def _run(
    model: HookedDecoder, given: Prompts, layer: int, pattern: Float[Tensor, "fact head dest src"]
) -> Float[Tensor, "fact pos d_vocab"]:
    """Logits of the run with ``pattern`` in a layer."""
    return model.run_with_hooks(
        given.tokens, fwd_hooks=[(_hook(layer), lambda x, hook: pattern.to(x.dtype))]
    )


def _hook(layer: int) -> str:
    return f"blocks.{layer}.attn.hook_pattern"
