"""What heads move to the answer position: direct logit attribution of every source token, through
values and outputs, by the parts of the residual stream that wrote it there.

With the attention pattern and the scales of both LayerNorms held at those of the clean run, what a
head adds to ``logit_diff`` is a sum over source tokens j and the parts w written there:

    pattern[final, j] · (W_V ŵ_j) · W_Oᵀ d,

d the direction of the answer minus the corrupted answer (``logit_attribution``). Direct effects
only, and correlational: what later components make of a head's output is not in it.
"""

from collections.abc import Iterator

import torch
import xarray as xr
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from interp.attribution.component_outputs import component_outputs
from interp.attribution.edges import check_token_roles
from interp.attribution.parts import BIAS_PART, head_vectors, part_names, parts_of, scales_of
from interp.data.facts import FactSet, role_masks
from interp.localization.inputs import check_inputs
from interp.localization.logit_attribution import answer_directions
from interp.model.decoder import HookedDecoder
from interp.model.weights import Weights, widened

FACTS_AT_ONCE = 64


@torch.inference_mode()
def value_attribution(model: HookedDecoder, facts: FactSet) -> xr.Dataset:
    """What every head writes towards the clean answer at ``final``, by source role and part.

    Returns:
        ``moved`` (layer, head, role, part, fact): nats, positive towards the clean answer; NaN for
        parts that are written later and roles that a prompt lacks. They add up to ``head`` of
        ``logit_attribution.direct_attribution``. ``attention`` (layer, head, role, fact): the
        share of the attention from ``final`` that the role's tokens get.
    """
    check_inputs(model, facts, twins=True), check_token_roles(facts)
    pieces = [_of_batch(model, part) for part in facts.batches(FACTS_AT_ONCE)]
    found = xr.concat(pieces, "fact").transpose(..., "fact")
    return found.isel(role=found.attention.notnull().any(("layer", "head", "fact")).values)


def _of_batch(model: HookedDecoder, facts: FactSet) -> xr.Dataset:
    weights, cfg, device = Weights(model), model.cfg, model.embed.weight.device
    tokens = facts.clean.to(device)
    _, written = component_outputs(weights, tokens)
    names = part_names(cfg.n_layers, cfg.n_heads)
    masks = role_masks(facts)[:, :, : tokens.shape[1]].to(device)
    lacks = ~masks.any(-1)
    moved = written[0].new_full(
        (cfg.n_layers, cfg.n_heads, len(masks), len(names), len(facts)), torch.nan
    )
    attention = moved.new_empty((cfg.n_layers, cfg.n_heads, len(masks), len(facts)))
    towards = answer_directions(model, facts)
    for layer, (pattern, factor) in enumerate(_attention_at_final(weights, facts)):
        by_role = einsum(pattern, masks.to(pattern), "f h j, r f j -> h r f")
        attention[layer] = by_role.masked_fill(lacks, torch.nan)
        parts = parts_of(weights, written, layer)
        scales = scales_of(weights, layer, parts.sum(0))
        values = head_vectors(weights, layer, "v", parts, scales, biases=BIAS_PART)
        read = einsum(weights.head_outputs(layer), towards, "h m d, f m -> f h d")
        read = read * factor[:, None]
        found = einsum(values, read, pattern, "w f j h d, f h d, f h j -> w f h j")
        of_role = einsum(found, masks.to(found), "w f h j, r f j -> h r w f")
        moved[layer, :, :, : len(parts)] = of_role.masked_fill(lacks[:, None], torch.nan)
    values = {
        "moved": (("layer", "head", "role", "part", "fact"), moved, "nats"),
        "attention": (("layer", "head", "role", "fact"), attention, "share"),
    }
    coords = {"role": list(facts.role_names), "part": names}
    coords["attribute"] = ("fact", facts.texts.attribute.to_numpy(object))
    return xr.Dataset(
        {
            name: (dims, x.cpu().numpy(), {"units": units})
            for name, (dims, x, units) in values.items()
        },
        coords,
    )


def _attention_at_final(
    weights: Weights, facts: FactSet
) -> Iterator[tuple[Float[Tensor, "fact head src"], Float[Tensor, "fact 1"]]]:
    """Each layer's attention from the last token of the clean prompts, and the scale of the norm
    that follows it there.
    """
    model, device = weights.model, weights.model.embed.weight.device
    layers = range(model.cfg.n_layers)
    names = [f"blocks.{layer}.attn.hook_{x}" for layer in layers for x in ("pattern", "z")]
    _, cache = model.run_with_cache(facts.clean.to(device), names_filter=names)
    row, at = torch.arange(len(facts), device=device), facts.lengths.to(device) - 1
    for layer in layers:
        pattern, z = (cache[f"blocks.{layer}.attn.hook_{x}"] for x in ("pattern", "z"))
        yield widened(pattern[row, :, at]), weights.attention_output_factor(layer, z[row, at])
