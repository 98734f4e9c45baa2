"""What a model predicts where a value begins, for each person and attribute of biographies."""

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch.nn import functional as F

from interp.data.biographies import ROLES, Biographies, Texts
from interp.model.decoder import HookedDecoder
from interp.training.packing import select_rows, to_ragged

ROWS_AT_ONCE = 256
NO_CHOICE = -1


@dataclass(frozen=True)
class FirstTokens:
    """First tokens of the values that known people have, and how frequent each is among them.

    Values with the same first token, such as universities that begin with University, are one
    answer here; of a birth date the first token is the day.
    """

    token: Int[np.ndarray, "attribute choice"]
    """Token ids in increasing order; ``NO_CHOICE`` where an attribute has fewer."""
    prior: Float[np.ndarray, "attribute choice"]
    """Share of known people, 0 where there is no choice."""
    of_person: Int[np.ndarray, "person attribute"]
    """The choice that is each known person's value."""


def first_tokens(texts: Texts, n_known: int) -> FirstTokens:
    """First tokens of the values of the first ``n_known`` people."""
    first = texts.tokens[texts.start[texts.value[:n_known]]]
    found = [np.unique(column, return_inverse=True, return_counts=True) for column in first.T]
    n_choices = max(len(tokens) for tokens, _, _ in found)
    token = np.full((len(found), n_choices), NO_CHOICE)
    prior = np.zeros(token.shape)
    for i, (tokens, _, counts) in enumerate(found):
        token[i, : len(tokens)], prior[i, : len(tokens)] = tokens, counts / n_known
    return FirstTokens(token, prior, np.stack([of for _, of, _ in found], 1))


@torch.inference_mode()
def value_predictions(
    model: HookedDecoder, biographies: Biographies, choices: FirstTokens
) -> xr.Dataset:
    """What the model predicts of the values in biographies, with p its distribution over the
    vocabulary at the position before a value token.

    Returns:
        (person, attribute) ``loss``: sum of −ln p(token) over the value's tokens, nats;
        ``accuracy``: 1 if every token is the argmax, else 0; ``max_probability`` and ``entropy``
        (nats): means over the value's tokens; ``confidence``: max p at the value's first token, and
        ``right``: 1 if that token is the right one, else 0.
        (person, attribute, choice) ``p``: probability of each first token in ``choices`` at the
        value's first token, divided by their sum; 0 where there is no choice.
    """
    n = len(biographies.lengths)
    parts = [
        _some_predictions(model, select_rows(biographies, i, min(i + ROWS_AT_ONCE, n)), choices)
        for i in range(0, n, ROWS_AT_ONCE)
    ]
    return xr.concat(parts, "person").assign_coords(attribute=list(biographies.attribute_names))


def _some_predictions(
    model: HookedDecoder, biographies: Biographies, choices: FirstTokens
) -> xr.Dataset:
    device = model.embed.weight.device
    tokens, ragged = to_ragged(biographies, model.cfg, device)
    is_value = biographies.roles == ROLES.index("value")
    at = np.flatnonzero(is_value)
    begins = ~is_value[at - 1]
    hidden = model.hidden(tokens, ragged)
    log_p = model.unembed(hidden[torch.from_numpy(at - 1).to(device)]).log_softmax(-1)
    target = torch.from_numpy(biographies.tokens[at]).to(device)
    p, largest = log_p.exp(), log_p.max(-1)
    by_token = {
        "loss": F.nll_loss(log_p, target, reduction="none"),
        "wrong": (largest.indices != target).float(),
        "max_probability": largest.values.exp(),
        "entropy": -(p * log_p).sum(-1),
    }
    by_token = {name: x.double().cpu().numpy() for name, x in by_token.items()}
    shape = len(biographies.lengths), len(biographies.attribute_names)
    row = np.repeat(np.arange(shape[0]), biographies.lengths)[at]
    cell = row * shape[1] + biographies.attributes[at]
    n_tokens = np.bincount(cell, minlength=shape[0] * shape[1])
    sums = {name: np.bincount(cell, x, len(n_tokens)) for name, x in by_token.items()}
    first = cell[begins].argsort()  # every person has every attribute once
    values = {
        "loss": sums["loss"],
        "accuracy": (sums["wrong"] == 0).astype(float),
        "max_probability": sums["max_probability"] / n_tokens,
        "entropy": sums["entropy"] / n_tokens,
        "confidence": by_token["max_probability"][begins][first],
        "right": 1 - by_token["wrong"][begins][first],
    }
    dims = ("person", "attribute")
    found = {name: (dims, x.reshape(shape)) for name, x in values.items()}
    p = p[torch.from_numpy(np.flatnonzero(begins)[first]).to(device)].double().cpu().numpy()
    return xr.Dataset(found | {"p": ((*dims, "choice"), _among(p.reshape(*shape, -1), choices))})


def _among(
    p: Float[np.ndarray, "person attribute d_vocab"], choices: FirstTokens
) -> Float[np.ndarray, "person attribute choice"]:
    picked = np.take_along_axis(p, np.maximum(choices.token, 0)[None], axis=2)
    picked = np.where(choices.token == NO_CHOICE, 0, picked)
    return picked / picked.sum(-1, keepdims=True)
