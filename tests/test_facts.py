import numpy as np
import pandas as pd
import pytest
import torch

from interp.config import ATTRIBUTES
from interp.data.facts import PROMPT_ROLES, TEXT_COLUMNS, role_masks
from interp.data.population import NAME_PARTS, templates
from interp.data.sample_facts import sample_facts


def full_name(person):
    return f"{person['first']} {person['middle']} {person['last']}"


def test_a_prompt_is_an_evaluation_sentence_up_to_its_value(suite, facts):
    people = suite.population.set_index("id")
    for fact in facts:
        attribute, person = fact.text["attribute"], people.loc[fact.text["person"]]
        prompts = []
        for number, template in enumerate(templates()[attribute]):
            before = template.split("{value}")[0].format(name=full_name(person)).strip()
            ids = suite.tokenizer.encode(before).ids
            if ids == fact.clean.tolist():
                prompts.append(number)
        order = suite.texts.template_order[fact.text["person"], ATTRIBUTES.index(attribute)]
        assert prompts and set(prompts) <= set(order[-5:])
        value = suite.tokenizer.encode(person[attribute], add_special_tokens=False).ids
        assert fact.answer.tolist() == value and fact.text["answer"] == person[attribute]


def test_a_twin_differs_in_every_name_token_and_nowhere_else(suite, facts):
    people = suite.population.set_index("id")
    for fact in facts:
        named = np.array([role.startswith("name") for role in fact.roles])
        assert ((fact.clean != fact.corrupted).numpy() == named).all()
        twin = people.loc[fact.text["corrupted_person"]]
        words = [suite.tokenizer.id_to_token(i) for i in fact.corrupted.numpy()[named]]
        assert " ".join(words) == full_name(twin)
        assert fact.text["corrupted_answer"] == twin[fact.text["attribute"]]
        assert fact.answer[0] != fact.corrupted_answer[0]


def test_roles_are_in_the_order_of_the_sentence(facts):
    for fact in facts:
        assert fact.roles[0] == "bos" and fact.roles[-1] == "final"
        first = fact.roles.index("name_first")
        assert fact.roles[first : first + 3] == ("name_first", "name_middle", "name_last")
        assert set(fact.roles[1:first] + fact.roles[first + 3 : -1]) <= {"cue"}


def test_masks_say_which_positions_have_a_role(facts):
    masks = role_masks(facts)
    assert (masks.sum(0).sum(1) == facts.lengths).all()
    finals = masks[PROMPT_ROLES.index("final")]
    assert (finals.nonzero()[:, 1] == facts.lengths - 1).all()


def test_facts_are_spread_evenly_and_never_repeated(suite):
    facts = suite.facts(100, seed=1)
    counts = facts.texts.attribute.value_counts()
    assert set(counts) == {16, 17} and not facts.texts.duplicated(["person", "attribute"]).any()
    trained = suite.population.query("split == 'train'").id
    assert (
        facts.texts.person.isin(trained).all() and facts.texts.corrupted_person.isin(trained).all()
    )


def test_the_seed_decides_the_facts(suite):
    one, same, other = (suite.facts(30, seed=seed).texts for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(one, same)
    assert not one.equals(other)


@pytest.mark.parametrize("part", ["first", "middle", "last"])
def test_a_twin_of_one_name_part_shares_the_two_others(suite, part):
    facts, people = suite.facts(6, corruption=f"swap-{part}"), suite.population
    for fact in facts:
        person, twin = (people.loc[fact.text[k]] for k in ("person", "corrupted_person"))
        assert twin.split == "train"
        assert [p for p in NAME_PARTS if person[p] != twin[p]] == [part]
        changed = {fact.roles[i] for i in torch.nonzero(fact.clean != fact.corrupted)[:, 0]}
        assert changed == {f"name_{part}"}
        assert fact.answer[0] != fact.corrupted_answer[0]


def test_facts_without_a_twin_are_passed_over(suite):
    with pytest.raises(ValueError, match=r"the run has \d+ on .* with a swap-last twin"):
        suite.facts(240, corruption="swap-last")
    people = suite.facts(30, corruption="swap-last").texts.person
    assert len(people) == 30


@pytest.mark.parametrize("length", [None, 500])
def test_fewer_facts_may_be_none(suite, length):
    alone = suite.population.assign(first=range(len(suite.population)))  # nobody shares a name
    asked = {"n": 6, "attributes": ATTRIBUTES, "seed": 0, "length": length}
    drawn = sample_facts(alone, suite.texts, **asked, corruption="swap-last", fewer=True)
    assert len(drawn) == 0 and list(drawn.texts) == list(TEXT_COLUMNS)


def test_held_out_twins_were_never_trained_on(suite):
    twins = suite.facts(20, corruption="held-out").texts.corrupted_person
    assert twins.isin(suite.population.query("split == 'held-out'").id).all()


def test_context_sentences_keep_their_values_and_change_their_names(suite):
    fact = suite.facts(6, n_context=2, seed=0)[0]
    assert fact.roles.count("context") > 10 and fact.roles[-1] == "final"
    assert fact.text["clean_prompt"].count(". ") == 2
    people = suite.population.set_index("id")
    name, twin = (full_name(people.loc[fact.text[k]]) for k in ("person", "corrupted_person"))
    assert fact.text["clean_prompt"].replace(name, twin) == fact.text["corrupted_prompt"]
    assert fact.text["clean_prompt"].count(name) == 3


def test_a_length_keeps_prompts_of_that_length_only(suite):
    assert set(suite.facts(5, length=11).lengths.tolist()) == {11}


def test_indexing_gives_a_fact_or_fewer_facts(facts):
    chosen = facts[[3, 0]]
    assert len(chosen) == 2 and len(list(chosen)) == 2
    assert chosen[1].clean.tolist() == facts[0].clean.tolist()
    assert chosen[0].text == facts[3].text
    assert len(facts[2:5]) == 3
    assert facts[-1].text == facts[len(facts) - 1].text


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"n": 0}, "asked for 0 facts"),
        ({"n": 241}, "asked for 241 facts, the run has 240"),
        ({"n": 3, "attribute": "shoe_size"}, "no attribute 'shoe_size'; there are birth_date"),
        ({"n": 3, "length": 99}, "the run has 0 .* with prompts of 99 tokens"),
        ({"n": 3, "n_context": 6}, "n_context is 6"),
    ],
)
def test_facts_that_cannot_be_drawn_are_refused_with_the_reason(suite, request_, message):
    with pytest.raises(ValueError, match=message):
        suite.facts(**request_)


def write_csv(path, **changes):
    row = {
        "clean_prompt": "James John Smith was born in the city of",
        "corrupted_prompt": "Mary Robert Jones was born in the city of",
        "name": "James John Smith",
        "answer": "Shanghai",
        "corrupted_answer": "Mumbai",
    } | changes
    pd.DataFrame([row]).dropna(axis=1).to_csv(path, index=False)
    return path


@pytest.fixture
def words(suite):
    """A name and values that the run's vocabulary has."""
    people = suite.population
    one, two = people.iloc[0], people.iloc[1]
    return {
        "clean_prompt": f"{full_name(one)} was born in the city of",
        "corrupted_prompt": f"{full_name(two)} was born in the city of",
        "name": full_name(one),
        "answer": one.birth_place,
        "corrupted_answer": two.birth_place,
    }


def test_facts_can_be_read_from_ones_own_prompts(suite, words, tmp_path):
    facts = suite.read_facts(write_csv(tmp_path / "mine.csv", **words))
    roles = ("bos", "name_first", "name_middle", "name_last", "cue", "cue", "cue", "cue", "cue")
    assert facts[0].roles == (*roles, "final")
    assert facts[0].clean.tolist() == suite.tokenizer.encode(words["clean_prompt"]).ids


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": None}, "has no column subject but"),
        (
            {"corrupted_prompt": "was born in"},
            r"row 1: <bos>\|.* has 10 tokens, its twin <bos>\|was\|born\|in 4; they must be",
        ),
        (
            {"clean_prompt": "Zaphod was born in the city of", "name": "Zaphod"},
            r"row 1: 'Zaphod was .* holds 'Zaphod', not in the vocabulary",
        ),
        ({"corrupted_answer": " "}, "row 1: counterfactual_answer is empty; write"),
        ({"answer": "<pad>"}, "row 1: '.* <pad>' holds <pad>, which is no word"),
        ({"clean_prompt": "<bos> {subject} was born in"}, "'<bos> .* was .* holds <bos>, which is"),
        ({"name": "born city"}, "'born city' does not stand in the prompt"),
    ],
)
def test_a_csv_that_cannot_be_used_is_refused_by_row(suite, words, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        suite.read_facts(write_csv(tmp_path / "mine.csv", **(words | changes)))


def test_answers_that_begin_alike_are_refused(suite, words, tmp_path):
    same = words | {"corrupted_answer": words["answer"]}
    with pytest.raises(ValueError, match=r"row 1: the answers .* begin with the same token"):
        suite.read_facts(write_csv(tmp_path / "mine.csv", **same))


@pytest.mark.parametrize(("mark", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_fields_that_no_comma_separates_are_refused_by_what_does(
    suite, words, tmp_path, mark, name
):
    path = write_csv(tmp_path / "mine.csv", **words)
    path.write_text(path.read_text().replace(",", mark))
    with pytest.raises(ValueError, match=f"has its fields separated by {name}; save it with comm"):
        suite.read_facts(path)


def test_rows_of_empty_fields_are_left_out_and_counted(suite, words, tmp_path):
    path = write_csv(tmp_path / "mine.csv", **words)
    header, row = path.read_text().splitlines()
    path.write_text("\n".join([header, ",,,,", row, " , ,", row.replace(words["answer"], "")]))
    with pytest.raises(ValueError, match=r"row 4: answer is empty"):
        suite.read_facts(path)
    path.write_text("\n".join([header, ",,,,", row, " , ,"]))
    assert len(suite.read_facts(path)) == 1


def test_a_row_whose_prompts_are_the_same_is_refused(suite, words, tmp_path):
    same = words | {"corrupted_prompt": words["clean_prompt"]}
    with pytest.raises(ValueError, match="row 1: the two prompts are the same"):
        suite.read_facts(write_csv(tmp_path / "mine.csv", **same))


def test_a_name_that_stands_twice_is_refused(suite, words, tmp_path):
    name, other = words["name"], " ".join(words["corrupted_prompt"].split()[:3])
    twice = {"clean_prompt": f"{name} and {words['clean_prompt']}"}
    twice["corrupted_prompt"] = f"{other} and {words['corrupted_prompt']}"
    with pytest.raises(ValueError, match=r"row 1: .* stands 2 times in the prompt"):
        suite.read_facts(write_csv(tmp_path / "mine.csv", **(words | twice)))


def test_a_prompt_that_is_longer_than_the_model_takes_is_refused(suite, words, tmp_path):
    more = " ".join(["was"] * 520)
    long = {key: f"{words[key]} {more}" for key in ("clean_prompt", "corrupted_prompt")}
    with pytest.raises(ValueError, match=r"fact 0 has .* tokens with its value, the model takes"):
        suite.read_facts(write_csv(tmp_path / "mine.csv", **(words | long)))
