"""People, or other entities with names, from a user's CSV instead of the synthetic pools.

people.csv has a row per person: the column ``name`` (or first_name, middle_name, last_name), one
column per attribute, and, if wanted, ``split`` and ``sampling_weight``. The first word of a name is
its first name, the last word its last name and the words between its middle name; a single word is
a last name.
"""

import hashlib
import warnings
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd

from interp.config import (
    LARGEST_WEIGHT,
    SMALLEST_WEIGHT,
    PoolSizes,
    TrainConfig,
    is_attribute_name,
)
from interp.data.csv_table import csv_header, read_csv_table
from interp.data.population import NAME_PARTS, SPLITS, full_names
from interp.data.template_sets import TemplateSet, read_templates, recorded
from interp.data.tokenizer import SPECIAL, split_words

NAME_COLUMNS = ("first_name", "middle_name", "last_name")
OPTIONAL = ("split", "sampling_weight")
MOST_WORDS = 16
"""Of a name or a value."""
MOST_ATTRIBUTES = 100
HELD_OUT_EVERY = 10
"""Without a column split, each tenth row is held out, or the last of fewer rows."""


def with_own_people(
    config: TrainConfig, people_csv: str | Path, templates: str | Path
) -> TrainConfig:
    """The configuration of a run that is trained on the people, attributes and templates of two
    CSVs; sizes of the synthetic pools have their defaults again.

    Raises:
        FileNotFoundError, ValueError: a file is missing, or holds something else.
    """
    people = read_people(Path(people_csv))
    attributes = attributes_of(people)
    sets = read_templates(Path(templates), attributes)
    counts = people.split.value_counts()
    return replace(
        config,
        **{field.name: field.default for field in fields(PoolSizes)},
        people_csv=str(people_csv),
        templates=str(templates),
        attributes=attributes,
        n_people=int(counts["train"]),
        n_held_out=int(counts["held-out"]),
        n_train_templates=max(one.n_train for one in sets.values()),
    )


def own_people(config: TrainConfig) -> tuple[pd.DataFrame, dict[str, TemplateSet], dict]:
    """The people and templates that the CSVs of a configuration hold, and what run.json says of
    them: the digest of each file, and the templates.

    Raises:
        FileNotFoundError, ValueError: a file is missing, or the configuration says something else.
    """
    path = Path(config.people_csv)
    people = read_people(path)
    attributes = attributes_of(people)
    sets = read_templates(Path(config.templates), attributes)
    counts = people.split.value_counts()
    for name, n, what in (
        ("n_people", counts["train"], "training people"),
        ("n_held_out", counts["held-out"], "held-out people"),
    ):
        if getattr(config, name) != n:
            raise ValueError(
                f"{name} is {getattr(config, name)}, and {path} has {n} {what}; leave {name} out, "
                "or change the column split"
            )
    if other := [name for name in config.attributes if name not in attributes]:
        raise ValueError(
            f"attributes has {other[0]!r}, {path} has {', '.join(attributes)}; name some of these"
        )
    most = max(one.n_train for one in sets.values())
    if config.n_train_templates > most:
        raise ValueError(
            f"n_train_templates is {config.n_train_templates}, {config.templates} has at most "
            f"{most} for training; ask for fewer"
        )
    files = {"people_csv": path, "templates": Path(config.templates)}
    own = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}
    return people, sets, own | {"templates_used": recorded(sets)}


def attributes_of(people: pd.DataFrame) -> tuple[str, ...]:
    """The attributes of ``read_people``, in the order of columns."""
    return tuple(x for x in people if x not in ("id", "split", *NAME_PARTS, "weight"))


def read_people(path: Path) -> pd.DataFrame:
    """A population table, one row per person, training people first: id, split, first, middle,
    last, the attributes in the order of columns, and ``weight`` where sampling weights are given.

    Raises:
        FileNotFoundError, ValueError: no such file, or it holds something else; the message names
            file and row.
    """
    header = [x for x in csv_header(path) if x]
    named = NAME_COLUMNS if "last_name" in header else ("name",)
    attributes = [x for x in dict.fromkeys(header) if x not in (*named, *OPTIONAL)]
    _check_attributes(path, attributes, header)
    optional = (*OPTIONAL, *attributes, *named[1:2])
    needed = tuple(x for x in named if x != "middle_name")
    table = read_csv_table(path, needed=needed, optional=optional)
    table = table.map(lambda text: " ".join(text.split()))
    if not attributes:
        raise ValueError(f"{path} has no attribute; write a column for each beside {named[0]}")
    _check_texts(path, table, [*needed, *attributes])
    people = _name_parts(table)
    _check_names(path, people)
    people.insert(0, "split", _splits(path, table))
    people[attributes] = table[attributes]
    if "sampling_weight" in table:
        people["weight"] = _weights(path, table.sampling_weight)
    _check_values(path, people, attributes)
    people = people.sort_values("split", key=lambda x: x == "held-out", kind="stable")
    people.insert(0, "id", np.arange(len(people)))
    return people.reset_index(drop=True)


def _check_attributes(path: Path, attributes: list[str], header: list[str]) -> None:
    for name in attributes if len(header) > 1 else ():  # one column alone: other separators
        if not is_attribute_name(name):
            raise ValueError(
                f"{path} has a column {name!r}; an attribute's name has letters, digits and _, at "
                "most 40, begins with no digit, and is not a word that results use, such as all"
            )
    if len(attributes) > MOST_ATTRIBUTES:
        raise ValueError(f"{path} has {len(attributes)} attributes; at most {MOST_ATTRIBUTES}")


def _check_texts(path: Path, table: pd.DataFrame, columns: list[str]) -> None:
    for column in (*columns, *(x for x in ("middle_name",) if x in table)):
        for row, text in table[column].items():
            if not text and column != "middle_name":
                raise ValueError(f"{path}, row {row}: {column} is empty; give one, or drop the row")
            if any(special in text for special in SPECIAL.values()):
                raise ValueError(
                    f"{path}, row {row}: {column} {text!r} holds one of "
                    f"{', '.join(SPECIAL.values())}, special tokens; write something else"
                )
            if (n := len(split_words(text))) > MOST_WORDS:
                raise ValueError(
                    f"{path}, row {row}: {column} has {n} words and marks; at most {MOST_WORDS}"
                )


def _name_parts(table: pd.DataFrame) -> pd.DataFrame:
    if "name" not in table:
        middle = table.get("middle_name", "")
        return pd.DataFrame(
            {"first": table.first_name, "middle": middle, "last": table.last_name}, table.index
        )
    words = table.name.str.split(" ")
    return pd.DataFrame(
        {
            "first": [x[0] if len(x) > 1 else "" for x in words],
            "middle": [" ".join(x[1:-1]) for x in words],
            "last": [x[-1] for x in words],
        },
        table.index,
    )


def _check_names(path: Path, people: pd.DataFrame) -> None:
    names = pd.Series(full_names(people), people.index)
    if (twice := names.duplicated()).any():
        row = twice.idxmax()
        raise ValueError(
            f"{path}, row {row}: {names[row]} is there already, in row "
            f"{names.eq(names[row]).idxmax()}; give each person another name"
        )


def _splits(path: Path, table: pd.DataFrame) -> pd.Series:
    if "split" in table:
        for row, split in table.split.items():
            if split not in SPLITS:
                raise ValueError(
                    f"{path}, row {row}: split is {split!r}; write {' or '.join(SPLITS)}"
                )
        splits = table.split
    else:
        place = np.arange(1, len(table) + 1)
        held_out = (
            place % HELD_OUT_EVERY == 0 if len(table) >= HELD_OUT_EVERY else place == place[-1]
        )
        splits = pd.Series(np.where(held_out, "held-out", "train"), table.index)
    for split, least in zip(SPLITS, (2, 1)):
        if (n := int((splits == split).sum())) < least:
            raise ValueError(
                f"{path} has {n} {split} people; it needs at least 2 to train on and 1 held out"
            )
    return splits


def _weights(path: Path, column: pd.Series) -> pd.Series:
    weights = pd.to_numeric(column, errors="coerce")
    if (wrong := ~weights.between(SMALLEST_WEIGHT, LARGEST_WEIGHT)).any():
        row = wrong.idxmax()
        raise ValueError(
            f"{path}, row {row}: sampling_weight is {column[row]!r}; write a number from "
            f"{SMALLEST_WEIGHT:g} to {LARGEST_WEIGHT:g} (a person never to be sampled is held-out)"
        )
    return weights.astype(float)


def _check_values(path: Path, people: pd.DataFrame, attributes: list[str]) -> None:
    for name in attributes:
        if (trained := people[name][people.split == "train"]).nunique() < 2:
            raise ValueError(
                f"{path}: every training person has the {name} {trained.iloc[0]!r}; with one value "
                "there is nothing to recall, leave the column out"
            )
        spelled = people[name].drop_duplicates()
        if (twice := spelled.str.casefold().duplicated(keep=False)).any():
            alike = spelled[twice].sort_values(key=lambda x: x.str.casefold()).tolist()
            warnings.warn(
                f"{path}: {name} has {alike[0]!r} and {alike[1]!r}, which count as two values",
                stacklevel=2,
            )
