"""Prompts about any people of a run, held-out ones too, with or without twins.

``suite.facts`` asks about training people only. Here the people, attributes and templates are
given, so that known and unknown people can be asked in the same way.
"""

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int

from interp.config import ATTRIBUTES
from interp.data.biographies import Texts
from interp.data.facts import NO_TOKEN, FactSet, padded
from interp.data.population import NAME_PARTS, templates
from interp.data.sentences import write_sentences
from interp.suite import Suite


def prompts_about(
    suite: Suite,
    person: Int[np.ndarray, " fact"],
    attribute: Int[np.ndarray, " fact"],
    template: Int[np.ndarray, " fact"],
    *,
    twin: Int[np.ndarray, " fact"] | None = None,
) -> FactSet:
    """One prompt per row, up to just before the value; the answers are the person's own values.

    Args:
        person, twin: rows of the population. With a twin the corrupted prompt is the same sentence
            about that person, and the corrupted answer that person's value.
        attribute: indices into ``ATTRIBUTES``.
        template: numbers of templates.

    Raises:
        ValueError: a twin's name has another number of tokens, or its value begins alike.
    """
    texts = suite.texts
    clean = write_sentences(texts, person, attribute, template)
    corrupted = None if twin is None else write_sentences(texts, twin, attribute, template)
    if corrupted is not None and not torch.equal(clean.roles, corrupted.roles):
        raise ValueError("a twin's name has another number of tokens; choose one of the same shape")
    return FactSet(
        clean=clean.tokens,
        corrupted=None if corrupted is None else corrupted.tokens,
        lengths=clean.lengths,
        roles=clean.roles,
        answers=_values(texts, person, attribute),
        corrupted_answers=None if twin is None else _values(texts, twin, attribute),
        texts=_in_words(suite.population, person, attribute, template, twin),
        vocabulary=suite.vocabulary,
    )


def first_value_tokens(texts: Texts) -> Int[np.ndarray, "person attribute"]:
    """The first token of everybody's value of each attribute."""
    return texts.tokens[texts.start[texts.value]]


def _values(texts: Texts, person: np.ndarray, attribute: np.ndarray) -> torch.Tensor:
    piece = texts.value[person, attribute]
    start, length = texts.start[piece], texts.length[piece]
    return padded([texts.tokens[at : at + n] for at, n in zip(start, length)], NO_TOKEN)


def _in_words(
    people: pd.DataFrame,
    person: np.ndarray,
    attribute: np.ndarray,
    template: np.ndarray,
    twin: np.ndarray | None,
) -> pd.DataFrame:
    names = people[list(NAME_PARTS)].agg(" ".join, axis=1).to_numpy()
    values, sentences = people[list(ATTRIBUTES)].to_numpy(object), templates()
    parts = [
        sentences[ATTRIBUTES[a]][t].split("{value}")[0].rstrip()
        for a, t in zip(attribute, template)
    ]
    columns = {"attribute": np.array(ATTRIBUTES, object)[attribute]}
    for of, prompt, id_, answer in (
        (person, "clean_prompt", "person", "answer"),
        (twin, "corrupted_prompt", "corrupted_person", "corrupted_answer"),
    ):
        there = of is not None
        columns[id_] = people.id.to_numpy()[of] if there else -1
        columns[answer] = values[of, attribute] if there else ""
        columns[prompt] = (
            [part.replace("{name}", names[p]) for part, p in zip(parts, of)] if there else ""
        )
    return pd.DataFrame(columns)
