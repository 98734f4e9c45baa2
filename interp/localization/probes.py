"""Where a name becomes its attributes: what linear probes, the logit lens and heads' OV circuits
read off the residual stream.

A linear probe is fitted on some people and asked for others, so it can only succeed where the model
writes a value in the same way for everybody who has it: before the look-up, a name says nothing
about the values of people the probe has not seen. Both read-outs are correlational, and a linear
probe that fails does not exclude a value that is there in another form.
"""

import numpy as np
import torch
import xarray as xr
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from interp.data.facts import PROMPT_ROLES, FactSet
from interp.localization.inputs import check_inputs
from interp.localization.logit_attribution import final_directions
from interp.model.decoder import HookedDecoder
from interp.model.model_check import check_plain
from interp.model.weights import Weights, widened

STREAM = ("resid_pre", "resid_mid", "resid_post")
"""In parallel blocks, where the MLP does not read what attention wrote, ``resid_mid`` is the stream
before the block plus what attention wrote: all but what the MLP adds.
"""
PLACES = ("name_first", "name_middle", "name_last", "final")
RIDGE = 1.0
"""Penalty of a probe, on features of variance 1."""
FACTS_AT_ONCE = 512


def probe(model: HookedDecoder, facts: FactSet, *, seed: int = 0) -> xr.Dataset:
    """Whether a linear probe fitted on all other people reads each fact's value off the residual
    stream.

    The probe is ridge regression on the first tokens of an attribute's values, one column each;
    the largest prediction is its answer. Each fact is left out in turn, in closed form, so give
    each person once an attribute.

    Returns:
        ``correct`` (labels, layer, site, role, fact): 1 or 0, NaN where a fact lacks the role. With
        ``labels`` "shuffled" the values are dealt to other people at random: what a probe of this
        kind scores on nothing. A mean over facts is an accuracy.

    Raises:
        ValueError: a person twice in an attribute.
    """
    check_plain(model)
    check_inputs(model, facts, names=True, values=True)
    texts = facts.texts
    if texts.duplicated(["person", "attribute"]).any() and (texts.person >= 0).all():
        raise ValueError(
            "a person is asked for the same attribute twice, so that a probe could know the answer "
            "from the other prompt; give each person once an attribute"
        )
    features = _without_repeats(stream(model, facts))
    attribute, answers = texts.attribute.to_numpy(object), facts.answers[:, 0].numpy()
    rng = np.random.default_rng([seed, 8])
    correct = np.full((2, *features.shape[:-1]), np.nan, np.float32)
    for name in dict.fromkeys(attribute):
        at = np.flatnonzero(attribute == name)
        _check_places(features[..., at, :], name)
        labels = np.stack((answers[at], rng.permutation(answers[at])))
        correct[..., at] = _left_out(features[..., at, :], labels)
    correct = correct[:, _places_in_stream(model.cfg.n_layers)]
    coords = {
        "labels": ["real", "shuffled"],
        "site": list(STREAM),
        "role": list(PLACES),
        "attribute": ("fact", attribute),
        "person": ("fact", texts.person.to_numpy()),
    }
    attrs = {"units": "1 = read off rightly", "score": "correlational"}
    return xr.Dataset(
        {"correct": (("labels", "layer", "site", "role", "fact"), correct, attrs)}, coords
    )


@torch.inference_mode()
def stream(model: HookedDecoder, facts: FactSet) -> Float[np.ndarray, "layer site role fact d"]:
    """The residual stream of the clean prompts at the last token of each of ``PLACES``; NaN where a
    prompt has none.
    """
    check_plain(model)
    check_inputs(model, facts, names=True)
    device, pieces = model.embed.weight.device, []
    sites = ("resid_pre", "attn_out", "resid_post") if model.cfg.parallel else STREAM
    names = [f"blocks.{i}.hook_{x}" for i in range(model.cfg.n_layers) for x in sites]
    for part in facts.batches(FACTS_AT_ONCE):
        _, cache = model.run_with_cache(part.clean.to(device), names_filter=names)
        at = last_of_roles(part).to(device)
        row = torch.arange(len(part), device=device)
        here = widened(torch.stack([cache[name][row, at.clamp(min=0)] for name in names]))
        pieces.append(here.masked_fill((at < 0)[..., None], torch.nan).cpu())
    whole = rearrange(
        torch.cat(pieces, 2),
        "(layer site) role fact d -> layer site role fact d",
        site=len(STREAM),
    )
    if model.cfg.parallel:
        whole[:, 1] += whole[:, 0]
    return whole.numpy()


def _without_repeats(
    streams: Float[np.ndarray, "layer site *rest"],
) -> Float[np.ndarray, "point *rest"]:
    """The residual stream at each point once: what leaves a layer enters the next."""
    return np.concatenate((streams[0, :1], np.concatenate(streams[:, 1:])))


def _places_in_stream(n_layers: int) -> Int[np.ndarray, "layer site"]:
    """The point of ``_without_repeats`` at each layer and site."""
    return 2 * np.arange(n_layers)[:, None] + np.arange(len(STREAM))


def _check_places(features: Float[np.ndarray, "*place fact d"], attribute: str) -> None:
    """Raises a ValueError where at no place there are two facts to learn from."""
    have = ~np.isnan(features).any((-1, *range(features.ndim - 3)))
    if (most := int(have.sum(1).max())) < 2:
        raise ValueError(
            f"{most} of {have.shape[1]} facts on {attribute!r} have one of the roles "
            f"{', '.join(PLACES)}; a probe needs two or more that do"
        )


def last_of_roles(facts: FactSet) -> Int[Tensor, "role fact"]:
    """Position of the last token of each of ``PLACES``; −1 where there is none."""
    pos = torch.arange(facts.roles.shape[1])
    indices = [PROMPT_ROLES.index(role) for role in PLACES]
    return torch.stack([torch.where(facts.roles == i, pos, -1).amax(1) for i in indices])


def _left_out(
    features: Float[np.ndarray, "*place fact d"], values: Int[np.ndarray, "labels fact"]
) -> Float[np.ndarray, "labels *place fact"]:
    """1 where a ridge regression fitted without the fact predicts its value; one row per row of
    values. At each place it is fitted on the facts that have it; NaN for those that lack it, and
    where fewer than two have it.

    Left-out predictions in closed form: y_i − (y_i − ŷ_i) ÷ (1 − H_ii), H the hat matrix (Hastie,
    Tibshirani and Friedman 2009, equation 7.52).
    """
    have = ~np.isnan(features).any((-1, *range(features.ndim - 3)))
    correct = np.full((len(values), *features.shape[:-1]), np.nan, np.float32)
    for there in np.unique(have, axis=0):
        if there.sum() >= 2:
            alike = (have == there).all(1)
            of_facts = np.ix_(alike, there)
            found = _predicted(features[..., *of_facts, :], values[:, there])
            correct[..., *of_facts] = found
    return correct


def _predicted(
    features: Float[np.ndarray, "*place fact d"], values: Int[np.ndarray, "labels fact"]
) -> Float[np.ndarray, "labels *place fact"]:
    """``_left_out``, of facts that have every place."""
    correct = np.empty((len(values), *features.shape[:-1]), np.float32)
    x = torch.from_numpy(features).double()
    x = x - x.mean(-2, keepdim=True)
    x = x / x.std(-2, keepdim=True).clamp(min=1e-9)
    x = torch.cat((x, torch.ones_like(x[..., :1])), -1)
    penalty = torch.tensor([RIDGE] * (x.shape[-1] - 1) + [0.0]).double()  # none on the intercept
    half = torch.linalg.solve(x.mT @ x + penalty.diag(), x.mT)
    own = einsum(x, half, "... fact d, ... d fact -> ... fact")[..., None]
    for i, labels in enumerate(values):
        classes, y = np.unique(labels, return_inverse=True)
        right = torch.from_numpy(y)
        sums = half.new_zeros(*half.shape[:-1], len(classes)).index_add_(-1, right, half)
        at = right[:, None].expand(*x.shape[:-1], 1)
        left_out = (x @ sums).scatter_add_(-1, at, -own)  # times 1 − H_ii, the same for all values
        correct[i] = (left_out.argmax(-1) == right).float().numpy()
    return correct


@torch.inference_mode()
def read_off(model: HookedDecoder, facts: FactSet, *, seed: int = 0) -> xr.Dataset:
    """Whether the model's own weights (logit lens, heads' OV circuits) read each fact's value off
    the residual stream.

    Readers: ``unembed``, the final LayerNorm and the unembedding (nostalgebraist's logit lens); and
    each head, ``L1H3``, what it would write of the values if the answer position looked at this
    token alone: its layer's LayerNorm, V, O, and the unembedding under the clean run's final scale.

    Returns:
        ``correct`` (labels, reader, layer, site, role, fact): 1 where the right value's first token
        gets most among those of its attribute in ``facts``, else 0; NaN where a prompt lacks the
        role, and where the head comes before the residual stream. ``labels`` as in ``probe``.
        ``logit`` and ``rank``, the same without ``labels``: of the right value minus the mean over
        values, nats (NaN for heads that a norm follows, because alone they have no scale); and how
        many values get as much or more, 1 = none but itself.
    """
    check_plain(model)
    check_inputs(model, facts, names=True, values=True)
    cfg, weights, device = model.cfg, Weights(model), model.embed.weight.device
    points = torch.from_numpy(_without_repeats(stream(model, facts))).to(device)
    read = final_directions(model, facts)
    attribute = facts.texts.attribute.to_numpy(object)
    candidates, answers = facts.answers[:, 0].to(device).unique(return_inverse=True)
    shuffled, rng = answers.clone(), np.random.default_rng([seed, 8])
    groups = [torch.from_numpy(np.flatnonzero(attribute == x)) for x in dict.fromkeys(attribute)]
    for at in groups:
        shuffled[at] = answers[torch.from_numpy(rng.permutation(at.numpy()))]
    readers = ["unembed", *(f"L{i}H{h}" for i in range(cfg.n_layers) for h in range(cfg.n_heads))]
    tables = np.full((4, len(readers), *points.shape[:-1]), np.nan, np.float32)

    def ask(
        reader: int, x: Float[Tensor, "point role fact d"], directions: Float[Tensor, "value d"]
    ) -> None:
        for at in groups:
            values, right = answers[at].unique(return_inverse=True)
            logits = x[..., at, :] @ directions[values].mT
            there = ~logits.isnan().any(-1)
            scores = _scores(logits, right, torch.searchsorted(values, shuffled[at]))
            for table, of_score in zip(tables, scores):
                table[reader][: len(x), :, at] = of_score.where(there, torch.nan).cpu().numpy()

    ask(0, weights.final_norm(points), weights.unembedding()[candidates])
    for layer in range(cfg.n_layers):
        read_by = weights.attention_input(
            layer, points[: 2 * layer + 1]
        )  # all that comes before it
        n_grouped, inputs = cfg.n_grouped, weights.head_inputs(layer, "v")
        biases = weights.head_input_biases(layer, "v")
        for head, out in enumerate(weights.head_outputs(layer)):
            values = read_by @ inputs[head // n_grouped].mT + biases[head // n_grouped]
            reader = 1 + layer * cfg.n_heads + head
            ask(reader, values * read.scale[:, None], read.unembed[candidates] @ out)
    if cfg.norm_after:  # whose scale is that of what all heads write together
        tables[2, 1:] = np.nan
    tables = tables[:, :, _places_in_stream(cfg.n_layers)]
    correct, (logit, rank) = tables[:2], tables[2:]
    dims = ("reader", "layer", "site", "role", "fact")
    return xr.Dataset(
        {
            "correct": (("labels", *dims), correct, {"units": "1 = read off rightly"}),
            "logit": (dims, logit, {"units": "nats"}),
            "rank": (dims, rank, {"units": "1 = largest"}),
        },
        {
            "labels": ["real", "shuffled"],
            "reader": readers,
            "site": list(STREAM),
            "role": list(PLACES),
            "attribute": ("fact", attribute),
        },
        {"score": "correlational"},
    )


def _scores(
    logits: Float[Tensor, "*cell fact value"],
    right: Int[Tensor, " fact"],
    other: Int[Tensor, " fact"],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Whether the right value ranks first, whether another fact's value does, the right value's
    logit above the mean, and its rank.
    """
    own, best = logits.gather(-1, right[:, None].expand(*logits.shape[:-1], 1)), logits.argmax(-1)
    rank = (logits >= own).sum(-1).float()
    return (best == right).float(), (best == other).float(), own[..., 0] - logits.mean(-1), rank
