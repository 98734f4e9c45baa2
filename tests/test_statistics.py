import numpy as np
from scipy.stats import ttest_1samp

from interp.statistics import greater_than_0, holm


def test_a_t_test_is_scipys_and_knows_constant_values():
    values = np.random.default_rng(0).normal(0.2, 1, (3, 40))
    theirs = ttest_1samp(values, 0, axis=1, alternative="greater").pvalue
    np.testing.assert_allclose(greater_than_0(values), theirs, rtol=1e-9)
    assert greater_than_0(np.array([[2.0, 2.0], [0.0, 0.0], [-1.0, -1.0]])).tolist() == [0, 1, 1]


def test_holms_correction_by_hand():
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, 0.03])), [0.06, 0.03, 0.06])
    with_none = holm(np.array([0.04, np.nan, 0.01, 0.03]))
    np.testing.assert_allclose(with_none, [0.06, np.nan, 0.03, 0.06])
