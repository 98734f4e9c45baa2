"""Samples facts from a population: which person is asked for which attribute, in which sentence,
and who is the twin.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int

from interp.config import Corruption
from interp.data.biographies import (
    NO_ATTRIBUTE,
    ROLES,
    Texts,
    evaluation_templates,
    write_biographies,
)
from interp.data.facts import NO_TOKEN, PROMPT_ROLES, TEXT_COLUMNS, FactSet, padded
from interp.data.population import NAME_PARTS, full_names
from interp.data.sentences import PROMPT_ROLE_OF, numbers_of
from interp.fields import argument


def sample_facts(
    people: pd.DataFrame,
    texts: Texts,
    *,
    n: int,
    attributes: Sequence[str],
    seed: int,
    corruption: Corruption = "swap",
    n_context: int = 0,
    length: int | None = None,
    fewer: bool = False,
) -> FactSet:
    """``n`` facts on training people, spread evenly over ``attributes``, in evaluation templates.

    Args:
        corruption: whose name the twin holds: another training person's (``swap``) or a
            ``held-out`` person's, with no part of the name in common; or that of a training person
            who differs in the first, middle or last name alone (``swap-first``, ``swap-middle``,
            ``swap-last``). Facts without such a person are passed over.
        n_context: sentences on other attributes of the same person before the one that asks; the
            twin keeps their values.
        length: keep to prompts of exactly so many tokens, so that positions can be compared.
        fewer: return as many as there are, possibly none, where there are fewer than ``n``.

    Raises:
        ValueError: unknown attribute or corruption; too few people fit, or have a twin.
    """
    known = texts.attributes
    for attribute in attributes:
        if attribute not in known:
            raise ValueError(f"no attribute {attribute!r}; there are {', '.join(known)}")
    argument("corruption", corruption, Corruption)
    if not 0 <= n_context < len(known):
        raise ValueError(
            f"n_context is {n_context}; there are at most {len(known) - 1} other sentences"
        )
    rng = np.random.default_rng([seed, 4])
    asked = _ask(people, texts, attributes, n_context, rng)
    if length is not None:
        asked = asked[asked.length == length]
    chosen, twins = _spread(people, texts, asked, n, attributes, corruption, rng)
    if len(chosen) < n and not fewer:
        which = "" if length is None else f" with prompts of {length} tokens"
        raise ValueError(
            f"asked for {n} facts, the run has {len(chosen)} on {', '.join(attributes)}{which} "
            f"with a {corruption} twin, whose value begins with another word; ask for fewer, use "
            "another corruption or a larger population"
        )
    return _build(people, texts, chosen, twins) if len(chosen) else _none()


def _ask(
    people: pd.DataFrame,
    texts: Texts,
    attributes: Sequence[str],
    n_context: int,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Every (training person, attribute) in random order, with templates, sentence order and prompt
    length.
    """
    trained = np.flatnonzero(people.split == "train")
    person, attribute = (
        x.ravel()
        for x in np.meshgrid(trained, numbers_of(texts, pd.Series(attributes)), indexing="ij")
    )
    shuffled = rng.permutation(len(person))
    person, attribute = person[shuffled], attribute[shuffled]
    template = evaluation_templates(texts, person, rng)
    others = rng.permuted(np.broadcast_to(np.arange(template.shape[1]), template.shape), axis=1)
    others = (
        np.stack([row[row != a][:n_context] for row, a in zip(others, attribute)])
        if len(person)
        else others
    )
    order = np.concatenate((others, attribute[:, None]), 1)
    in_order = np.take_along_axis(template, order, 1)
    whole = write_biographies(texts, person, order, in_order).lengths
    end = (
        texts.length[texts.value[person, attribute]]
        + texts.length[texts.after_value[attribute, in_order[:, -1]]]
    )
    return pd.DataFrame(
        {
            "person": person,
            "attribute": attribute,
            "order": list(order),
            "template": list(in_order),
            "length": whole - end,
        }
    )


def _spread(
    people: pd.DataFrame,
    texts: Texts,
    asked: pd.DataFrame,
    n: int,
    attributes: Sequence[str],
    corruption: Corruption,
    rng: np.random.Generator,
) -> tuple[pd.DataFrame, np.ndarray]:
    """The first facts of each attribute that have a twin, attributes in turn, and their twins."""
    if n < 1 or not attributes:
        raise ValueError(
            f"asked for {n} facts on {len(attributes)} attributes; ask for 1 or more of each"
        )
    fitting = _twins(people, texts, corruption)
    queues = [iter(table.index) for _, table in asked.groupby("attribute")]
    chosen: dict[int, int] = {}
    while queues and len(chosen) < n:
        for queue in list(queues):
            for row in queue:
                fits = fitting(int(asked.person[row]), int(asked.attribute[row]))
                if len(fits):
                    chosen[row] = int(rng.choice(fits))
                    break
            else:
                queues.remove(queue)
            if len(chosen) == n:
                break
    twins = pd.Series(chosen)
    table = asked.loc[twins.index].sort_values("attribute", kind="stable")
    return table, twins[table.index].to_numpy()


def _twins(
    people: pd.DataFrame, texts: Texts, corruption: str
) -> Callable[[int, int], Int[np.ndarray, " person"]]:
    """Candidates for the twin of a person who is asked for an attribute."""
    eligible = (people.split == ("held-out" if corruption == "held-out" else "train")).to_numpy()
    parts = [pd.factorize(people[part])[0] for part in NAME_PARTS]
    first_token = texts.tokens[texts.start[texts.value]]
    part_roles = [ROLES.index(f"name_{part}") for part in NAME_PARTS]
    shape = np.stack(
        [np.add.reduceat(texts.roles == role, texts.start)[texts.name] for role in part_roles], 1
    )
    lacking = [(people[part] == "").to_numpy() for part in NAME_PARTS]

    def fitting(person: int, attribute: int) -> Int[np.ndarray, " person"]:
        fits = (
            eligible
            & (first_token[:, attribute] != first_token[person, attribute])
            & (shape == shape[person]).all(1)
        )
        for name, part, lacks in zip(NAME_PARTS, parts, lacking):
            other = part != part[person]
            if corruption in ("swap", "held-out"):
                fits &= other | lacks  # two names that lack a part have none in common
            else:
                fits &= other == (corruption == f"swap-{name}")
        return np.flatnonzero(fits)

    return fitting


def _build(people: pd.DataFrame, texts: Texts, chosen: pd.DataFrame, twins: np.ndarray) -> FactSet:
    person, attribute = chosen.person.to_numpy(), chosen.attribute.to_numpy()
    whole = write_biographies(texts, person, np.stack(chosen.order), np.stack(chosen.template))
    starts = np.cumsum(whole.lengths) - whole.lengths
    name_roles = [ROLES.index(f"name_{part}") for part in NAME_PARTS]
    clean, corrupted, roles = [], [], []
    for i, (start, length) in enumerate(zip(starts, chosen.length)):
        prompt = slice(start, start + length)
        named = np.isin(whole.roles[prompt], name_roles)
        other = whole.tokens[prompt].copy()
        twin = _piece(texts, int(texts.name[twins[i]]))
        other[named] = np.tile(twin, named.sum() // len(twin))
        clean.append(whole.tokens[prompt])
        corrupted.append(other)
        of, prompt_roles = whole.attributes[prompt], PROMPT_ROLE_OF[whole.roles[prompt]]
        other_sentence = (of != attribute[i]) & (of != NO_ATTRIBUTE)
        prompt_roles[other_sentence] = PROMPT_ROLES.index("context")
        prompt_roles[-1] = PROMPT_ROLES.index("final")
        roles.append(prompt_roles)
    return FactSet(
        clean=padded(clean, 0),
        corrupted=padded(corrupted, 0),
        lengths=torch.tensor(chosen.length.to_numpy()),
        roles=padded(roles, NO_TOKEN),
        answers=padded([_value(texts, p, a) for p, a in zip(person, attribute)], NO_TOKEN),
        corrupted_answers=padded([_value(texts, p, a) for p, a in zip(twins, attribute)], NO_TOKEN),
        texts=_table(people, texts, chosen, twins),
    )


def _none() -> FactSet:
    table = torch.zeros(0, 0, dtype=torch.int64)
    return FactSet(
        *(table, table, table.sum(1), table, table, table),
        texts=pd.DataFrame(columns=TEXT_COLUMNS),
    )


def _table(
    people: pd.DataFrame, texts: Texts, chosen: pd.DataFrame, twins: np.ndarray
) -> pd.DataFrame:
    sentences = {name: one.texts for name, one in texts.templates.items()}
    names = full_names(people)
    people = {name: people[name].to_numpy() for name in ("id", *texts.attributes)}
    rows = []
    for person, twin, order, template in zip(chosen.person, twins, chosen.order, chosen.template):
        pairs = [(texts.attributes[a], int(t)) for a, t in zip(order, template)]
        *before, (asked, number) = pairs
        context = [sentences[a][t].replace("{value}", people[a][person]) for a, t in before]
        prompt = " ".join([*context, sentences[asked][number].split("{value}")[0].rstrip()])
        rows.append(
            {
                "person": people["id"][person],
                "corrupted_person": people["id"][twin],
                "attribute": asked,
                "clean_prompt": prompt.replace("{name}", names[person]),
                "corrupted_prompt": prompt.replace("{name}", names[twin]),
                "answer": people[asked][person],
                "corrupted_answer": people[asked][twin],
            }
        )
    return pd.DataFrame(rows)


def _value(texts: Texts, person: np.integer, attribute: np.integer) -> np.ndarray:
    return _piece(texts, int(texts.value[person, attribute]))


def _piece(texts: Texts, piece: int) -> np.ndarray:
    return texts.tokens[texts.start[piece] : texts.start[piece] + texts.length[piece]]
