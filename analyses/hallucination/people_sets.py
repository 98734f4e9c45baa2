"""The sets of people that a hallucinating model is asked about: known, held out, and constructed to
share parts of their names with known ones.
"""

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd

from interp.data.batches import evaluation_set
from interp.data.biographies import (
    Biographies,
    Texts,
    evaluation_templates,
    lay_out,
    write_biographies,
)
from interp.data.population import NAME_PARTS
from interp.data.shared_names import nearest_known, people_sharing_names
from interp.suite import Suite

KEPT = {
    "two parts shared": tuple(combinations(NAME_PARTS, 2)),
    "one part shared": tuple((part,) for part in NAME_PARTS),
}
SETS = ("known", "held out", *KEPT)


@dataclass(frozen=True)
class PeopleSet:
    """People of a kind, and a biography of each, in evaluation templates."""

    people: pd.DataFrame
    """One row per biography: id, names and attributes; kept, the parts shared by construction, such
    as first+last; of unknown people also ``shared``, ``n_nearest`` and ``nearest``, as
    ``nearest_known`` finds them."""
    biographies: Biographies


def sets_of_people(
    suite: Suite, *, n: int, n_constructed: int, seed: int = 0
) -> dict[str, PeopleSet]:
    """The ``PeopleSet`` of each of ``SETS``: ``n`` known and ``n`` held-out people at most, and at
    most ``n_constructed`` for each choice of the parts that constructed people share.
    """
    people = suite.population
    fewer = replace(suite.config, n_evaluated=min(n, suite.config.n_evaluated))
    found = {}
    for name, split in (("known", "train"), ("held out", "held-out")):
        biographies = evaluation_set(suite.texts, fewer, split)
        asked = people.iloc[biographies.people].reset_index(drop=True).assign(kept="")
        if split != "train":
            asked = asked.join(nearest_known(asked, people))
        found[name] = PeopleSet(asked, biographies)
    for name, choices in KEPT.items():
        made = [
            people_sharing_names(
                people, kept=kept, n=n_constructed, seed=seed, attributes=suite.texts.attributes
            ).assign(kept="+".join(kept))
            for kept in choices
        ]
        asked = pd.concat(made, ignore_index=True)
        asked = asked.assign(id=people.id.max() + 1 + asked.index)
        asked = asked.join(nearest_known(asked, people))
        texts = lay_out(
            asked, suite.tokenizer, seed=suite.config.seed, templates=suite.own_templates
        )
        found[name] = PeopleSet(asked, _biographies(texts, len(asked), seed))
    return found


def _biographies(texts: Texts, n: int, seed: int) -> Biographies:
    """One biography of each of the ``n`` people, in evaluation templates and random order."""
    rng, people = np.random.default_rng([seed, 16]), np.arange(n)
    template = evaluation_templates(texts, people, rng)
    order = rng.permuted(np.broadcast_to(np.arange(template.shape[1]), template.shape), axis=1)
    return write_biographies(texts, people, order, np.take_along_axis(template, order, 1))
