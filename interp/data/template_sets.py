"""The sentences that biographies are written in, by attribute: the built-in ones, or those of a
user's CSV.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int8

from interp.config import MOST_TEMPLATES, N_EVALUATION_TEMPLATES
from interp.data.csv_table import read_csv_table
from interp.data.population import templates
from interp.data.tokenizer import SPECIAL, split_words

SPLITS = ("train", "evaluation")
MOST_TEMPLATE_WORDS = 60
EVALUATED_SHARE = 5
"""One in so many templates, at least one, is for evaluation where a CSV doesn't say."""
NO_TEMPLATE = -1


@dataclass(frozen=True)
class TemplateSet:
    """Sentences on one attribute, each with ``{name}`` and, after it, ``{value}``."""

    texts: tuple[str, ...]
    n_evaluation: int
    """How many of them are for evaluation, of each person."""
    fixed: bool = False
    """Whether those are the last ones for everybody; else each person has others, at random."""

    @property
    def n_train(self) -> int:
        """How many are for training; a single sentence is for both."""
        return max(1, len(self.texts) - self.n_evaluation)


def built_in_templates() -> dict[str, TemplateSet]:
    """The sentences of synthetic biographies."""
    return {
        attribute: TemplateSet(tuple(texts), N_EVALUATION_TEMPLATES)
        for attribute, texts in templates().items()
    }


def template_order(
    sets: Mapping[str, TemplateSet], n_people: int, rng: np.random.Generator
) -> Int8[np.ndarray, "person attribute slot"]:
    """Numbers of each person's templates in random order: those for training first, those for
    evaluation last, and ``NO_TEMPLATE`` between them where another attribute has more.
    """
    listed = list(sets.values())
    kinds = [(len(one.texts), one.n_evaluation, one.fixed) for one in listed]
    n_slots = max(one.n_train + one.n_evaluation for one in listed)
    order = np.full((n_people, len(listed), n_slots), NO_TEMPLATE, np.int8)
    for kind in dict.fromkeys(kinds):
        columns = [i for i, other in enumerate(kinds) if other == kind]
        one, shape = listed[columns[0]], (n_people, len(columns))
        numbers = np.arange(len(one.texts), dtype=np.int8)
        if one.fixed:
            train, evaluation = (
                _permuted(part, shape, rng) for part in np.split(numbers, [one.n_train])
            )
        else:
            train = evaluation = _permuted(numbers, shape, rng)
        order[:, columns, : one.n_train] = train[..., : one.n_train]
        order[:, columns, -one.n_evaluation :] = evaluation[..., -one.n_evaluation :]
    return order


def _permuted(
    numbers: np.ndarray, shape: tuple[int, int], rng: np.random.Generator
) -> Int8[np.ndarray, "person attribute template"]:
    return rng.permuted(np.broadcast_to(numbers, (*shape, len(numbers))), axis=2)


def read_templates(path: Path, attributes: Sequence[str]) -> dict[str, TemplateSet]:
    """The templates of a CSV with the columns attribute, template and, if wanted, split, for each
    of ``attributes``.

    Raises:
        FileNotFoundError, ValueError: no such file, or it holds something else; the message names
            file and row.
    """
    table = read_csv_table(path, needed=("attribute", "template"), optional=("split",))
    table = table.map(lambda text: " ".join(text.split()))
    for row, attribute in table.attribute.items():
        if attribute not in attributes:
            raise ValueError(
                f"{path}, row {row}: attribute {attribute!r} is no column of the people's CSV; it "
                f"has {', '.join(attributes)}"
            )
    for row, template in table.template.items():
        if wrong := wrong_template(template):
            raise ValueError(f"{path}, row {row}: {wrong}, got {template!r}")
    if (twice := table.duplicated(["attribute", "template"])).any():
        row = twice.idxmax()
        raise ValueError(
            f"{path}, row {row}: template {table.template[row]!r} is there twice for "
            f"{table.attribute[row]}; write it once"
        )
    return {name: _template_set(path, name, table[table.attribute == name]) for name in attributes}


def _template_set(path: Path, attribute: str, rows: pd.DataFrame) -> TemplateSet:
    if rows.empty:
        raise ValueError(f"{path} has no template for the attribute {attribute!r}; add one or more")
    if len(rows) > MOST_TEMPLATES:
        raise ValueError(
            f"{path} has {len(rows)} templates for {attribute}; give at most {MOST_TEMPLATES}"
        )
    if "split" not in rows:
        return TemplateSet(tuple(rows.template), max(1, len(rows) // EVALUATED_SHARE))
    for row, split in rows.split.items():
        if split not in SPLITS:
            raise ValueError(f"{path}, row {row}: split is {split!r}; write {' or '.join(SPLITS)}")
    of_split = {split: rows.template[rows.split == split].tolist() for split in SPLITS}
    for split, texts in of_split.items():
        if not texts:
            raise ValueError(
                f"{path} has no {split} template for the attribute {attribute!r}; add one, or "
                "leave out the column split"
            )
    texts = tuple(text for split in SPLITS for text in of_split[split])
    return TemplateSet(texts, len(of_split["evaluation"]), fixed=True)


def wrong_template(template: str) -> str | None:
    """What is wrong with a template; None if it is one."""
    if any(special in template for special in SPECIAL.values()):
        return f"a template can't hold {', '.join(SPECIAL.values())}"
    marks = re.findall(r"\{[^{}]*\}|[{}]", template)
    if marks != ["{name}", "{value}"]:
        return "a template has {name} once and after it {value} once, and no other braces"
    words = split_words(template.replace("{name}", "Nameword").replace("{value}", "Valueword"))
    if not {"Nameword", "Valueword"} <= set(words):
        return "{name} and {value} must be words of their own"
    if any(any(map(str.isalnum, word)) for word in words[words.index("Valueword") + 1 :]):
        return "{value} must be at the end, before punctuation only"
    if len(words) > MOST_TEMPLATE_WORDS:
        return f"a template has at most {MOST_TEMPLATE_WORDS} words and marks"
    return None


def recorded(sets: Mapping[str, TemplateSet]) -> dict[str, dict]:
    """Template sets as run.json holds them."""
    return {name: asdict(one) | {"texts": list(one.texts)} for name, one in sets.items()}


def from_record(record: object) -> dict[str, TemplateSet]:
    """The template sets of ``recorded``.

    Raises:
        ValueError: it is something else.
    """
    try:
        sets = {
            name: TemplateSet(tuple(one["texts"]), one["n_evaluation"], one["fixed"])
            for name, one in record.items()
        }
        if not sets or record != recorded(sets):
            raise ValueError("they are not as recorded")
        for one in sets.values():
            if not all(isinstance(text, str) and not wrong_template(text) for text in one.texts):
                raise ValueError("one is not a template")
            n, n_evaluation = len(one.texts), int(one.n_evaluation)
            if not 1 <= n_evaluation <= max(1, n - 1) or not 1 <= n <= MOST_TEMPLATES:
                raise ValueError("their numbers don't fit")
            if one.fixed and n < 2:
                raise ValueError("one is for training and evaluation")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"templates can't be read ({error})") from None
    return sets
