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
    k: Float[Tensor, "row pos group d"],
    v: Float[Tensor, "row pos group d"],
    base_k: Float[Tensor, "fact src group d"],
    base_v: Float[Tensor, "fact src group d"],
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
    n = q.shape[1] // k.shape[2]  # heads that share a key

    def by_fact(x: Float[Tensor, "row head m"]) -> Float[Tensor, "fact group slot_n m"]:
        out = x.new_zeros(*sides, *x.shape[1:])
        out[group, slot] = x
        return rearrange(out, "fact slot (group n) m -> fact group (slot n) m", n=n)

    def by_row(x: Float[Tensor, "fact group slot_n m"]) -> Float[Tensor, "row head m"]:
        return rearrange(x, "fact group (slot n) m -> fact slot (group n) m", n=n)[group, slot]

    keys, values = (
        rearrange(x[facts, :n_before], "fact src group d -> fact group src d")
        for x in (base_k, base_v)
    )
    asked = by_fact(q)
    add_flops(4 * (asked.numel() * n_before + n * k.numel()))
    before = by_row(asked @ keys.mT)
    src = torch.arange(n_before, device=q.device)
    before = before.masked_fill_((src >= window[:, :1])[:, None], -torch.inf)
    grouped = rearrange(q, "row (group n) d -> row 1 group n d", n=n)
    own = rearrange((grouped * k[:, :, :, None]).sum(-1), "row pos group n -> row (group n) pos")
    own = own.masked_fill((window > dest[:, None])[:, None], -torch.inf)
    pattern = softmax(torch.cat((before, own), -1))
    z = by_row(by_fact(pattern[..., :n_before]) @ values)
    weights = rearrange(pattern[..., n_before:], "row (group n) pos -> row pos group n 1", n=n)
    of_own = (weights * v[:, :, :, None]).sum(1)
    return (z + of_own.flatten(1, 2)).flatten(1)
