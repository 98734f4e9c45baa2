import numpy as np
import pytest
from builders import hand_written_people, sentence, tokens_by_row, words

from interp.config import ATTRIBUTES
from interp.data.biographies import (
    evaluation_templates,
    lay_out,
    tokenizer_for,
    training_templates,
    write_biographies,
)
from interp.data.population import NAME_PARTS, templates
from interp.data.tokenizer import build_tokenizer

PEOPLE = hand_written_people()
TOKENIZER = tokenizer_for(PEOPLE)


@pytest.fixture(scope="module")
def texts():
    return lay_out(PEOPLE, TOKENIZER, seed=0)


@pytest.fixture(scope="module")
def written(texts):
    """Biographies that use every template of every attribute, and what they are made from."""
    rng = np.random.default_rng(0)
    people = np.arange(100) % len(PEOPLE)
    order = rng.permuted(np.tile(np.arange(6), (100, 1)), axis=1)
    template = (np.arange(100)[:, None] // len(PEOPLE) + order) % 25
    return write_biographies(texts, people, order, template), people, order, template


def test_a_biography_holds_the_tokens_of_its_text(written):
    biographies, people, order, template = written
    for row, table in enumerate(tokens_by_row(biographies)):
        sentences = [
            sentence(PEOPLE.loc[people[row]], ATTRIBUTES[a], t)
            for a, t in zip(order[row], template[row])
        ]
        assert table.token.tolist() == TOKENIZER.encode(" ".join(sentences)).ids
    assert len(biographies.tokens) == biographies.lengths.sum()
    assert biographies.people.tolist() == people.tolist()


def naive_roles(person, attribute, template):
    text = templates()[attribute][template]
    before, after = text.removesuffix("{value}.").split("{name}")

    def cue(part):
        return ["cue" if word.isalnum() else "punctuation" for word in words(part)]

    name = [f"name_{part}" for part in NAME_PARTS for _ in words(person[part])]
    value = ["value"] * len(words(person[attribute]))
    return [*cue(before), *name, *cue(after), *value, "punctuation"]


def test_every_token_knows_its_role_and_the_attribute_of_its_sentence(written):
    biographies, people, order, template = written
    for row, table in enumerate(tokens_by_row(biographies)):
        roles, attributes = ["bos"], [""]
        for a, t in zip(order[row], template[row]):
            of_sentence = naive_roles(PEOPLE.loc[people[row]], ATTRIBUTES[a], t)
            roles += of_sentence
            attributes += [ATTRIBUTES[a]] * len(of_sentence)
        assert table.role.tolist() == roles
        assert table.attribute.tolist() == attributes


def test_a_role_can_be_spelled_out(texts):
    one = write_biographies(texts, np.array([1]), np.array([[3]]), np.array([[2]]))
    (table,) = tokens_by_row(one)
    spelled = [f"{TOKENIZER.id_to_token(row.token)}:{row.role}" for row in table.itertuples()]
    assert templates()["major"][2] == "The major of {name} in college was {value}."
    assert " ".join(spelled) == (
        "<bos>:bos The:cue major:cue of:cue Otto:name_first Van:name_middle Dyke:name_middle "
        "O:name_last ':name_last Brien:name_last in:cue college:cue was:cue "
        "Media:value (:value Arts:value ):value .:punctuation"
    )


def drawn(pick, *options):
    """Templates each (person, attribute) gets in 600 draws: a set a pair."""
    found = pick(np.repeat(np.arange(len(PEOPLE)), 600), *options, np.random.default_rng(0))
    by_person = found.reshape(len(PEOPLE), 600, len(ATTRIBUTES))
    return {
        (person, attribute): set(by_person[person, :, i].tolist())
        for person in range(len(PEOPLE))
        for i, attribute in enumerate(ATTRIBUTES)
    }


def test_20_templates_are_trained_on_and_the_other_5_evaluated(texts):
    trained = drawn(lambda *a: training_templates(texts, *a), 20)
    evaluated = drawn(lambda *a: evaluation_templates(texts, *a))
    for pair in trained:
        assert (len(trained[pair]), len(evaluated[pair])) == (20, 5)
        assert trained[pair] | evaluated[pair] == set(range(25))


def test_fewer_training_templates_are_some_of_the_20(texts):
    few = drawn(lambda *a: training_templates(texts, *a), 3)
    all_of_them = drawn(lambda *a: training_templates(texts, *a), 20)
    assert all(len(few[pair]) == 3 and few[pair] < all_of_them[pair] for pair in few)


def test_which_templates_are_evaluated_is_drawn_for_each_person_and_attribute(texts):
    evaluated = drawn(lambda *a: evaluation_templates(texts, *a))
    assert len(set(map(frozenset, evaluated.values()))) == len(evaluated)


def test_the_seed_decides_which_templates_are_evaluated(texts):
    again, other = (lay_out(PEOPLE, TOKENIZER, seed=seed) for seed in (0, 1))
    assert (again.template_order == texts.template_order).all()
    assert (other.template_order != texts.template_order).any(2).all()


def test_people_whose_words_the_tokenizer_lacks_are_refused():
    with pytest.raises(ValueError, match="not in the vocabulary"):
        lay_out(PEOPLE, build_tokenizer(["In Rome, Ann works."]), seed=0)
