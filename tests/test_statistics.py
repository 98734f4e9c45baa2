import jaxtyping
import numpy as np
import pytest
from scipy.stats import ttest_1samp

from interp.statistics import greater_than_0, holm, margin


def test_a_t_test_is_scipys_and_knows_constant_values():
    values = np.random.default_rng(0).normal(0.2, 1, (3, 40))
    theirs = ttest_1samp(values, 0, axis=1, alternative="greater").pvalue
    np.testing.assert_allclose(greater_than_0(values), theirs, rtol=1e-9)
    assert greater_than_0(np.array([[2.0, 2.0], [0.0, 0.0], [-1.0, -1.0]])).tolist() == [0, 1, 1]


def test_values_that_are_not_finite_have_no_p_and_no_margin():
    values = np.array([[1.0, 2.0, np.nan], [1.0, 2.0, np.inf], [1.0, 2.0, 3.0]])
    assert np.isnan(greater_than_0(values)).tolist() == [True, True, False]
    assert np.isnan(margin(values)).tolist() == [True, True, False]
    assert greater_than_0(values[:, :1]).tolist() == [1, 1, 1]
    assert np.isnan(margin(values[:, :1])).all() and margin(np.ones(4)) == 0


def test_what_is_no_row_of_p_values_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as without tests
    for wrong in (np.array([0.1, np.inf]), np.array([-0.1]), np.ones((2, 2))):
        with pytest.raises(ValueError, match="give a row of p values"):
            holm(wrong)


def test_holms_correction_by_hand():
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, 0.03])), [0.06, 0.03, 0.06])
    with_none = holm(np.array([0.04, np.nan, 0.01, 0.03]))
    np.testing.assert_allclose(with_none, [0.06, np.nan, 0.03, 0.06])
