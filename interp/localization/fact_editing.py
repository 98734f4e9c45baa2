"""What happens to a fact, and to other facts, when it is overwritten in one MLP by the rank-one
change of ``interp.localization.rome`` (ROME: Meng et al. 2022, https://arxiv.org/abs/2202.05262).

Success alone is no evidence: a vector that shouts one answer at every prompt succeeds too. Compare
the controls, the damage, and other layers and roles. Nor does success show that the fact was stored
there: edits can succeed where tracing finds nothing (Hase et al. 2023,
https://arxiv.org/abs/2301.04213).
"""

import numpy as np
import pandas as pd
import torch
import xarray as xr
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from interp.data.biographies import Texts
from interp.data.facts import FactSet
from interp.data.sentences import (
    numbers_of,
    rows_of,
    training_sentences,
    write_sentences,
)
from interp.localization.inputs import check_inputs
from interp.localization.rome import Edits, find_edits, lefts_of, mean_keys, run_on, run_to
from interp.model.decoder import HookedDecoder
from interp.suite import Suite

EDITS = ("before", "after", "other_key", "random_key")
MEASURES = {
    "success": "target is the argmax, sentences used",
    "generalisation": "target is the argmax, held-out sentences",
    "same_person": "accuracy on this person's other attributes",
    "others": "accuracy on this attribute of other people",
    "other_attributes": "accuracy on other attributes of other people",
}
N_OTHERS = 16
TEXTS = ("person", "corrupted_person", "attribute", "answer", "corrupted_answer")


def edit_facts(
    model: HookedDecoder,
    suite: Suite,
    facts: FactSet,
    *,
    layer: int,
    role: str,
    n_sentences: int = 10,
    n_others: int = N_OTHERS,
    seed: int = 0,
) -> xr.Dataset:
    """Success and side effects of each fact's edit, each made by itself; ``model`` is left
    unchanged.

    The target is the value of the fact's corrupted twin; only first value tokens are scored.
    ``edit`` is "before", "after", or one of two controls that write the same vector: "other_key" at
    the key of the twin, who has the target already, and "random_key" along a random direction of
    the same length in C's metric, so that ordinary tokens move as much. Where an edit succeeds by
    its key, both leave success near 0.

    Args:
        layer, role: the MLP that is changed, and the tokens whose keys and outputs are meant. In
            the last layer only ``final`` is read, and at other roles v* stays as it was.
        n_sentences: training templates of the fact in which k* and v* are found.
        n_others: people an attribute whose facts are watched, the edited person left out.
        seed: of these people and of the random directions.

    Returns:
        ``MEASURES`` (edit, fact), shares of sentences: the first in the sentences used, the rest in
        evaluation templates. ``reached`` (fact): see ``Edits``. ``size`` (fact):
        ‖v* − W k* − b‖ ÷ ‖W k* + b‖.

    Raises:
        ValueError: as ``find_edits``; more others than people.
    """
    check_inputs(model, facts, twins=True)
    columns = ("person", "corrupted_person")
    person, twin = (rows_of(suite.population, facts.texts[x]) for x in columns)
    attribute = numbers_of(suite.texts, facts.texts.attribute)
    asked = _questions(suite, person, attribute, n_sentences, n_others, seed)
    edits = find_edits(model, suite, facts, layer=layer, role=role, n_sentences=n_sentences)
    twins = run_to(model, training_sentences(suite.texts, twin, attribute, n_sentences), layer)
    lefts = {
        "after": edits.left,
        "other_key": lefts_of(mean_keys(twins, role, len(facts)), edits.second_moment),
        "random_key": _random_lefts(edits, person, attribute, seed),
    }
    hits = _hits(model, suite.texts, facts, asked, edits, lefts)
    with torch.no_grad():
        size = edits.right.norm(dim=-1) / model.blocks[layer].down(edits.keys).norm(dim=-1)
    attrs = {"layer": layer, "role": role, "n_sentences": n_sentences, "n_others": n_others}
    return _dataset(facts, asked, hits, edits.reached, size).assign_attrs(attrs, seed=seed)


def _questions(
    suite: Suite,
    person: Int[np.ndarray, " fact"],
    attribute: Int[np.ndarray, " fact"],
    n_sentences: int,
    n_others: int,
    seed: int,
) -> pd.DataFrame:
    """The sentences to score after each fact's edit, one per row: fact, measure, person, attribute,
    template. The same bystanders are scored whichever fact is edited.
    """
    order = suite.texts.template_order
    held_out = [slice(-n, None) for n in suite.texts.n_evaluation.tolist()]
    trained = np.flatnonzero(suite.population.split == "train")
    if not 2 <= n_others <= len(trained):
        raise ValueError(
            f"n_others is {n_others}; the run has {len(trained)} people, ask for 2 or more of them"
        )
    rng, numbers = np.random.default_rng([seed, 10]), range(len(held_out))
    watched = [(q, b) for b in numbers for q in rng.choice(trained, n_others, replace=False)]
    rows = []
    for i, (p, a) in enumerate(zip(person, attribute)):
        asked = [("success", p, a, slice(n_sentences)), ("generalisation", p, a, held_out[a])]
        asked += [("same_person", p, b, held_out[b]) for b in numbers if b != a]
        asked += [
            ("others" if b == a else "other_attributes", q, b, slice(-1, None))
            for q, b in watched
            if q != p
        ]
        rows += [(i, what, q, b, t) for what, q, b, which in asked for t in order[q, b, which]]
    return pd.DataFrame(rows, columns=["fact", "measure", "person", "attribute", "template"])


def _random_lefts(
    edits: Edits, person: Int[np.ndarray, " fact"], attribute: Int[np.ndarray, " fact"], seed: int
) -> Float[Tensor, "fact d_mlp"]:
    """Random directions, each as long in C's metric as the fact's own."""
    drawn = [
        np.random.default_rng([seed, 11, p, a]).standard_normal(edits.left.shape[1])
        for p, a in zip(person, attribute)
    ]
    drawn = torch.from_numpy(np.stack(drawn)).to(edits.left)
    own, other = (
        einsum(x, edits.second_moment, x, "fact i, i j, fact j -> fact")
        for x in (edits.left, drawn)
    )
    return drawn * (own / other).sqrt()[:, None]


@torch.no_grad()
def _hits(
    model: HookedDecoder,
    texts: Texts,
    facts: FactSet,
    asked: pd.DataFrame,
    edits: Edits,
    lefts: dict[str, Float[Tensor, "fact d_mlp"]],
) -> pd.DataFrame:
    """Whether each row of ``asked`` yields the target, or the right value, depending on its
    measure; one column per edit.
    """
    columns, fact = ["person", "attribute", "template"], asked.fact.to_numpy()
    sentence = asked.groupby(columns, sort=False).ngroup().to_numpy()
    given = write_sentences(texts, *asked[columns].drop_duplicates().to_numpy().T)
    run = run_to(model, given, edits.layer)
    to_target = asked.measure.isin(["success", "generalisation"]).to_numpy()
    targets = facts.corrupted_answers[:, 0].numpy()
    wanted = np.where(to_target, targets[fact], given.answers.numpy()[sentence])
    unchanged = run_on(model, run, torch.zeros_like(run.resid)).argmax(-1).cpu().numpy()
    said = {"before": unchanged[sentence]} | {edit: np.empty(len(asked), int) for edit in lefts}
    for i in range(len(facts)):
        rows = np.flatnonzero(fact == i)
        own = run.take(sentence[rows])
        for edit, left in lefts.items():  # the changed matrix writes right (leftᵀ k) more
            added = einsum(own.keys, left[i], edits.right[i], "s pos m, m, d -> s pos d")
            said[edit][rows] = run_on(model, own, added).argmax(-1).cpu().numpy()
    return pd.DataFrame(said) == wanted[:, None]


def _dataset(
    facts: FactSet,
    asked: pd.DataFrame,
    hits: pd.DataFrame,
    reached: Float[Tensor, " fact"],
    size: Float[Tensor, " fact"],
) -> xr.Dataset:
    shares = asked[["measure", "fact"]].join(hits).groupby(["measure", "fact"]).mean()
    share = {"units": "share", "score": "causal"}
    variables = {
        name: (("edit", "fact"), shares.loc[name].T.to_numpy(), share | {"long_name": meaning})
        for name, meaning in MEASURES.items()
    } | {
        "reached": ("fact", reached.cpu().numpy(), share),
        "size": ("fact", size.cpu().numpy(), {"units": "norm of the MLP's output"}),
    }
    coords = {name: ("fact", facts.texts[name].to_numpy()) for name in TEXTS}
    return xr.Dataset(variables, {"edit": list(EDITS)} | coords)
