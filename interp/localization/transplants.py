"""Which weights carry a change of what a model knows: groups of weights taken from one model into
another (weight transplants).

Between a model before and after fine-tuning: weights of before put into after show where what was
lost comes back (which weights carry the damage); weights of after put into before show which of
them do the damage alone. A group that does neither may still matter together with others.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy

import pandas as pd
import torch

from interp.data.biographies import Biographies
from interp.model.decoder import HookedDecoder
from interp.model.weight_groups import weight_group
from interp.training.evaluation import by_person


@torch.no_grad()
def transplanted(into: HookedDecoder, donor: HookedDecoder, group: str) -> HookedDecoder:
    """A copy of ``into`` with the weights of ``group`` (``model.weight_groups``) from ``donor``.

    Raises:
        ValueError: the models differ in shape, or there is no such group.
    """
    if into.cfg != donor.cfg:
        raise ValueError(
            f"weights of a model of shape {donor.cfg} don't fit into one of {into.cfg}; give two "
            "checkpoints of the same shape"
        )
    masks, theirs = weight_group(into, group), dict(donor.named_parameters())
    mixed = deepcopy(into).eval().requires_grad_(False)
    for name, weight in mixed.named_parameters():
        weight.copy_(torch.where(masks[name], theirs[name], weight))
    return mixed


def transplants(
    before: HookedDecoder,
    after: HookedDecoder,
    groups: Sequence[str],
    sets: Mapping[str, Biographies],
) -> pd.DataFrame:
    """What both models, and every transplant between them, know of some people.

    Returns:
        One row per person of each of ``sets`` and model: ``model`` (before, after; restored: after
        with the group from before; damaged: before with the group from after), ``group`` (empty
        for the whole models), ``set``, ``person``, ``loss`` (nats per value), ``accuracy`` (share
        of the person's values).
    """
    return pd.concat(
        [
            by_person(model, biographies).assign(model=name, group=group, set=of)
            for name, group, model in _mixed(before, after, groups)
            for of, biographies in sets.items()
        ],
        ignore_index=True,
    )


def _mixed(
    before: HookedDecoder, after: HookedDecoder, groups: Sequence[str]
) -> Iterator[tuple[str, str, HookedDecoder]]:
    """Both models and all transplants, of which one is held in memory at a time."""
    yield "before", "", before
    yield "after", "", after
    for group in groups:
        yield "restored", group, transplanted(after, before, group)
        yield "damaged", group, transplanted(before, after, group)


def distances(before: HookedDecoder, after: HookedDecoder, groups: Sequence[str]) -> pd.DataFrame:
    """How far each group of weights moved: ``distance``, the root of the sum of squared changes,
    and ``relative``, that ÷ the norm of the weights before; and their number, ``n_weights``.
    """
    theirs = {name: weight.detach() for name, weight in after.named_parameters()}
    rows = []
    for group in groups:
        masks = weight_group(before, group)
        changed = total = 0.0
        n = sum(int(mask.sum()) for mask in masks.values())
        for name, weight in before.named_parameters():
            kept = weight.detach().double()[masks[name]]
            changed += float((theirs[name].double()[masks[name]] - kept).square().sum())
            total += float(kept.square().sum())
        rows.append((group, changed**0.5, (changed / total) ** 0.5 if total else 0.0, n))
    return pd.DataFrame(rows, columns=["group", "distance", "relative", "n_weights"])
