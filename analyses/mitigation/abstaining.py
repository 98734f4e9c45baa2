"""How well a model can abstain: its answers to attributes of known and of held-out people, and what
a threshold on its confidence makes of them.

An answer is what greedy decoding writes; it is right where every token of the value is. Confidence
is that of the answer's first token, for which no right answer need be known: the maximum
probability, and the negative entropy Σ p ln p. Held-out people cannot be known: answers about them
are right by luck only.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from interp.config import TrainConfig
from interp.data.batches import evaluation_set, people_of
from interp.data.biographies import ROLES, Biographies, Texts
from interp.localization.selective_prediction import aurc, auroc, risk_coverage
from interp.model.decoder import HookedDecoder
from interp.statistics import percentiles
from interp.training.packing import to_ragged

DETECTORS = ("max_probability", "negative_entropy")
RISK = 0.05
"""Share of wrong answers that is put up with."""
GRID = np.round(np.linspace(0.01, 1, 100), 2)


def answers(model: HookedDecoder, texts: Texts, config: TrainConfig) -> pd.DataFrame:
    """One row per (known, person, attribute), for as many known as held-out people: whether the
    answer is right, and the score of each detector.
    """
    n = min(config.n_people, people_of(config, "held-out")[1], config.n_evaluated)
    few = replace(config, n_evaluated=n)
    tables = [
        _answers(model, evaluation_set(texts, few, split)).assign(known=known)
        for split, known in (("train", True), ("held-out", False))
    ]
    return pd.concat(tables, ignore_index=True)


@torch.inference_mode()
def _answers(model: HookedDecoder, biographies: Biographies) -> pd.DataFrame:
    device = model.embed.weight.device
    at = np.flatnonzero(biographies.roles == ROLES.index("value"))
    hidden = model.hidden(*to_ragged(biographies, model.cfg, device))
    log_p = model.unembed(hidden[torch.from_numpy(at - 1).to(device)]).log_softmax(-1)
    row = np.repeat(np.arange(len(biographies.lengths)), biographies.lengths)[at]
    tokens = pd.DataFrame(
        {
            "person": biographies.people[row],
            "attribute": biographies.attributes[at],
            "right": log_p.argmax(-1).cpu().numpy() == biographies.tokens[at],
            "max_probability": log_p.amax(-1).exp().cpu(),
            "negative_entropy": (log_p.exp() * log_p).sum(-1).cpu(),
        }
    )
    by = tokens.groupby(["person", "attribute"])
    first = {name: (name, "first") for name in DETECTORS}
    return by.agg(right=("right", "all"), **first).reset_index()


def abstaining(table: pd.DataFrame, *, n_resamples: int, seed: int) -> pd.DataFrame:
    """One row per (detector, measure) of the table that ``answers`` returns: its value, with
    ``low`` and ``high`` of a 95 % interval over people (percentile bootstrap; known and held-out
    people are drawn apart, each with all values).

    auroc: values of known against those of held-out people. aurc: mean risk over all coverages.
    known_coverage: share of known people's values that are answered at the lowest threshold at
    which at most ``RISK`` of all answers are wrong; 0 if there is none.
    """
    in_order = table.sort_values(["known", "person", "attribute"])
    people = np.arange(len(table)).reshape(-1, table.attribute.nunique())
    known = in_order.known.to_numpy()
    kinds = [people[known[people[:, 0]] == kind] for kind in (False, True)]
    rng, rows = np.random.default_rng(seed), []
    drawn = [
        np.concatenate([rng.choice(kind, len(kind)) for kind in kinds]).ravel()
        for _ in range(n_resamples)
    ]
    right = in_order.right.to_numpy()
    for detector in DETECTORS:
        score = in_order[detector].to_numpy(float)
        again = pd.DataFrame([_measures(score[x], right[x], known[x]) for x in drawn])
        for measure, value in _measures(score, right, known).items():
            low, high = percentiles(again[measure].to_numpy(), 0.95)
            row = {"detector": detector, "measure": measure, "value": value}
            rows.append(row | {"low": float(low), "high": float(high)})
    return pd.DataFrame(rows)


def _measures(score: np.ndarray, right: np.ndarray, known: np.ndarray) -> dict[str, float]:
    curve = risk_coverage(score, right)
    lowest = curve.threshold[
        curve.risk <= RISK
    ].min()  # NaN, which nothing reaches, if there is none
    return {
        "auroc": auroc(score, known),
        "aurc": aurc(score, right),
        "known_coverage": float((score[known] >= lowest).mean()),
    }


def risk_curves(table: pd.DataFrame) -> pd.DataFrame:
    """Risk at each coverage of a grid, by detector: that of the highest threshold with at least
    this coverage.
    """
    tables = []
    for detector in DETECTORS:
        curve = risk_coverage(table[detector].to_numpy(float), table.right.to_numpy())
        at = np.searchsorted(curve.coverage, GRID - 1e-9)
        columns = {"detector": detector, "coverage": GRID, "risk": curve.risk.to_numpy()[at]}
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)
