"""Why a head attends where it attends: its attention scores as sums over the parts of the residual
stream that wrote the query and the key.

With the LayerNorm scale of the run held, the residual streams at a destination i and a source j are
sums of parts (embedding, earlier heads and MLPs, biases), û and ŵ after the norm, and

    score[i, j] = Σ_{u,w} rot_i(W_Q û_i) · rot_j(W_K ŵ_j) / √d_head.

What is equal for all sources leaves the softmax, so only contrasts between sources are given: the
mean score of some sources minus that of others. The terms add up to ``hook_attn_scores``. They are
correlational; beside them stands a cause, the same part taken from the corrupted run, with the
LayerNorm recomputed. A large term is no evidence that what the head moves is used.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import xarray as xr
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.attribution.component_outputs import component_outputs
from interp.attribution.parts import (
    BIAS_PART,
    EVERY,
    Scales,
    head_vectors,
    part_names,
    parts_of,
    scales_of,
)
from interp.data.facts import PROMPT_ROLES, FactSet
from interp.localization.inputs import check_inputs
from interp.model.decoder import HookedDecoder
from interp.model.weights import Weights

NAMES = ("name_first", "name_middle", "name_last")
CONTRASTS = {
    "name_middle: name_first − context": ("name_middle", NAMES[:1], ("bos", "context")),
    "name_last: other names − context": ("name_last", NAMES[:2], ("bos", "context")),
    "final: names − cue": ("final", NAMES, ("cue",)),
    "final: cue − names": ("final", ("cue",), NAMES),
    "final: name_last − other names": ("final", NAMES[2:], NAMES[:2]),
}
"""Destination, sources, and the sources whose mean score is subtracted."""
SIDES = {"query": "q", "key": "k"}
PROMPTS = ("clean", "corrupted")
FACTS_AT_ONCE = 64

HeadVectors = Float[Tensor, "part contrast fact head d_head"]


@torch.inference_mode()
def score_attribution(model: HookedDecoder, facts: FactSet) -> xr.Dataset:
    """Every head's score contrasts, by the parts that wrote query and key.

    Returns:
        ``score`` (prompt, layer, head, contrast, fact): the contrast of ``hook_attn_scores``,
        positive = towards the first sources, on the clean and on the corrupted prompts; what both
        share is not about this name. ``terms`` (prompt, layer, head, contrast, query_part,
        key_part, fact): they add up to ``score``. ``estimated`` and ``patched`` (side, layer, head,
        contrast, part, fact): change of the clean ``score`` when one part of the query, or of all
        keys, is that of the corrupted run; estimated with the LayerNorm scale held, patched with it
        recomputed. All are before the softmax and after ÷ √d_head. NaN for parts that are written
        later, and where a prompt lacks the destination or either kind of sources.
    """
    check_inputs(model, facts, names=True, twins=True)
    pieces = [_of_batch(model, part) for part in facts.batches(FACTS_AT_ONCE)]
    return xr.concat(pieces, "fact").transpose(..., "fact")


def contrasts_of(
    facts: FactSet,
) -> tuple[Int[Tensor, "contrast fact"], Float[Tensor, "contrast fact src"]]:
    """Destination of each of ``CONTRASTS`` (the last token of its role), −1 where a prompt lacks it
    or either kind of sources before it; and the weights with which scores are summed.
    """
    pos = torch.arange(facts.roles.shape[1])
    destinations, weights = [], []
    for role, *of_sources in CONTRASTS.values():
        dest = torch.where(facts.roles == PROMPT_ROLES.index(role), pos, -1).amax(1)
        first, second = (_has_role(facts.roles, x) & (pos <= dest[:, None]) for x in of_sources)
        n_first, n_second = (x.sum(1, keepdim=True).double() for x in (first, second))
        destinations.append(dest.where((n_first.minimum(n_second) > 0)[:, 0], -1))
        weights.append(first / n_first.clamp(min=1) - second / n_second.clamp(min=1))
    return torch.stack(destinations), torch.stack(weights)


def _has_role(roles: Int[Tensor, "fact pos"], names: Sequence[str]) -> Bool[Tensor, "fact pos"]:
    return torch.isin(roles, torch.tensor([PROMPT_ROLES.index(name) for name in names]))


def _of_batch(model: HookedDecoder, facts: FactSet) -> xr.Dataset:
    weights, cfg, device = Weights(model), model.cfg, model.embed.weight.device
    dest, sources = (x.to(device) for x in contrasts_of(facts))
    runs = [component_outputs(weights, x.to(device))[1] for x in (facts.clean, facts.corrupted)]
    names = part_names(cfg.n_layers, cfg.n_heads)
    shape, n_facts = (cfg.n_layers, cfg.n_heads, len(CONTRASTS)), len(facts)
    score = runs[0][0].new_empty((len(PROMPTS), *shape, n_facts))
    terms = score.new_full((len(PROMPTS), *shape, *2 * [len(names)], n_facts), torch.nan)
    estimated, patched = (
        score.new_full((len(SIDES), *shape, len(names), n_facts), torch.nan) for _ in range(2)
    )
    select = {"query": partial(_at, dest), "key": partial(_over, sources.to(score.dtype))}
    for layer in range(cfg.n_layers):
        read = partial(_read, weights, layer, select)
        clean, corrupted = (parts_of(weights, written, layer) for written in runs)
        n, change, resid = len(clean), corrupted - clean, clean.sum(0)
        scale, other_scale = (scales_of(weights, layer, x.sum(0)) for x in (clean, corrupted))
        for i, given in enumerate(((clean, scale), (corrupted, other_scale))):
            query, key = (read(side, *given, biases=BIAS_PART) for side in SIDES)
            terms[i, layer, :, :, :n, :n] = _products(query, key)
            score[i, layer] = terms[i, layer, :, :, :n, :n].sum((2, 3))
        scale_of_changed = scales_of(weights, layer, resid + change)
        query, key = (read(side, resid[None], scale, biases=EVERY) for side in SIDES)
        for i, side in enumerate(SIDES):
            held = read(side, change, scale)
            own = query if side == "query" else key
            moved = read(side, resid + change, scale_of_changed, biases=EVERY) - own
            for found, vectors in ((estimated, held), (patched, moved)):
                pair = (vectors, key) if side == "query" else (query, vectors)
                found[i, layer, :, :, :n] = _products(*pair).flatten(2, 3)
    place = ("layer", "head", "contrast")
    values = {
        "score": (("prompt", *place, "fact"), score),
        "terms": (("prompt", *place, "query_part", "key_part", "fact"), terms),
        "estimated": (("side", *place, "part", "fact"), estimated),
        "patched": (("side", *place, "part", "fact"), patched),
    }
    coords = {"prompt": list(PROMPTS), "side": list(SIDES), "contrast": list(CONTRASTS)}
    coords |= {"part": names, "query_part": names, "key_part": names}
    coords["attribute"] = ("fact", facts.texts.attribute.to_numpy(object))
    return xr.Dataset({name: (dims, x.cpu().numpy()) for name, (dims, x) in values.items()}, coords)


def _read(
    weights: Weights,
    layer: int,
    select: dict[str, Callable[[Tensor], Tensor]],
    side: str,
    parts: Float[Tensor, "part fact pos d_model"],
    scale: Scales,
    *,
    biases: int | slice | None = None,
) -> HeadVectors:
    """Queries at destinations, or contrasts of keys, as each part makes them."""
    return select[side](head_vectors(weights, layer, SIDES[side], parts, scale, biases=biases))


def _at(
    dest: Int[Tensor, "contrast fact"], queries: Float[Tensor, "part fact pos head d_head"]
) -> HeadVectors:
    fact = torch.arange(dest.shape[1], device=dest.device)
    missing = (dest < 0)[:, :, None, None]
    return queries[:, fact, dest.clamp(min=0)].masked_fill(missing, torch.nan)


def _over(
    sources: Float[Tensor, "contrast fact src"], keys: Float[Tensor, "part fact src head d_head"]
) -> HeadVectors:
    return einsum(keys, sources, "part fact src h d, c fact src -> part c fact h d")


def _products(
    query: Float[Tensor, "query_part contrast fact head d_head"],
    key: Float[Tensor, "key_part contrast fact head d_head"],
) -> Float[Tensor, "head contrast query_part key_part fact"]:
    products = einsum(query, key, "u c fact h d, w c fact h d -> h c u w fact")
    return products * query.shape[-1] ** -0.5
