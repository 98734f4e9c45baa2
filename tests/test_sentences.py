"""Sentences about anybody are the prompts that facts ask, and texts say so by another route."""

import numpy as np
import pandas as pd
import pytest
import torch
from builders import hand_written_people, sentence

from interp.config import ATTRIBUTES, N_EVALUATION_TEMPLATES, N_TEMPLATES
from interp.data.biographies import lay_out, tokenizer_for
from interp.data.facts import PROMPT_ROLES
from interp.data.sentences import (
    numbers_of,
    rows_of,
    training_sentences,
    write_sentences,
)
from interp.data.tokenizer import encode


@pytest.mark.parametrize("attribute", range(len(ATTRIBUTES)))
def test_a_sentence_is_its_template_with_the_name_in_it_up_to_the_value(attribute):
    people = hand_written_people()
    tokenizer = tokenizer_for(people)
    texts = lay_out(people, tokenizer, seed=0)
    person, template = (x.ravel() for x in np.indices((len(people), N_TEMPLATES)))
    written = write_sentences(texts, person, np.full(len(person), attribute), template)
    for i, (p, t) in enumerate(zip(person, template)):
        whole = sentence(people.iloc[p], ATTRIBUTES[attribute], t)
        value = people[ATTRIBUTES[attribute]][p]
        start, _ = whole.rsplit(value, 1)
        expected = [texts.tokens[texts.start[texts.bos]], *encode(tokenizer, [start])[0]]
        n = int(written.lengths[i])
        assert written.tokens[i].tolist() == expected + [0] * (written.tokens.shape[1] - n)
        assert int(written.answers[i]) == encode(tokenizer, [value])[0][0]


def test_the_prompt_of_a_fact_is_one_of_its_evaluation_sentences_with_the_same_roles(suite, facts):
    person = rows_of(suite.population, facts.texts.person)
    attribute = numbers_of(suite.texts, facts.texts.attribute)
    for i, fact in enumerate(facts):
        which = suite.texts.template_order[person[i], attribute[i], -N_EVALUATION_TEMPLATES:]
        n = len(which)
        asked = write_sentences(
            suite.texts, person[i].repeat(n), attribute[i].repeat(n), which.astype(int)
        )
        (found,) = [
            j
            for j, length in enumerate(asked.lengths)
            if torch.equal(asked.tokens[j, :length], fact.clean)
        ]
        there = [PROMPT_ROLES[role] for role in asked.roles[found, : len(fact.clean)]]
        assert tuple(there) == fact.roles and (asked.roles[found, len(fact.clean) :] == -1).all()
        assert asked.answers[found] == fact.answer[0]


def test_training_sentences_stand_fact_by_fact_and_are_never_evaluation_sentences(suite, facts):
    person = rows_of(suite.population, facts.texts.person)
    attribute = numbers_of(suite.texts, facts.texts.attribute)
    written = training_sentences(suite.texts, person, attribute, 3)
    np.testing.assert_array_equal(written.answers, facts.answers[:, 0].repeat_interleave(3))
    asked = {tuple(fact.clean.tolist()) for fact in facts}
    rows = {tuple(x[:n].tolist()) for x, n in zip(written.tokens, written.lengths)}
    assert len(rows) == 3 * len(facts) and not rows & asked


def test_people_of_no_run_are_refused(suite):
    with pytest.raises(ValueError, match=r"person -1 is not in the run's population.*suite\.facts"):
        rows_of(suite.population, pd.Series([0, -1]))
