"""Power laws through points, with intervals."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import linregress
from scipy.stats import t as student


@dataclass(frozen=True)
class PowerLaw:
    """y = factor · x^exponent, by least squares on logarithms; 95 % intervals from Student's t."""

    factor: float
    factor_low: float
    factor_high: float
    exponent: float
    exponent_low: float
    exponent_high: float
    r_squared: float
    """Of the logarithms."""

    def __call__(self, x: Float[np.ndarray, " point"]) -> Float[np.ndarray, " point"]:
        return self.factor * np.asarray(x, float) ** self.exponent


def power_law(
    x: Float[np.ndarray, " point"],
    y: Float[np.ndarray, " point"],
    *,
    confidence: float = 0.95,
) -> PowerLaw:
    """The power law through points; points with a NaN are left out.

    Raises:
        ValueError: fewer than three points are left, or all at one x; a value is not above 0, or
            infinite; not as many x as y.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.shape != y.shape or x.ndim != 1 or np.isinf([*x, *y]).any() or not 0 < confidence < 1:
        raise ValueError(
            f"x of shape {x.shape}, y of shape {y.shape} and {confidence=} give no power law; give "
            "as many x as y, none infinite, and 0.95"
        )
    there = np.isfinite(x) & np.isfinite(y)
    x, y = x[there], y[there]
    if len(x) < 3 or len(set(x)) < 2:
        raise ValueError(f"a power law needs three points at two x; got {len(x)} at {len(set(x))}")
    if min(*x, *y) <= 0:
        raise ValueError(f"a power law needs values above 0; got {min(*x, *y)}")
    fit = linregress(np.log(x), np.log(y))
    t = student.ppf((1 + confidence) / 2, len(x) - 2)
    slopes, off = fit.slope + t * fit.stderr * np.array([-1, 1]), t * fit.intercept_stderr
    factor, low, high = np.exp(fit.intercept + np.array([0, -off, off]))
    return PowerLaw(factor, low, high, fit.slope, slopes[0], slopes[1], fit.rvalue**2)
