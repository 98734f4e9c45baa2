"""Attention of every head from the name tokens and from the answer position.

Attention from a destination token to sets of sources, per head, summed over the sources: as the
softmax gives it, and weighted by what is moved, ‖pattern · v · W_O‖ (Kobayashi et al. 2020,
https://arxiv.org/abs/2004.10102), as a share of the sum over all sources. Both are correlational:
a head can look at a token and move nothing that is used; ``component_ablation`` tells what is used.
"""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from einops import einsum, rearrange
from jaxtyping import Bool, Int
from torch import Tensor

from interp.data.facts import PROMPT_ROLES, FactSet
from interp.localization.inputs import check_inputs
from interp.model.decoder import HookedDecoder
from interp.model.model_check import check_plain
from interp.model.weights import Weights, widened

NAMES = tuple(role for role in PROMPT_ROLES if role.startswith("name"))
EDGES = {
    "name_middle ← name_first": ("name_middle", ("name_first",)),
    "name_last ← other names": ("name_last", ("name_first", "name_middle")),
    "final ← names": ("final", NAMES),
    "final ← name_last": ("final", ("name_last",)),
    "final ← cue": ("final", ("cue",)),
    "final ← rest": ("final", ("bos", "context", "final")),
    "final ← names of all sentences": ("final", (*NAMES, "context_name")),
}
"""Destination and sources; ``context_name``: the name where it stands in earlier sentences."""
_KINDS = (*PROMPT_ROLES, "context_name")
FACTS_AT_ONCE = 256


@torch.inference_mode()
def attention(model: HookedDecoder, facts: FactSet) -> xr.Dataset:
    """Attention of every head along ``EDGES`` on the clean prompts.

    Returns:
        ``pattern`` and ``value_weighted`` (layer, head, edge, fact): shares of a destination's
        attention, 0 to 1; ``entropy`` (layer, head, edge, fact): of the destination's pattern ÷
        ln(number of tokens it can see), 1 = even. NaN where a prompt lacks the destination.
    """
    check_plain(model)
    check_inputs(model, facts, names=True)
    parts = [_of_batch(model, part) for part in facts.batches(FACTS_AT_ONCE)]
    names = ("pattern", "value_weighted", "entropy")
    values = {name: np.concatenate([part[i] for part in parts], -1) for i, name in enumerate(names)}
    units = {"pattern": "share of attention", "value_weighted": "share of what is moved"}
    dims = ("layer", "head", "edge", "fact")
    return xr.Dataset(
        {
            name: (dims, x.astype(np.float32), {"units": units.get(name, "share of ln(tokens)")})
            for name, x in values.items()
        },
        {"edge": list(EDGES), "attribute": ("fact", facts.texts.attribute.to_numpy(object))},
        {"score": "correlational"},
    )


def _of_batch(model: HookedDecoder, facts: FactSet) -> tuple[np.ndarray, ...]:
    weights, device = Weights(model), model.embed.weight.device
    names = [
        f"blocks.{i}.attn.hook_{x}" for i in range(model.cfg.n_layers) for x in ("v", "pattern")
    ]
    _, cache = model.run_with_cache(facts.clean.to(device), names_filter=names)
    dest, sources = (x.to(device) for x in _edges(facts))
    there = dest >= 0
    found: list[list[Tensor]] = [[], [], []]
    for layer in range(model.cfg.n_layers):
        v, pattern = (widened(cache[f"blocks.{layer}.attn.hook_{x}"]) for x in ("v", "pattern"))
        rows = pattern[torch.arange(len(facts), device=device), :, dest.clamp(min=0)]
        written = einsum(
            weights.by_head(v),
            weights.head_outputs(layer),
            "fact src head d, head o d -> fact head src o",
        )
        moved = rows * written.norm(dim=-1)
        moved = moved / moved.sum(-1, keepdim=True)
        n_seen = (dest + 1).clamp(min=2)[..., None]
        entropy = torch.special.entr(rows).sum(-1) / n_seen.log()
        sums = [
            einsum(x, sources.to(x.dtype), "edge fact head src, edge fact src -> edge fact head")
            for x in (rows, moved)
        ]
        for values, of_layer in zip(found, (*sums, entropy)):
            values.append(of_layer.masked_fill(~there[..., None], torch.nan))
    return tuple(
        rearrange(torch.stack(x), "layer edge fact head -> layer head edge fact").cpu().numpy()
        for x in found
    )


def _edges(facts: FactSet) -> tuple[Int[Tensor, "edge fact"], Bool[Tensor, "edge fact src"]]:
    """Destination of each edge (the last token of its role; −1: none) and its sources."""
    pos = torch.arange(facts.roles.shape[1])
    kinds = facts.roles.masked_fill(_names_in_context(facts), _KINDS.index("context_name"))
    dest = [torch.where(kinds == _KINDS.index(role), pos, -1).amax(1) for role, _ in EDGES.values()]
    sources = [torch.isin(kinds, _indices(src)) for _, src in EDGES.values()]
    return torch.stack(dest), torch.stack(sources)


def _indices(kinds: Sequence[str]) -> Int[Tensor, " kind"]:
    return torch.tensor([_KINDS.index(kind) for kind in kinds])


def _names_in_context(facts: FactSet) -> Bool[Tensor, "fact pos"]:
    """Positions of the whole name in earlier sentences."""
    found = torch.zeros_like(facts.roles, dtype=torch.bool)
    context = facts.roles == PROMPT_ROLES.index("context")
    if not context.any():
        return found
    for fact, roles in enumerate(facts.roles):
        name = facts.clean[fact, torch.isin(roles, _indices(NAMES))]
        for start in context[fact].nonzero()[:, 0].tolist():
            piece = slice(start, start + len(name))
            if facts.clean[fact, piece].equal(name) and context[fact, piece].all():
                found[fact, piece] = True
    return found
