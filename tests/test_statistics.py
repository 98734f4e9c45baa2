import jaxtyping
import numpy as np
import pytest
from scipy.stats import bootstrap, ttest_1samp

from interp.statistics import (
    ALPHA,
    format_p,
    gap_is_precise,
    greater_than_0,
    holm,
    margin,
    percentiles,
    resampled_means,
    runs_differ,
    share_interval,
)


def test_a_t_test_is_scipys_and_knows_constant_values():
    values = np.random.default_rng(0).normal(0.2, 1, (3, 40))
    theirs = ttest_1samp(values, 0, axis=1, alternative="greater").pvalue
    np.testing.assert_allclose(greater_than_0(values), theirs, rtol=1e-9)
    assert greater_than_0(np.array([[2.0, 2.0], [0.0, 0.0], [-1.0, -1.0]])).tolist() == [0, 1, 1]


def test_what_cannot_be_tested_has_no_p_and_no_margin():
    values = np.array([[1.0, 2.0, np.nan], [1.0, 2.0, np.inf], [1.0, 2.0, 3.0]])
    assert np.isnan(greater_than_0(values)).tolist() == [True, True, False]
    assert np.isnan(margin(values)).tolist() == [True, True, False]
    assert np.isnan(greater_than_0(values[:, 2:])).all()  # one fact, NaN, infinite or neither
    assert np.isnan(greater_than_0(values[:, :0])).all()
    assert np.isnan(margin(values[:, :1])).all() and margin(np.ones(4)) == 0


def test_runs_differ_where_their_gap_is_above_0_by_a_one_sided_t_test():
    # t of 1.69 and 1.68 with 39 degrees of freedom, whose one-sided 5 % begin at 1.685
    spread = np.random.default_rng(0).normal(size=40)
    spread = (spread - spread.mean()) / spread.std(ddof=1)
    gaps = np.array([1.69, 1.68, -9.0])[:, None] / 40**0.5 + spread
    assert runs_differ(gaps).tolist() == [True, False, False]
    assert runs_differ(np.array([[2.0], [-2.0], [np.nan]])).tolist() == [True, False, False]
    assert not runs_differ(np.array([5.0, 5.1, np.nan]))


def test_runs_that_do_not_differ_are_said_to_in_5_percent():
    noise = np.random.default_rng(0).normal(size=(4000, 12))
    assert runs_differ(noise).mean() == pytest.approx(ALPHA, abs=0.012)  # 3.5 standard errors


def test_a_gap_is_precise_from_ten_standard_errors_on():
    spread = np.array([-1.0, 0.0, 1.0, 0.0])  # a standard error of (2 / 3 / 4) ** 0.5 = 0.408
    assert gap_is_precise(np.array([[4.09], [4.07], [-9.0]]) + spread).tolist() == [1, 0, 0]
    assert not gap_is_precise(np.array([5.0, np.nan])) and not gap_is_precise(np.array([5.0]))


def test_what_is_no_row_of_p_values_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as without tests
    for wrong in (np.array([0.1, np.inf]), np.array([-0.1]), np.ones((2, 2))):
        with pytest.raises(ValueError, match="give a row of p values"):
            holm(wrong)


def test_holms_correction_by_hand():
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, 0.03])), [0.06, 0.03, 0.06])
    with_none = holm(np.array([0.04, np.nan, 0.01, 0.03]))
    np.testing.assert_allclose(with_none, [0.06, np.nan, 0.03, 0.06])


@pytest.mark.parametrize(
    ("p", "floor", "said"),
    [
        (0.0164, 0.0, "0.016"),
        (80 / 5000, 80 / 5000, "≤ 0.016"),
        (0.5, 80 / 5000, "0.500"),
        (0.0004, 0.0, "< 0.001"),
        (0.0002, 0.0002, "< 0.001"),
        (np.nan, 0.1, "not tested"),
    ],
)
def test_a_p_value_is_said_with_its_bound(p, floor, said):
    assert format_p(p, floor) == said


def test_resampled_means_are_of_facts_counted_out_one_by_one():
    values = np.random.default_rng(0).normal(size=(2, 3, 7))
    values[1, 2, :3] = np.nan
    found = resampled_means(values, n_resamples=5, seed=4)
    for counts, means in zip(
        np.random.default_rng(4).multinomial(7, [1 / 7] * 7, size=5), np.moveaxis(found, -1, 0)
    ):
        for cell in np.ndindex(2, 3):
            drawn = [x for x, n in zip(values[cell], counts) for _ in range(n) if not np.isnan(x)]
            assert means[cell] == pytest.approx(np.mean(drawn))
    assert np.isnan(resampled_means(values[..., 3:4], n_resamples=5, seed=4)).all()


def test_the_same_facts_are_drawn_whatever_other_cells_there_are():
    values = np.random.default_rng(0).normal(size=(3, 20))
    alone, among = (resampled_means(x, n_resamples=9, seed=1) for x in (values[2], values))
    np.testing.assert_allclose(among[2], alone, rtol=1e-12)


def test_the_interval_of_a_share_is_scipys_paired_bootstrap():
    rng = np.random.default_rng(0)
    whole = rng.normal(4, 2, 60)
    part = 0.5 * whole + rng.normal(0, 0.3, 60)
    theirs = bootstrap(
        (part, whole), lambda a, b, axis: a.mean(axis) / b.mean(axis), paired=True,
        n_resamples=4000, method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    ours = share_interval(part, whole, n_resamples=4000)
    np.testing.assert_allclose(ours, theirs, atol=0.05 * (theirs.high - theirs.low))
    as_if_known = 2 * margin(part) / whole.mean()
    assert ours[1] - ours[0] < 0.4 * as_if_known  # the two vary together


def test_the_interval_of_a_share_holds_it_as_often_as_stated():
    held = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        whole = rng.normal(4, 2, 60)
        low, high = share_interval(0.5 * whole + rng.normal(0, 1, 60), whole, n_resamples=300)
        held.append(low <= 0.5 <= high)
    assert np.mean(held) == pytest.approx(0.95, abs=0.04)


def test_a_fact_without_a_part_is_left_out_of_the_whole_too():
    part, whole = np.array([[1.0, 2.0, np.nan], [1.0, 2.0, 3.0]]), np.array([2.0, 4.0, 90.0])
    low, high = share_interval(part, whole)
    assert low[0] == high[0] == 0.5  # of every resample, but those of the last fact alone
    assert low[1] < 0.1
    assert np.isnan(share_interval(part[:, :1], whole[:1])).all()


def test_percentiles_leave_out_resamples_without_a_value():
    resampled = np.array([[np.nan, *range(101)], [np.nan] * 102], float)
    low, high = percentiles(resampled, 0.9)
    assert (low[0], high[0]) == pytest.approx((5, 95)) and np.isnan([low[1], high[1]]).all()
