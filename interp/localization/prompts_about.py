"""Prompts about any people of a run, held-out ones too, with or without twins.

``suite.facts`` asks about training people only. Here the people, attributes and templates are
given, so that known and unknown people can be asked in the same way.
"""

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int

from interp.data.batches import people_of
from interp.data.biographies import Texts, evaluation_templates
from interp.data.facts import NO_TOKEN, FactSet, padded
from interp.data.population import full_names
from interp.data.sentences import write_sentences
from interp.suite import Suite

MOST_PEOPLE = 256
"""Of each kind, known and unknown."""


def prompts_about(suite: Suite, asked: pd.DataFrame) -> FactSet:
    """One prompt per row of ``asked``, up to just before the value; the answers are the person's
    own values.

    Args:
        asked: ``person``, a row of the population; ``attribute``, an index into
            ``texts.attributes``; ``template``, its number. With a column ``twin``, another row of
            the population, the corrupted prompt is the same sentence about the twin, the corrupted
            answer the twin's value.

    Raises:
        ValueError: a twin's name has another number of tokens, or its value begins alike.
    """
    texts = suite.texts
    attribute, template = asked.attribute.to_numpy(), asked.template.to_numpy()
    person = asked.person.to_numpy()
    twin = asked.twin.to_numpy() if "twin" in asked else None
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
        texts=_in_words(suite.population, texts, asked),
        vocabulary=suite.vocabulary,
    )


def known_and_unknown(suite: Suite, *, most: int = MOST_PEOPLE, seed: int = 0) -> pd.DataFrame:
    """One row per (person, attribute), in an evaluation template, of as many known people as
    unknown (held-out) ones, at most ``most`` of each, evenly spaced: person, attribute, template
    and ``known``, to be given to ``prompts_about``.
    """
    groups = [people_of(suite.config, split) for split in ("train", "held-out")]
    n = min(most, *(size for _, size in groups))
    people = np.concatenate([first + np.arange(n) * size // n for first, size in groups])
    template = evaluation_templates(suite.texts, people, np.random.default_rng([seed, 22]))
    n_attributes = template.shape[1]
    return pd.DataFrame(
        {
            "person": people.repeat(n_attributes),
            "attribute": np.tile(np.arange(n_attributes), len(people)),
            "template": template.ravel(),
            "known": np.repeat([True, False], n * n_attributes),
        }
    )


def value_tokens(suite: Suite) -> dict[str, Int[np.ndarray, " value"]]:
    """By attribute, the first tokens of training people's values."""
    first = first_value_tokens(suite.texts)[(suite.population.split == "train").to_numpy()]
    return {name: np.unique(first[:, i]) for i, name in enumerate(suite.texts.attributes)}


def first_value_tokens(texts: Texts) -> Int[np.ndarray, "person attribute"]:
    """The first token of everybody's value of each attribute."""
    return texts.tokens[texts.start[texts.value]]


def _values(texts: Texts, person: np.ndarray, attribute: np.ndarray) -> torch.Tensor:
    piece = texts.value[person, attribute]
    start, length = texts.start[piece], texts.length[piece]
    return padded([texts.tokens[at : at + n] for at, n in zip(start, length)], NO_TOKEN)


def _in_words(people: pd.DataFrame, texts: Texts, asked: pd.DataFrame) -> pd.DataFrame:
    """The texts of ``prompts_about``."""
    names, attributes = full_names(people), texts.attributes
    values = people[list(attributes)].to_numpy(object)
    parts = [
        texts.templates[attributes[a]].texts[t].split("{value}")[0].rstrip()
        for a, t in zip(asked.attribute, asked.template)
    ]
    columns = {"attribute": np.array(attributes, object)[asked.attribute]}
    for column, prefix in (("person", ""), ("twin", "corrupted_")):
        prompt = f"{prefix or 'clean_'}prompt"
        if column not in asked:
            columns |= {f"{prefix}person": -1, f"{prefix}answer": "", prompt: ""}
            continue
        rows = asked[column].to_numpy()
        columns[f"{prefix}person"] = people.id.to_numpy()[rows]
        columns[f"{prefix}answer"] = values[rows, asked.attribute]
        columns[prompt] = [part.replace("{name}", names[p]) for part, p in zip(parts, rows)]
    return pd.DataFrame(columns)
