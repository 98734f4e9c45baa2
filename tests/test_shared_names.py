"""People constructed to share parts of their names with known ones."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from interp.config import ATTRIBUTES, PRESETS
from interp.data.population import NAME_PARTS, draw_population
from interp.data.shared_names import nearest_known, people_sharing_names, shared_parts

KEPT = [*((part,) for part in NAME_PARTS), *combinations(NAME_PARTS, 2)]


def naive_shared(one, other):
    return sum(one[part] == other[part] for part in NAME_PARTS)


@pytest.fixture(scope="module")
def people():
    """Eight known people and a held-out one; ids are not the places in the table."""
    names = [
        ("Ann", "Bea", "Cox"), ("Ann", "Bea", "Dow"), ("Eve", "Fay", "Cox"), ("Gil", "Hal", "Ito"),
        ("Jim", "Kit", "Low"), ("Mia", "Ned", "Orr"), ("Pat", "Roy", "Sax"), ("Tom", "Una", "Vos"),
        ("Gil", "Kit", "Orr"),
    ]  # fmt: skip
    table = pd.DataFrame(names, columns=list(NAME_PARTS))
    for attribute in ATTRIBUTES:
        table[attribute] = [f"{attribute} {i}" for i in range(len(names))]
    return table.assign(id=np.arange(len(names)) + 10, split=["train"] * 8 + ["held-out"])


@pytest.fixture(scope="module")
def population():
    """Names so dense that three in four recombinations share two parts with somebody."""
    pools = replace(PRESETS["tiny"], n_first_names=12, n_middle_names=12, n_last_names=12)
    return draw_population(90, 30, pools, seed=4)


@pytest.mark.parametrize("kept", KEPT)
def test_a_constructed_name_shares_the_parts_it_is_to_share_and_two_parts_with_nobody_else(
    population, kept
):
    known = population[population.split == "train"]
    made = people_sharing_names(population, kept=kept, n=12, seed=0)
    assert 0 < len(made) <= 12 and made.neighbour.is_unique
    for _, new in made.iterrows():
        counts = {row.id: naive_shared(new, row) for _, row in known.iterrows()}
        neighbour = known[known.id == new.neighbour].iloc[0]
        assert [part for part in NAME_PARTS if new[part] == neighbour[part]] == [
            part for part in NAME_PARTS if part in kept
        ]
        others = [count for person, count in counts.items() if person != new.neighbour]
        assert counts[new.neighbour] == len(kept) and max(others) <= 1
    names = [tuple(row) for row in pd.concat([population, made])[list(NAME_PARTS)].to_numpy()]
    assert len(set(names)) == len(names)
    assert all(made[part].isin(known[part]).all() for part in NAME_PARTS)
    assert all(made[a].isin(known[a]).all() for a in ATTRIBUTES)
    assert not made.id.isin(population.id).any()


def test_two_people_of_the_same_two_names_are_no_ones_only_neighbour(people):
    made = people_sharing_names(people, kept=("first", "middle"), n=50, seed=3)
    assert not made.neighbour.isin([10, 11]).any()  # both are Ann Bea
    assert len(made) == 6  # one a known person of the others


def test_no_name_is_made_twice_where_there_are_few(people):
    """Of the names that share nothing but Ann with anybody there are far fewer than draws."""
    few = people[people["first"].isin(["Ann", "Eve", "Gil"])]
    for seed in range(20):
        made = people_sharing_names(few, kept=("first",), n=4, seed=seed)
        assert not made.duplicated(list(NAME_PARTS)).any()


def test_draws_depend_on_the_seed_and_leave_the_callers_stream_alone(people):
    np.random.seed(5)
    state = np.random.get_state()[1].copy()
    one, again, other = (
        people_sharing_names(people, kept=("last",), n=5, seed=seed) for seed in (1, 1, 2)
    )
    pd.testing.assert_frame_equal(one, again)
    assert not one.equals(other)
    assert (np.random.get_state()[1] == state).all()


def test_the_nearest_known_person_is_named_only_if_there_is_one(people):
    names = pd.DataFrame(
        [("Ann", "Bea", "Ito"), ("Eve", "Fay", "Low"), ("Jim", "Una", "Cox"), ("X", "Y", "Z"),
         ("Gil", "Kit", "Orr")],
        columns=list(NAME_PARTS),
        index=[7, 8, 9, 1, 2],
    )  # fmt: skip
    found = nearest_known(names, people)
    assert found.index.tolist() == [7, 8, 9, 1, 2]
    assert found.shared.tolist() == [2, 2, 1, 0, 1]
    assert found.n_nearest.tolist() == [2, 1, 4, 8, 3]  # the held-out Gil Kit Orr is nobody's
    assert found.nearest.tolist() == [-1, 12, -1, -1, -1]


def test_shared_parts_are_those_of_a_naive_loop(population):
    known, held_out = (population[population.split == x] for x in ("train", "held-out"))
    naive = [[naive_shared(a, b) for _, b in known.iterrows()] for _, a in held_out.iterrows()]
    assert (shared_parts(held_out, known) == np.array(naive)).all()


def test_what_cannot_be_made_is_refused(people):
    for kept in ((), NAME_PARTS, ("first", "first"), ("surname",)):
        with pytest.raises(ValueError, match="give one or two of first, middle, last"):
            people_sharing_names(people, kept=kept, n=1, seed=0)
    with pytest.raises(ValueError, match="n is 0; ask for 1 or more people"):
        people_sharing_names(people, kept=("last",), n=0, seed=0)
    alike = people.assign(middle="Bea", last="Cox")[:2]
    with pytest.raises(ValueError, match="no name shares just middle and last with one of 2"):
        people_sharing_names(alike, kept=("middle", "last"), n=1, seed=0)
