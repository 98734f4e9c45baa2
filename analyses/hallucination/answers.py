"""What a model says of unknown people: a value of the nearest known person, a frequent value, or
something else.

The answer is the likeliest first token among those of known people's values
(``value_predictions.FirstTokens``). It is of the first of these kinds that applies: ``nearest``,
the value of the one known person who shares most parts of the name; ``prior``, the most frequent
value among known people; ``sharer``, the value of any other known person who shares a part;
``other``. An answer can be the nearest person's by chance, and with small pools a value is almost
always some sharer's: each share stands beside that of the same answers given about people dealt at
random, which is the evidence's control.
"""

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from analyses.hallucination.value_predictions import FirstTokens
from interp.data.shared_names import shared_parts
from interp.statistics import margin

KINDS = ("nearest", "prior", "sharer", "other")


def kinds_of_answers(
    asked: pd.DataFrame, known: pd.DataFrame, choices: FirstTokens
) -> Int[np.ndarray, "person attribute choice"]:
    """The kind, an index into ``KINDS``, that each possible answer would be of, for each person
    asked about.

    Args:
        asked: names, and ``nearest``: the id of a known person, or −1 for nobody.
        known: the people of ``choices.of_person``, in their order.
    """
    n_choices = choices.token.shape[1]
    shares = (shared_parts(asked, known) > 0).astype(np.float32)
    kind = np.full((len(asked), *choices.token.shape), KINDS.index("other"))
    for attribute, value in enumerate(choices.of_person.T):
        has_value = value[:, None] == np.arange(n_choices)
        kind[:, attribute][shares @ has_value.astype(np.float32) > 0] = KINDS.index("sharer")
    kind[:, choices.prior == choices.prior.max(1, keepdims=True)] = KINDS.index("prior")
    place = pd.Series(np.arange(len(known)), index=known.id.to_numpy())
    at = np.flatnonzero(asked.nearest >= 0)
    values = choices.of_person[place[asked.nearest.iloc[at]].to_numpy()]
    kind[at[:, None], np.arange(values.shape[1]), values] = KINDS.index("nearest")
    return kind


def shares_of_kinds(
    answers: Int[np.ndarray, "person attribute"],
    kinds: Int[np.ndarray, "person attribute choice"],
) -> pd.DataFrame:
    """One row per kind: ``share`` of answers of that kind, half of its 95 % interval over people
    (Student's t); ``chance``, the share if it were dealt at random who is who's neighbour: the
    exact mean over all permutations; ``excess``, share − chance, and half of its interval, which
    takes the others' relations as given.
    """
    own = np.take_along_axis(kinds, answers[..., None], axis=2)[..., 0]
    n, n_attributes = answers.shape
    rows = []
    for number, kind in enumerate(KINDS):
        frequency = (kinds == number).mean(0)  # of each answer, over whom it could be said of
        chance = frequency[np.arange(n_attributes), answers].mean(1)
        share = (own == number).mean(1)
        rows.append({
            "kind": kind, "n": n, "share": share.mean(), "share_margin": float(margin(share)),
            "chance": chance.mean(), "excess": (share - chance).mean(),
            "excess_margin": float(margin(share - chance)),
        })  # fmt: skip
    return pd.DataFrame(rows)


def distance_from_prior(
    p: Float[np.ndarray, "person attribute choice"], choices: FirstTokens
) -> float:
    """KL(mean over people of p ‖ prior), mean over attributes, nats: 0 where values are predicted
    as often as known people have them, which says nothing about who is given which.
    """
    mean = p.mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(mean > 0, mean * np.log(mean / choices.prior), 0)
    return float(terms.sum(1).mean())
