"""Attention for rows with a single query, where the rows of a fact share the base run's keys and
values: a product for each fact instead of a copy for each row.
"""

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from interp.model.attention import softmax
from interp.model.flop_count import add_flops


def attend_shared(
    q: Float[Tensor, "row head d"],
    k: Float[Tensor, "row pos head d"],
    v: Float[Tensor, "row pos head d"],
    base_k: Float[Tensor, "fact src head d"],
    base_v: Float[Tensor, "fact src head d"],
    fact: Int[Tensor, " row"],
    window: Int[Tensor, "row pos"],
    dest: Int[Tensor, " row"],
) -> Float[Tensor, "row width"]:
    """z at ``dest``, heads side by side. Keys ``k`` and values ``v`` are those of the row's own
    ``window``, whose positions are consecutive; before it the row has those of the base run of its
    fact. q, k and base_k are rotated.

    Cheap where facts have equal numbers of rows: products are padded to the largest.
    """
    n_before, q = int(window[:, 0].max()), q * q.shape[-1] ** -0.5
    facts, group, count = fact.unique(return_inverse=True, return_counts=True)
    order, first = group.argsort(stable=True), count.cumsum(0) - count
    slot = torch.empty_like(order)
    slot[order] = torch.arange(len(order), device=q.device) - first[group[order]]
    sides = (len(facts), int(count.max()))

    def by_fact(x: Float[Tensor, "row head n"]) -> Float[Tensor, "fact head slot n"]:
        out = x.new_zeros(*sides, *x.shape[1:])
        out[group, slot] = x
        return rearrange(out, "fact slot head n -> fact head slot n")

    keys, values = (
        rearrange(x[facts, :n_before], "fact src head d -> fact head src d")
        for x in (base_k, base_v)
    )
    asked = by_fact(q)
    add_flops(4 * (asked.numel() * n_before + k.numel()))
    before = (asked @ keys.mT)[group, :, slot]
    src = torch.arange(n_before, device=q.device)
    before = before.masked_fill_((src >= window[:, :1])[:, None], -torch.inf)
    own = rearrange((q[:, None] * k).sum(-1), "row pos head -> row head pos")
    own = own.masked_fill((window > dest[:, None])[:, None], -torch.inf)
    pattern = softmax(torch.cat((before, own), -1))
    z = (by_fact(pattern[..., :n_before]) @ values)[group, :, slot]
    weights = rearrange(pattern[..., n_before:], "row head pos -> row pos head 1")
    return (z + (weights * v).sum(1)).flatten(1)
