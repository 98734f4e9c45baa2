"""Turns any sentence about any person into a prompt: its tokens up to just before the value, and
their roles.

People are rows of the population, attributes indices into ``texts.attributes``, templates numbers.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from interp.data.biographies import NO_PIECE, ROLES, Texts, write_biographies
from interp.data.facts import NO_TOKEN, PROMPT_ROLES, padded

PROMPT_ROLE_OF = np.array([PROMPT_ROLES.index(x if x in PROMPT_ROLES else "cue") for x in ROLES])
"""Index into ``PROMPT_ROLES`` of each of ``ROLES``."""


@dataclass(frozen=True)
class Sentences:
    """One sentence per row; tokens are padded on the right with 0, roles with −1."""

    tokens: Int[Tensor, "sentence pos"]
    lengths: Int[Tensor, " sentence"]
    roles: Int[Tensor, "sentence pos"]
    """Index into ``PROMPT_ROLES``."""
    answers: Int[Tensor, " sentence"]
    """First token of the right value."""


def write_sentences(
    texts: Texts,
    person: Int[np.ndarray, " sentence"],
    attribute: Int[np.ndarray, " sentence"],
    template: Int[np.ndarray, " sentence"],
) -> Sentences:
    """The sentence of each (person, attribute, template)."""
    given = {"person": person, "attribute": attribute, "template": template}
    sizes = len(texts.name), *texts.before_name.shape
    for (name, numbers), size in zip(given.items(), sizes):
        for wrong in numbers[(numbers < 0) | (numbers >= size)]:
            raise ValueError(f"{name} {wrong} is not one of the {size}; give 0 to {size - 1}")
    if not len(person) == len(attribute) == len(template) > 0:
        counts = ", ".join(f"{len(x)} {name}s" for name, x in given.items())
        raise ValueError(f"got {counts}; give one of each a sentence, for one sentence or more")
    if (missing := texts.before_name[attribute, template] == NO_PIECE).any():
        a, t = attribute[missing][0], template[missing][0]
        raise ValueError(f"{texts.attributes[a]} has no template {t}; it has fewer than others")
    whole = write_biographies(texts, person, attribute[:, None], template[:, None])
    value, after = texts.value[person, attribute], texts.after_value[attribute, template]
    lengths = whole.lengths - texts.length[value] - texts.length[after]
    starts = np.cumsum(whole.lengths) - whole.lengths
    rows = [slice(start, start + n) for start, n in zip(starts, lengths)]
    roles = padded([PROMPT_ROLE_OF[whole.roles[row]] for row in rows], NO_TOKEN)
    roles[torch.arange(len(rows)), torch.from_numpy(lengths) - 1] = PROMPT_ROLES.index("final")
    return Sentences(
        tokens=padded([whole.tokens[row] for row in rows], 0),
        lengths=torch.from_numpy(lengths),
        roles=roles,
        answers=torch.from_numpy(texts.tokens[texts.start[value]]),
    )


def training_sentences(
    texts: Texts, person: Int[np.ndarray, " fact"], attribute: Int[np.ndarray, " fact"], n: int
) -> Sentences:
    """``n`` sentences per fact, one fact after the other, in templates that the person was trained
    on.
    """
    most = int(texts.n_train.min())
    if not 1 <= n <= most:
        raise ValueError(f"asked for {n} training sentences a fact; there are at most {most}")
    template = texts.template_order[person, attribute, :n].ravel()
    return write_sentences(texts, person.repeat(n), attribute.repeat(n), template)


def rows_of(population: pd.DataFrame, ids: pd.Series) -> Int[np.ndarray, " fact"]:
    """The population row of each person's id.

    Raises:
        ValueError: no person has that id, as in facts from a CSV.
    """
    rows = pd.Index(population.id).get_indexer(ids)
    if (rows < 0).any():
        raise ValueError(
            f"person {ids.iloc[rows.argmin()]} is not in the run's population, so there are no "
            "other sentences about them; take facts from suite.facts()"
        )
    return rows


def numbers_of(texts: Texts, attributes: pd.Series) -> Int[np.ndarray, " fact"]:
    """Index into ``texts.attributes`` of each name."""
    numbers = pd.Index(texts.attributes).get_indexer(attributes)
    if (numbers < 0).any():
        raise ValueError(
            f"no attribute {attributes.iloc[numbers.argmin()]!r}; there are "
            f"{', '.join(texts.attributes)}"
        )
    return numbers
