import re
from collections import Counter
from dataclasses import replace
from math import log

import numpy as np
import pandas as pd
import pytest

from interp.config import ATTRIBUTES, PoolSizes
from interp.data.population import (
    NAME_PARTS,
    check_population,
    draw_population,
    no_knowledge_baseline,
    pools,
    templates,
)

SMALL = PoolSizes(
    n_first_names=2, n_middle_names=5, n_last_names=10, n_cities=2, n_universities=3, n_majors=4,
    n_companies=5, n_birth_years=2,
)  # fmt: skip


def full_names(people: pd.DataFrame) -> list[str]:
    return [" ".join(parts) for parts in people[list(NAME_PARTS)].values]


def test_every_full_name_is_unique_even_when_the_pools_are_used_up():
    people = draw_population(70, 30, SMALL, seed=0)
    assert len(set(full_names(people))) == 100


def test_training_people_come_first_and_share_no_full_name_with_held_out_people():
    people = draw_population(60, 40, SMALL, seed=0)
    assert people.id.tolist() == list(range(100))
    assert people.split.tolist() == ["train"] * 60 + ["held-out"] * 40
    trained, held_out = (set(full_names(people[people.split == s])) for s in ("train", "held-out"))
    assert not trained & held_out


def test_names_and_values_come_from_the_pools_and_use_all_of_them():
    people, values = draw_population(70, 30, SMALL, seed=0), pools(SMALL)
    for column in (*NAME_PARTS, "birth_place", "university", "major", "company", "location"):
        assert set(people[column]) == set(values[column])
    assert set(people.birth_date) < set(values["birth_date"])


def test_pools_have_the_sizes_asked_for_and_hold_nothing_twice():
    sizes = {name: len(set(values)) for name, values in pools(SMALL).items()}
    assert sizes == {
        "first": 2, "middle": 5, "last": 10, "birth_date": 31 * 12 * 2, "birth_place": 2,
        "university": 3, "major": 4, "company": 5, "location": 2,
    }  # fmt: skip


def test_the_papers_pools_can_be_had():
    sizes = {name: len(set(values)) for name, values in pools(PoolSizes()).items()}
    assert sizes == {
        "first": 900, "middle": 900, "last": 1000, "birth_date": 74_400, "birth_place": 800,
        "university": 200, "major": 100, "company": 500, "location": 800,
    }  # fmt: skip


def test_birth_place_and_location_share_a_pool_and_are_independent():
    assert pools(SMALL)["birth_place"] == pools(SMALL)["location"]
    people = draw_population(4000, 1, replace(SMALL, n_first_names=900), seed=0)
    assert (people.birth_place == people.location).mean() == pytest.approx(0.5, abs=0.04)
    assert people.birth_place.value_counts(normalize=True).tolist() == pytest.approx(
        [0.5, 0.5], abs=0.04
    )


def test_a_seed_gives_the_same_population_and_another_seed_another():
    people = draw_population(40, 10, SMALL, seed=3)
    pd.testing.assert_frame_equal(people, draw_population(40, 10, SMALL, seed=3))
    other = draw_population(40, 10, SMALL, seed=4)
    assert full_names(people) != full_names(other)
    assert all((people[a] != other[a]).any() for a in ATTRIBUTES)


def test_more_people_than_full_names_are_refused_with_the_numbers():
    message = "101 people need as many full names, 2 first × 5 middle × 10 last names make 100"
    with pytest.raises(ValueError, match=message):
        draw_population(91, 10, SMALL, seed=0)


@pytest.mark.parametrize(
    "option, there_are",
    [("n_first_names", 900), ("n_last_names", 1000), ("n_universities", 200), ("n_majors", 100)],
)
def test_a_pool_larger_than_its_list_is_refused_with_the_numbers(option, there_are):
    message = f"{option} is {there_are + 1}, but there are only {there_are}"
    with pytest.raises(ValueError, match=message):
        pools(replace(PoolSizes(), **{option: there_are + 1}))


@pytest.mark.parametrize("option", ["n_middle_names", "n_cities", "n_companies", "n_majors"])
def test_a_pool_of_one_has_nothing_to_recall_and_is_refused(option):
    with pytest.raises(ValueError, match=f"{option} is 1; it must be at least 2"):
        replace(SMALL, **{option: 1})


def test_one_birth_year_will_do_as_days_and_months_differ():
    assert len(pools(replace(SMALL, n_birth_years=1))["birth_date"]) == 31 * 12


@pytest.mark.parametrize("n_people, n_held_out", [(1, 5), (5, 0)])
def test_a_population_too_small_to_compare_people_is_refused(n_people, n_held_out):
    with pytest.raises(ValueError, match=f"got {n_people} and {n_held_out}"):
        draw_population(n_people, n_held_out, SMALL, seed=0)


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_an_attribute_has_25_templates_with_the_name_then_a_word_then_the_value_last(attribute):
    texts = templates()[attribute]
    assert len(set(texts)) == len(texts) == 25
    for text in texts:
        assert re.fullmatch(r"[^{}]*\{name\}[^{}]*\w[^{}]* \{value\}\.", text), text


def test_no_name_is_also_a_word_of_a_template_or_a_value():
    values = pools(PoolSizes())
    names = set().union(*(values[part] for part in NAME_PARTS))
    texts = [text for listed in templates().values() for text in listed]
    texts += [text for attribute in ATTRIBUTES for text in values[attribute]]
    assert not names & {word for text in texts for word in re.findall(r"\w+", text)}
    assert not set(values["first"]) & set(values["last"])


def test_no_knowledge_baseline_is_the_entropy_of_training_peoples_values():
    people = pd.DataFrame({
        "split": ["train", "train", "train", "train", "held-out"],
        "birth_date": ["1 May 1900", "1 May 1901", "2 May 1900", "3 June 1900", "9 July 1999"],
        "birth_place": ["Rome", "Rome", "Oslo", "Oslo", "Bonn"],
        "university": ["MIT", "Yale", "ETH", "Duke", "MIT"],
        "major": ["Law", "Law", "Law", "Art", "Art"],
        "company": ["3M", "3M", "3M", "3M", "Shell"],
        "location": ["Rome", "Oslo", "Rome", "Bonn", "Bonn"],
    })  # fmt: skip
    assert no_knowledge_baseline(people) == pytest.approx(
        {
            "birth_date": 1.0397208 + 0.5623351 + 0.5623351, "birth_place": 0.6931472,
            "university": 1.3862944, "major": 0.5623351, "company": 0.0, "location": 1.0397208,
        },
        abs=1e-6,
    )  # fmt: skip


def test_no_knowledge_baseline_of_a_large_population_is_the_papers_log_of_the_pool_sizes():
    baseline = no_knowledge_baseline(draw_population(64_000, 1, PoolSizes(), seed=0))
    logs = {
        "birth_date": log(31 * 12 * 200), "birth_place": log(800), "university": log(200),
        "major": log(100), "company": log(500), "location": log(800),
    }  # fmt: skip
    assert baseline == pytest.approx(logs, abs=0.01)
    assert np.mean(list(baseline.values())) == pytest.approx(6.784, abs=0.005)


def test_values_are_drawn_uniformly():
    majors = Counter(draw_population(8000, 1, replace(SMALL, n_first_names=900), seed=0).major)
    assert [majors[value] / 8000 for value in pools(SMALL)["major"]] == pytest.approx(
        [0.25] * 4, abs=0.03
    )


FEW = draw_population(4, 2, SMALL, seed=0).assign(sampling_weight=[0.25] * 4 + [0.0] * 2)


def put(column, row, value):
    """Asks for one cell to be replaced."""
    return lambda people: people.assign(
        **{column: [value if i == row else x for i, x in enumerate(people[column])]}
    )


def named_alike(people):
    """The fourth person gets the name of the first, in other parts."""
    first = {part: people[part].tolist() for part in NAME_PARTS}
    first["first"][3], first["middle"][3] = f"{first['first'][0]} {first['middle'][0]}", "May"
    first["middle"][0], first["last"][3] = f"{first['middle'][0]} May", first["last"][0]
    return people.assign(**first)


def test_a_population_as_it_is_drawn_is_one(tmp_path):
    check_population(FEW, tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda people: people.drop(columns="major"), "it has no column 'major'"),
        (lambda people: people.drop(columns="sampling_weight"), "no column 'sampling_weight'"),
        (lambda people: people.assign(pet="cat"), "it has the unknown column 'pet'"),
        (put("id", 2, 1), "id 1 is there twice"),
        (put("id", 2, 1.5), "ids are float64, not whole numbers"),
        (put("split", 5, "test"), "split is 'test'; there are train and held-out"),
        (put("first", 2, None), "first in row 3 is (None|nan), not a text"),
        (put("last", 0, 7), "last in row 1 is 7, not a text"),
        (put("company", 1, ""), "company in row 2 is '', not a text"),
        (named_alike, "two people are called"),
        (put("sampling_weight", 1, float("nan")), "the sampling weight in row 2 is nan"),
        (put("sampling_weight", 1, float("inf")), "the sampling weight in row 2 is inf"),
        (put("sampling_weight", 0, -0.25), "the sampling weight in row 1 is -0.25"),
        (
            lambda people: people.assign(sampling_weight="x"),
            "sampling weights are str, not numbers",
        ),
        (
            lambda people: people.assign(sampling_weight=0),
            "no person has a",
        ),
    ],
)
def test_a_table_that_is_not_a_population_is_refused_in_a_line(tmp_path, damage, message):
    path = tmp_path / "population.parquet"
    with pytest.raises(ValueError, match=f"^{path} is not a population \\(.*{message}"):
        check_population(damage(FEW), path)
