"""Linear probes for a label of people, such as known or never seen, with whole people left out.

Prompts about one person hold much the same residual stream, so a probe that has met a person in
training could remember the label instead of reading it. Here no person is on both sides. A probe
that succeeds shows that the label can be read off, not that the model uses it.
"""

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from interp.localization.selective_prediction import auroc

N_FOLDS, N_INNER_FOLDS = 5, 3
INVERSE_PENALTY = 0.1
"""scikit-learn's C: the L2 penalty is ‖w‖² ÷ (2 C), on features of variance 1, beside the sum of
the rows' log losses."""


def left_out_scores(
    features: Float[np.ndarray, "layer row d"],
    label: Bool[np.ndarray, " row"],
    person: Int[np.ndarray, " row"],
    *,
    n_folds: int = N_FOLDS,
    seed: int = 0,
) -> Float[np.ndarray, "layer row"]:
    """The log odds of the label, by a logistic regression on each layer that was fitted and
    standardised without the row's person.

    Raises:
        ValueError: fewer people of a label than folds.
    """
    scores = np.empty(features.shape[:2])
    for train, test in _folds(label, person, n_folds, seed):
        for layer, x in enumerate(features):
            scores[layer, test] = _fitted(x[train], label[train]).decision_function(x[test])
    return scores


def scores_of_chosen_layer(
    features: Float[np.ndarray, "layer row d"],
    label: Bool[np.ndarray, " row"],
    person: Int[np.ndarray, " row"],
    *,
    seed: int = 0,
) -> tuple[Float[np.ndarray, " row"], Int[np.ndarray, " fold"]]:
    """``left_out_scores`` of one layer, and which layer each fold used: that with the best AUROC in
    folds of the people it was fitted on, so that the people left out have no say in it.
    """
    scores, chosen = np.empty(len(label)), []
    for train, test in _folds(label, person, N_FOLDS, seed):
        x, y = features[:, train], label[train]
        inner = left_out_scores(x, y, person[train], n_folds=N_INNER_FOLDS, seed=seed)
        layer = int(np.argmax([auroc(of_layer, y) for of_layer in inner]))
        scores[test] = _fitted(x[layer], y).decision_function(features[layer, test])
        chosen.append(layer)
    return scores, np.array(chosen)


def shuffled_by_person(
    label: Bool[np.ndarray, " row"], person: Int[np.ndarray, " row"], *, seed: int = 0
) -> Bool[np.ndarray, " row"]:
    """The people's labels dealt out anew at random, all rows of a person alike: the control, whose
    AUROC must be 0.5.
    """
    _, first, of = np.unique(person, return_index=True, return_inverse=True)
    return np.random.default_rng([seed, 21]).permutation(label[first])[of]


def _folds(
    label: np.ndarray, person: np.ndarray, n_folds: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows to fit on and rows to score, as many people of each label in every fold as possible."""
    for kind in (True, False):
        if (n := len(np.unique(person[label == kind]))) < n_folds:
            raise ValueError(f"{n} people are {kind}; {n_folds} folds need as many, give more")
    folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    return list(folds.split(label, label, person))


def _fitted(x: np.ndarray, label: np.ndarray):
    regression = LogisticRegression(C=INVERSE_PENALTY, solver="newton-cholesky")
    return make_pipeline(StandardScaler(), regression).fit(x, label)
