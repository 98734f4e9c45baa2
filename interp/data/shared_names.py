"""People whom a model was never told of, by what their names share with those of known people.

With small pools of names each part is borne by many known people, so what a constructed name shares
with *all* of them is controlled, not only what it shares with the one it is made from. Every part
is one that some known person bears, so that no part is new to the model.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from jaxtyping import Int

from interp.config import ATTRIBUTES
from interp.data.population import NAME_PARTS

_PAIRS = tuple(combinations(NAME_PARTS, 2))
_TRIES = 500
"""Recombinations tried for one known person before the next is taken."""


def people_sharing_names(
    people: pd.DataFrame,
    *,
    kept: tuple[str, ...],
    n: int,
    seed: int,
    attributes: Sequence[str] = ATTRIBUTES,
) -> pd.DataFrame:
    """At most ``n`` new people who each share the parts ``kept``, one or two of ``NAME_PARTS``, and
    no other, with one known person: their neighbour.

    Controlled: no known person but the neighbour shares two parts. So with two parts kept the
    neighbour is the only nearest person; with one, at most one part is shared with anybody, and
    with the neighbour no more than with everybody else who bears it. Not controlled: how many
    people share a single part. No full name is one of ``people``, known or held out, or there
    twice, and each neighbour has one new person, so that there can be fewer than ``n``.

    Each attribute value is that of a known person drawn at random, for each attribute anew: a model
    that knows how frequent values are, and nothing else, has the no-knowledge baseline as its
    expected loss.

    Args:
        people: a population, with the columns id, split, ``NAME_PARTS`` and ``attributes``; those
            of the split train are known.

    Returns:
        The columns of ``people`` that say who is who: id (above those of ``people``), split
        (constructed), ``NAME_PARTS``, ``attributes``; and neighbour, an id.

    Raises:
        ValueError: ``kept`` is not one or two parts, n below 1, a name of one's own lacks a part,
            or there is no such name.
    """
    if not 1 <= len(set(kept) & set(NAME_PARTS)) == len(kept) <= 2:
        raise ValueError(f"kept is {kept!r}; give one or two of {', '.join(NAME_PARTS)}")
    if n < 1:
        raise ValueError(f"n is {n}; ask for 1 or more people")
    if lacking := [part for part in NAME_PARTS if (people[part] == "").any()]:
        raise ValueError(
            f"some people have no {lacking[0]} name, so names can't be recombined by their parts; "
            "this needs names of three words or more"
        )
    rng = np.random.default_rng([seed, 14, *map(NAME_PARTS.index, kept)])
    known = people[people.split == "train"]
    bearers = {pair: Counter(zip(*(known[part].tolist() for part in pair))) for pair in _PAIRS}
    taken = set(zip(*(people[part].tolist() for part in NAME_PARTS)))
    names = {part: known[part].to_numpy(object) for part in NAME_PARTS}
    values = {part: np.unique(names[part]) for part in NAME_PARTS}
    found, neighbours = [], []
    for row in rng.permutation(len(known)):
        own = {part: names[part][row] for part in NAME_PARTS}
        name = _recombined(own, kept, values, bearers, taken, rng)
        if name is not None:
            taken.add(name)
            found.append(name)
            neighbours.append(known.id.iloc[row])
        if len(found) == n:
            break
    if not found:
        raise ValueError(
            f"no name shares just {' and '.join(kept)} with one of {len(known)} known people and "
            "two parts with none beside; enlarge the pools of names"
        )
    table = pd.DataFrame(found, columns=list(NAME_PARTS))
    for attribute in attributes:
        table[attribute] = known[attribute].to_numpy(object)[
            rng.integers(len(known), size=len(found))
        ]
    ids = people.id.max() + 1 + np.arange(len(found))
    return table.assign(id=ids, split="constructed", neighbour=neighbours)


def _recombined(
    own: dict[str, str],
    kept: tuple[str, ...],
    values: dict[str, np.ndarray],
    bearers: dict[tuple, Counter],
    taken: set[tuple],
    rng: np.random.Generator,
) -> tuple | None:
    """A new name with the parts ``kept`` of ``own`` and others from ``values``; None if none of
    those tried will do.
    """
    changed = [part for part in NAME_PARTS if part not in kept]
    for choice in zip(*(rng.choice(values[part], _TRIES) for part in changed)):
        new = own | dict(zip(changed, choice))
        name = tuple(new[part] for part in NAME_PARTS)
        # Of two parts: the neighbour alone, or nobody. A name that keeps more of the neighbour's
        # parts than it is to is either taken or shares two.
        sharers = sum(bearers[pair][tuple(new[part] for part in pair)] for pair in _PAIRS)
        if name not in taken and sharers == (len(kept) == 2):
            return name
    return None


def shared_parts(names: pd.DataFrame, known: pd.DataFrame) -> Int[np.ndarray, "name known"]:
    """How many parts, 0 to 3, each name has in common with that of each known person; both tables
    have the columns ``NAME_PARTS``.
    """
    count = np.zeros((len(names), len(known)), int)
    for part in NAME_PARTS:
        count += names[part].to_numpy()[:, None] == known[part].to_numpy()
    return count


def nearest_known(names: pd.DataFrame, people: pd.DataFrame) -> pd.DataFrame:
    """One row per name: ``shared``, the largest number of parts it has in common with any known
    person; ``n_nearest``, with how many people it shares that many; ``nearest``, the id of that
    person if there is one only, else −1.
    """
    known = people[people.split == "train"]
    shared = shared_parts(names, known)
    largest = shared.max(1)
    n_nearest = (shared == largest[:, None]).sum(1)
    nearest = np.where(n_nearest == 1, known.id.to_numpy()[shared.argmax(1)], -1)
    columns = {"shared": largest, "n_nearest": n_nearest, "nearest": nearest}
    return pd.DataFrame(columns, index=names.index)
