"""The sets of people that a hallucinating model is asked about: known, held out, and constructed to
share parts of their names with known ones.
"""

from dataclasses import dataclass, replace
from itertools import combinations

import pandas as pd

from interp.data.batches import evaluation_set
from interp.data.biographies import Biographies, lay_out
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


def sets_of_people(suite: Suite, *, n: int, n_constructed: int, seed: int = 0) -> dict:
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
            people_sharing_names(people, kept=kept, n=n_constructed, seed=seed).assign(
                kept="+".join(kept)
            )
            for kept in choices
        ]
        asked = pd.concat(made, ignore_index=True)
        asked = asked.assign(id=people.id.max() + 1 + asked.index)
        asked = asked.join(nearest_known(asked, people))
        # All of them are the "training people" of a population of their own, to be written about.
        alone = replace(suite.config, n_people=len(asked), n_evaluated=len(asked))
        texts = lay_out(asked, suite.tokenizer, seed=suite.config.seed)
        found[name] = PeopleSet(asked, evaluation_set(texts, alone, "train"))
    return found
