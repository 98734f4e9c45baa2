"""How well a score tells two classes apart (AUROC), and what is gained by answering only where it
is high (risk–coverage curves).

Prompts about one person are not independent, so intervals are over people: all prompts of a person
are drawn together. They speak of other people of the same run, not of another training seed.
"""

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from sklearn.metrics import roc_auc_score

from interp.statistics import percentiles


def auroc(score: Float[np.ndarray, " row"], positive: Bool[np.ndarray, " row"]) -> float:
    """The probability that a positive row has a higher score than a negative one, ties one half;
    0.5 = the score says nothing, below it the score is lower where positive.
    """
    _check_scores(score, positive)
    if positive.all() or not positive.any():
        raise ValueError(f"{positive.sum()} of {len(positive)} rows are positive; give both kinds")
    return float(roc_auc_score(positive, score))


def resampled_auroc(
    score: Float[np.ndarray, " row"],
    positive: Bool[np.ndarray, " row"],
    person: Int[np.ndarray, " row"],
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Float[np.ndarray, " resample"]:
    """AUROC over bootstrap resamples of the people, positive and negative ones drawn apart, each
    with all of their rows.

    The same ``seed`` draws the same people for every score of the same rows, so that resamples are
    paired: differences of two scores can be taken resample by resample.

    Raises:
        ValueError: a person has rows of both kinds; fewer than two people of a kind.
    """
    _check_scores(score, positive)
    kinds = [np.unique(person[positive == kind], return_inverse=True) for kind in (True, False)]
    (ours, one), (theirs, other) = kinds
    for both in np.intersect1d(ours, theirs):
        raise ValueError(f"person {both} has positive and negative rows; give each person one kind")
    if min(len(ours), len(theirs)) < 2:
        raise ValueError(f"got {len(ours)} and {len(theirs)} people; give two or more of each kind")
    high, low = score[positive][:, None], score[~positive]
    wins = (high > low) + 0.5 * (high == low)
    of_people = np.zeros((len(ours), len(low)))
    np.add.at(of_people, one, wins)
    pairs = np.zeros((len(theirs), len(ours)))
    np.add.at(pairs, other, of_people.T)
    rng, draws = np.random.default_rng([seed, 20]), []
    for n in (len(ours), len(theirs)):
        draws.append(rng.multinomial(n, np.full(n, 1 / n), size=n_resamples).astype(float))
    won = np.einsum("ri,ji,rj->r", draws[0], pairs, draws[1], optimize=True)
    return won / ((draws[0] @ np.bincount(one)) * (draws[1] @ np.bincount(other)))


def auroc_table(
    scores: dict[str, Float[np.ndarray, " row"]],
    positive: Bool[np.ndarray, " row"],
    person: Int[np.ndarray, " row"],
    *,
    reference: str,
    n_resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per score (detector): ``auroc`` with ``low`` and ``high``, and ``difference`` with
    ``difference_low`` and ``difference_high``: AUROC minus that of the score ``reference``, whose
    people are resampled alike. 95 % percentile intervals over people.
    """
    how = {"n_resamples": n_resamples, "seed": seed}
    base = resampled_auroc(scores[reference], positive, person, **how)
    rows = []
    for name, score in scores.items():
        draws, here = resampled_auroc(score, positive, person, **how), auroc(score, positive)
        row = {"detector": name, "auroc": here}
        row["low"], row["high"] = map(float, percentiles(draws, 0.95))
        row["difference"] = here - auroc(scores[reference], positive)
        ends = percentiles(draws - base, 0.95)
        row["difference_low"], row["difference_high"] = map(float, ends)
        rows.append(row)
    return pd.DataFrame(rows)


def risk_coverage(
    score: Float[np.ndarray, " row"], correct: Bool[np.ndarray, " row"]
) -> pd.DataFrame:
    """What answering only at or above a threshold of ``score`` gives, one row per threshold, the
    highest first: ``threshold``, ``coverage`` (share of rows answered) and ``risk`` (share of wrong
    answers among them). Rows with the same score are answered together.

    Source: El-Yaniv and Wiener 2010, JMLR 11.
    """
    _check_scores(score, correct)
    order = np.argsort(-score, kind="stable")
    last = np.append(np.diff(score[order]) != 0, True)
    answered, wrong = np.arange(1, len(score) + 1), np.cumsum(~correct[order])
    return pd.DataFrame(
        {
            "threshold": score[order][last],
            "coverage": answered[last] / len(score),
            "risk": wrong[last] / answered[last],
        }
    )


def aurc(score: Float[np.ndarray, " row"], correct: Bool[np.ndarray, " row"]) -> float:
    """The area under the risk–coverage curve: the mean over k = 1 … n of the risk when the k rows
    with the highest scores are answered. Of rows with the same score, which come first is random:
    the risk is then its expectation.

    0 = no answer is wrong; a score that says nothing gives the share of wrong answers.

    Source: Geifman, Uziel and El-Yaniv 2019, https://arxiv.org/abs/1805.08206, section 3.
    """
    curve, n = risk_coverage(score, correct), len(score)
    answered = np.concatenate(([0.0], curve.coverage.to_numpy() * n))
    wrong = np.concatenate(([0.0], (curve.risk * curve.coverage).to_numpy() * n))
    k = np.arange(1, n + 1)
    return float((np.interp(k, answered, wrong) / k).mean())


def _check_scores(score: np.ndarray, kind: np.ndarray) -> None:
    if score.shape != kind.shape or not len(score):
        raise ValueError(f"got {len(score)} scores and {len(kind)} rows; give one score a row")
    if not np.isfinite(score).all():
        raise ValueError(
            f"{np.sum(~np.isfinite(score))} scores are NaN or infinite; leave them out"
        )
