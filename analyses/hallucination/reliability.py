"""Calibration of predictions at a value's first token: does accuracy equal confidence?

Bins hold as many predictions each (quantiles of confidence). ECE = Σ_b n_b ÷ n · |accuracy_b −
confidence_b|. It is biased upwards: with few predictions the accuracy of a bin differs from its
confidence by chance even where the model is calibrated, so each ECE stands beside the one that such
a model would show.

Source: Guo, Pleiss, Sun and Weinberger 2017, On Calibration of Modern Neural Networks, equation 3,
    arXiv 1706.04599; equal-mass bins: Nguyen and O'Connor 2015, arXiv 1508.05154.
"""

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from interp.statistics import percentiles

N_BINS = 10
N_RESAMPLES = 200


def reliability(
    confidence: Float[np.ndarray, " prediction"], right: Float[np.ndarray, " prediction"]
) -> pd.DataFrame:
    """One row per bin that holds any predictions: bin, n, mean ``confidence``, and ``accuracy``.
    Equal confidences are in one bin, so that bins can be unequal and fewer than ``N_BINS``.
    """
    of = _bins(confidence)
    table = pd.DataFrame({"bin": of, "confidence": confidence, "accuracy": right})
    means = table.groupby("bin").mean()
    return means.assign(n=np.bincount(of)[means.index]).reset_index()


def expected_calibration_error(
    confidence: Float[np.ndarray, " prediction"], right: Float[np.ndarray, " prediction"]
) -> float:
    """ECE over the bins of ``reliability``; 0 is calibrated, 1 is always sure and never right."""
    return _ece(_bins(confidence), confidence, right)


def _bins(confidence: Float[np.ndarray, " prediction"]) -> Int[np.ndarray, " prediction"]:
    inner = np.quantile(confidence, np.linspace(0, 1, N_BINS + 1)[1:-1])
    return np.searchsorted(inner, confidence, side="right")


def _ece(of: np.ndarray, confidence: np.ndarray, right: np.ndarray) -> float:
    return float(abs(np.bincount(of, right - confidence)).sum() / len(of))


def calibration(
    confidence: Float[np.ndarray, "person attribute"],
    right: Float[np.ndarray, "person attribute"],
    *,
    seed: int = 0,
) -> dict[str, float]:
    """``ece``; ``ece_low`` and ``ece_high``, percentiles of a bootstrap over people (95 %), which
    share the upward bias; ``ece_calibrated``, the mean ECE of a model with the same confidences
    that is right with just these probabilities: what chance alone makes; ``overconfidence``, mean
    confidence − accuracy (positive: too sure), which has no such bias.
    """
    rng, n = np.random.default_rng([seed, 15]), len(confidence)
    draws = rng.integers(n, size=(N_RESAMPLES, n))
    resampled = [
        expected_calibration_error(confidence[people].ravel(), right[people].ravel())
        for people in draws
    ]
    flat = confidence.ravel()
    of = _bins(flat)
    chance = [_ece(of, flat, rng.random(len(flat)) < flat) for _ in range(N_RESAMPLES)]
    low, high = percentiles(np.array(resampled), 0.95)
    return {
        "ece": _ece(of, flat, right.ravel()),
        "ece_low": float(low),
        "ece_high": float(high),
        "ece_calibrated": float(np.mean(chance)),
        "overconfidence": float(confidence.mean() - right.mean()),
    }
