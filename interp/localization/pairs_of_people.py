"""Pairs of prompts that ask where a confident falsehood comes from: the same sentence about an
unknown person, of whom the model says something wrong with confidence, and about a known one.

Patched with them, what is recovered is the false answer (Meng et al. 2022 recover the right one).
Pairs of two known people, one of them the same as in the falsehood's pair, show what recall does
in the same sentence, and a second set of such pairs how alike two maps of recall are.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int

from interp.data.biographies import ROLES, Texts
from interp.data.facts import FactSet
from interp.data.population import NAME_PARTS
from interp.localization.answer_confidence import answer_confidence
from interp.localization.prompts_about import (
    first_value_tokens,
    known_and_unknown,
    prompts_about,
    value_tokens,
)
from interp.model.decoder import HookedDecoder
from interp.suite import Suite

PAIRS = ("falsehood", "recall", "recall again")


def falsehood_pairs(
    model: HookedDecoder, suite: Suite, *, n: int, least: float = 0.5, seed: int = 0
) -> dict[str, FactSet]:
    """About ``n`` facts, spread over attributes, of each of ``PAIRS``; fact i of all of them is the
    same sentence with the same known person in its corrupted prompt.

    falsehood: the clean prompt is about an unknown person, whose likeliest first token is a value
    of the attribute, is wrong and has a probability of ``least`` or more; the answer is that token,
    so that ``logit_diff`` is logit(said of the unknown person) − logit(the known person's value).
    recall: the clean prompt is about a second known person, recall again: about a third. The model
    is right of all known people. The two people of a pair have no part of the name in common, and
    no value of the attribute that begins alike.

    Returns:
        Possibly fewer facts, or none.
    """
    asked = known_and_unknown(suite, seed=seed)
    asked = asked[~asked.known].drop(columns="known")
    said = _answers(model, suite, asked)
    false = said.said_value & ~said.correct & (said.max_probability >= least)
    asked = asked[false.to_numpy()].assign(said=said.said[false.to_numpy()].to_numpy())
    asked = asked.sample(frac=1, random_state=seed)
    rng = np.random.default_rng([seed, 23])
    drawn = pd.DataFrame(_with_known_people(suite, asked, rng))
    if drawn.empty:
        return {}
    for role in ("twin", "second", "third"):
        given = drawn[["attribute", "template"]].assign(person=drawn[role])
        drawn = drawn[_answers(model, suite, given).correct.to_numpy()]
        if drawn.empty:
            return {}
    drawn = drawn.groupby("attribute").head(max(1, n // len(suite.texts.attributes)))
    drawn = drawn.sort_values("attribute", kind="stable").reset_index(drop=True)
    sets = {
        name: _first_tokens(prompts_about(suite, drawn.assign(person=drawn[column])))
        for name, column in zip(PAIRS, ("person", "second", "third"))
    }
    words = [suite.tokenizer.id_to_token(int(token)) for token in drawn.said]
    false = sets["falsehood"]
    answers = torch.tensor(drawn.said.to_list())[:, None]
    return sets | {
        "falsehood": replace(false, answers=answers, texts=false.texts.assign(answer=words))
    }


def with_other_answers(facts: FactSet, *, seed: int = 0) -> FactSet:
    """The same prompts with another fact's pair of answers each, none of them its own: of the same
    attribute where there is one. A patch that moves these as far says nothing about the fact.
    """
    pairs = torch.cat((facts.answers[:, :1], facts.corrupted_answers[:, :1]), 1).numpy()
    apart = ~(pairs[:, None, :, None] == pairs[None, :, None, :]).any((2, 3))
    attribute = facts.texts.attribute.to_numpy(object)
    alike = apart & (attribute[:, None] == attribute)
    for i in np.flatnonzero(~apart.any(1)):
        raise ValueError(f"all other facts share a value with fact {i}; give more facts")
    fits = np.where(alike.any(1)[:, None], alike, apart)
    drawn = np.random.default_rng([seed, 24]).random(fits.shape)
    others = np.where(fits, drawn, -1).argmax(1)
    chosen = torch.from_numpy(pairs[others])
    return replace(facts, answers=chosen[:, :1], corrupted_answers=chosen[:, 1:])


def _answers(model: HookedDecoder, suite: Suite, asked: pd.DataFrame) -> pd.DataFrame:
    return answer_confidence(model, prompts_about(suite, asked), value_tokens(suite))


def _first_tokens(facts: FactSet) -> FactSet:
    return replace(
        facts, answers=facts.answers[:, :1], corrupted_answers=facts.corrupted_answers[:, :1]
    )


def _with_known_people(
    suite: Suite, asked: pd.DataFrame, rng: np.random.Generator
) -> Iterator[dict[str, int]]:
    """Rows of ``asked`` with three known people drawn at random, for whom there are such."""
    first, alike = first_value_tokens(suite.texts), _can_be_twins(suite)
    trained = (suite.population.split == "train").to_numpy()
    for row in asked.itertuples(index=False):
        values = first[:, row.attribute]
        fits = (values != row.said) & (values != values[row.person])
        twins = np.flatnonzero(trained & alike[row.person] & fits)
        if not len(twins):
            continue
        twin = int(rng.choice(twins))
        others = np.flatnonzero(trained & alike[twin] & (values != values[twin]))
        if len(others) < 2:
            continue
        second, third = rng.choice(others, 2, replace=False).tolist()
        yield row._asdict() | {"twin": twin, "second": second, "third": third}


def _can_be_twins(suite: Suite) -> Bool[np.ndarray, "person other"]:
    """Whether two names have as many tokens in every part, and no part in common."""
    shape = _tokens_of_parts(suite.texts)
    alike = (shape[:, None] == shape).all(-1)
    for part in NAME_PARTS:
        name = suite.population[part].to_numpy()
        alike &= (name[:, None] != name) | (name == "")
    return alike


def _tokens_of_parts(texts: Texts) -> Int[np.ndarray, "person part"]:
    roles = [ROLES.index(f"name_{part}") for part in NAME_PARTS]
    counts = [np.add.reduceat(texts.roles == role, texts.start)[texts.name] for role in roles]
    return np.stack(counts, 1)
