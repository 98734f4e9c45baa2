import jaxtyping
import numpy as np
import pytest

from analyses import paper
from interp.dynamics.plateau import (
    Phases,
    format_step,
    knowledge_start,
    phases,
    plateau_crossing,
    plateau_end,
    plateau_end_interval,
    rises_from,
)
from interp.dynamics.power_law import power_law

STEPS = np.array([0, 100, 200, 300, 400])


def test_plateau_ends_at_the_first_checkpoint_below_the_margin():
    loss = np.array([9.0, 2.1, 1.995, 1.98, 0.5])
    assert plateau_end(STEPS, loss, 2.0) == 300.0
    assert plateau_end(STEPS, loss, 2.0, margin=0.001) == 200.0
    assert plateau_end(STEPS, loss, 2.0, margin=0.5) == 400.0


def test_a_loss_exactly_at_the_margin_is_still_on_the_plateau():
    loss = np.array([9.0, 4.0, 3.0, 2.0, 1.0])
    assert plateau_end(STEPS, loss, 4.0, margin=0.25) == 300.0


def test_a_dip_that_comes_back_up_does_not_end_the_plateau():
    loss = np.array([9.0, 1.5, 2.1, 1.7, 1.6])
    assert plateau_end(STEPS, loss, 2.0) == 300.0


@pytest.mark.parametrize("last", [2.1, 1.999, float("nan")])
def test_a_plateau_that_has_not_ended_at_the_last_checkpoint_has_no_end(last):
    loss = np.array([9.0, 1.5, 1.5, 1.5, last])
    assert np.isnan(plateau_end(STEPS, loss, 2.0))


def test_a_run_below_the_baseline_throughout_has_no_plateau_but_an_end_at_its_start():
    assert plateau_end(STEPS, np.full(5, 0.1), 2.0) == 0.0


def test_the_crossing_lies_on_the_line_between_the_two_checkpoints_around_it():
    loss = np.array([9.0, 2.1, 2.03, 1.93, 0.5])
    assert plateau_crossing(STEPS, loss, 2.0) == pytest.approx(240)  # of 0.10, 0.04 to 1.99
    assert plateau_crossing(STEPS, loss, 2.0, margin=0.5) == pytest.approx(300 + 93 / 1.43)
    assert np.isnan(plateau_crossing(STEPS, np.full(5, 2.1), 2.0))
    assert plateau_crossing(STEPS, np.full(5, 0.1), 2.0) == 0.0


def test_knowledge_starts_where_known_people_are_told_from_others_for_good():
    known = np.array([9.0, 2.3, 2.07, 2.05, 1.5])
    others = np.array([9.2, 2.5, 2.18, 2.14, 2.2])
    assert knowledge_start(STEPS, known, others, 2.0) == 400.0  # 0.11 at 200, but 0.09 at 300
    assert knowledge_start(STEPS, known, others, 2.0, margin=0.04) == 200.0
    assert np.isnan(knowledge_start(STEPS, others, known, 2.0))


def test_a_loss_rises_from_where_it_stays_above_its_minimum():
    loss = np.array([9.0, 2.0, 2.02, 2.005, 2.1])
    assert rises_from(STEPS, loss) == 400.0
    assert rises_from(STEPS, loss, margin=0.001) == 200.0
    assert np.isnan(rises_from(STEPS, np.array([9.0, 4.0, 3.0, 2.0, 1.0])))


def test_the_plateau_runs_from_five_percent_above_the_baseline_to_its_end():
    loss = np.array([9.0, 2.11, 2.09, 2.0, 1.9])
    assert phases(STEPS, loss, 2.0) == Phases(plateau_start=200.0, plateau_end=400.0)
    assert phases(STEPS, loss, 2.0, start_margin=0.06) == Phases(100.0, 400.0)


def test_a_run_that_never_comes_near_the_baseline_has_no_phases():
    found = phases(STEPS, np.full(5, 9.0), 2.0)
    assert np.isnan([found.plateau_start, found.plateau_end]).all()


LOSS = np.array([9.0, 2.1, 1.995, 1.98, 0.5])


@pytest.mark.parametrize(
    ("step", "loss", "baseline", "message"),
    [
        (STEPS[[0, 2, 1, 3, 4]], LOSS, 2.0, "step 100 comes after step 200; sort them, each once"),
        (STEPS[[0, 1, 1, 3, 4]], LOSS, 2.0, "step 100 comes after step 100"),
        (np.array([0, 1, 2, np.nan, 4]), LOSS, 2.0, "give one or more finite ones"),
        (STEPS[:0], LOSS[:0], 2.0, r"got steps of shape \(0,\)"),
        (STEPS, LOSS[:4], 2.0, r"attribute_loss has shape \(4,\), the steps \(5,\)"),
        (STEPS, LOSS, float("nan"), "the baseline is nan, the margin 0.0"),
    ],
)
def test_steps_and_losses_that_do_not_belong_together_are_refused(
    monkeypatch, step, loss, baseline, message
):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as without tests
    for read in (plateau_end, plateau_crossing, phases):
        with pytest.raises(ValueError, match=message):
            read(step, loss, baseline)
    with pytest.raises(ValueError, match=message):
        knowledge_start(step, loss, LOSS, baseline)
    if baseline == 2.0:
        with pytest.raises(ValueError, match=message.replace("attribute_", "")):
            rises_from(step, loss)


def test_a_loss_that_is_not_finite_is_below_nothing_and_has_no_minimum_and_no_crossing():
    for wrong in (np.nan, np.inf, -np.inf):
        loss = np.array([9.0, wrong, 1.9, wrong, 1.5])
        assert plateau_end(STEPS, loss, 2.0) == 400.0
        with pytest.raises(ValueError, match="at step 300, so where it crosses is not known"):
            plateau_crossing(STEPS, loss, 2.0)
        with pytest.raises(ValueError, match="at step 100, so its minimum is not known"):
            rises_from(STEPS, loss)


@pytest.mark.parametrize(
    ("step", "spacing", "said"),
    [
        (350.0, 100, "350"), (349.73, 100, "350"), (1_234_567.0, 100, "1234567"),
        (0.85, 1, "0.85"), (0.3, 100, "0"), (-0.3, 100, "0"), (-1e-9, 1, "0"),
        (0.01234, 0.02, "0.012"), (12.34, 10, "12.3"), (4.0, 0.5, "4"), (100.0, 1, "100"),
    ],
)  # fmt: skip
def test_a_step_is_said_to_a_tenth_of_the_checkpoints_distance(step, spacing, said):
    assert format_step(step, spacing) == said


def test_on_the_papers_own_curve_the_plateau_ends_where_the_paper_says():
    # Figure 2: left, 64k people, mean of 5 seeds; right, 3085 steps.
    curve = paper.panel("2", "left")
    found = phases(curve.x.to_numpy(int), curve.y.to_numpy(), paper.NO_KNOWLEDGE)
    assert found.plateau_end == 3000  # checkpoints 500 apart
    assert found.plateau_start == 500


@pytest.mark.parametrize(
    ("people", "end"),
    [("4k", 375), ("8k", 600), ("16k", 1110), ("32k", 2090), ("64k", 3085), ("128k", 6030)],
)
def test_on_the_papers_curve_of_each_population_it_ends_within_a_checkpoint_of_the_papers_point(
    people, end
):
    # Figure C has one seed, read off every 250 to 1000 steps; figure 2 (right) is a mean of five.
    # 256k people have no curve in the paper.
    curves = paper.panel("C", "N")
    curve = curves[curves.series == people]
    steps = curve.x.to_numpy(int)
    found = plateau_end(steps, curve.y.to_numpy(), paper.NO_KNOWLEDGE)
    at = np.searchsorted(steps, found)
    assert steps[at - 1] - 100 < end <= found + 100  # seeds differ by some steps
    points = paper.panel("2", "right")
    assert end in points.y.to_numpy()


def test_the_papers_power_law_is_the_one_it_states():
    points = paper.panel("2", "right")
    law = power_law(points.x.to_numpy(), points.y.to_numpy())
    assert law.factor == pytest.approx(0.43, abs=0.005)
    assert law.exponent == pytest.approx(0.81, abs=0.005)
    assert law.r_squared == pytest.approx(0.998, abs=5e-4)


def test_an_exact_power_law_is_found_again_with_no_width():
    x = np.array([1.0, 4.0, 9.0])
    law = power_law(x, 3 * x**-0.5)
    assert law.factor == pytest.approx(3) and law.exponent == pytest.approx(-0.5)
    assert law.exponent_low == pytest.approx(law.exponent_high)
    assert law.factor_low == pytest.approx(3) == pytest.approx(law.factor_high)
    assert law.r_squared == pytest.approx(1)
    np.testing.assert_allclose(law(np.array([16.0])), [0.75])


def test_a_power_laws_interval_is_students():
    # y = 1, 2, 2 at x = 1, e, e^2, by hand: slope ln(2)/2, residual sum of squares ln(2)^2/6,
    # standard error ln(2)/sqrt(12), t of one degree of freedom 12.706; the intercept is ln(2)/6.
    law = power_law(np.exp([0.0, 1.0, 2.0]), np.array([1.0, 2.0, 2.0]))
    assert law.exponent == pytest.approx(0.34657, abs=1e-5)
    assert law.exponent_high - law.exponent == pytest.approx(12.7062 * 0.20009, abs=1e-3)
    assert law.factor == pytest.approx(2 ** (1 / 6))
    # the intercept's standard error is ln(2)/sqrt(6) * sqrt(1/3 + 1/2)
    assert law.factor_high == pytest.approx(2 ** (1 / 6) * np.exp(12.7062 * 0.25832), rel=1e-3)
    assert law.factor_low * law.factor_high == pytest.approx(law.factor**2)
    assert law.r_squared == pytest.approx(0.75)


def test_points_without_a_value_are_left_out_of_a_power_law_and_too_few_are_refused():
    x, y = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 4.0, np.nan, 8.0])
    assert power_law(x, y).exponent == pytest.approx(1)
    with pytest.raises(ValueError, match="needs three points at two x; got 2 at 2"):
        power_law(x[:3], y[:3])
    with pytest.raises(ValueError, match="values above 0; got -1"):
        power_law(x, np.array([2.0, -1.0, 1.0, 1.0]))


def test_a_power_law_is_of_pairs_of_finite_numbers(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as without tests
    x = np.array([1.0, 2.0, 3.0])
    for y, options in ((x[:1], {}), (np.array([1, np.inf, 2]), {}), (x, {"confidence": 95.0})):
        with pytest.raises(ValueError, match="give no power law"):
            power_law(x, y, **options)


def test_a_plateau_end_of_one_person_or_of_losses_that_are_not_finite_has_no_interval():
    one = np.array([[9.0], [2.1], [1.9], [1.0], [0.5]])
    assert np.isnan(plateau_end_interval(STEPS, one, 2.0)).all()
    with pytest.raises(ValueError, match="1 losses that are not finite"):
        plateau_end_interval(STEPS, np.where(one == 1.9, np.nan, one).repeat(3, 1)[:, :1], 2.0)


def test_the_interval_of_a_plateau_end_is_that_of_the_people():
    same = np.repeat([[9.0], [2.1], [1.9], [1.0], [0.5]], 5, axis=1)
    assert plateau_end_interval(STEPS, same, 2.0) == (200.0, 200.0)
    # Half of ten people fall at 200, half at 300: the mean is below 1.99 at 200 only if more than
    # half of the resampled people are of the first kind, and at 300 always.
    early = np.tile([[9.0], [2.1], [1.8], [1.8], [1.8]], 5)
    late = np.tile([[9.0], [2.1], [2.2], [1.8], [1.8]], 5)
    mixed = np.concatenate((early, late), axis=1)
    assert plateau_end_interval(STEPS, mixed, 2.0) == (200.0, 300.0)


def test_the_interval_ends_nowhere_where_too_few_have_left_the_plateau():
    early, late = np.tile([[9.0], [2.1], [1.8]], 5), np.tile([[9.0], [2.1], [2.2]], 5)
    low, high = plateau_end_interval(STEPS[:3], np.concatenate((early, late), axis=1), 2.0)
    assert low == 200.0 and np.isnan(high)


def test_a_95_percent_interval_holds_the_true_end_about_that_often():
    # The true mean falls linearly through the margin between 190 and 200.
    steps = np.arange(0, 400, 10)
    true = 2 * (1 - 0.005) + (195 - steps) / 400
    held = []
    for seed in range(200):
        noise = np.random.default_rng(seed).normal(0, 0.5, 60)  # a person is worse at every step
        low, high = plateau_end_interval(steps, true[:, None] + noise, 2.0, n_resamples=300)
        held.append(low <= 200 <= high)
    assert 0.90 <= np.mean(held) <= 0.99  # ± 3 standard errors of 200 draws, and a coarse grid
