import os
import tracemalloc

import numpy as np
import pytest
import xarray as xr
from scipy.optimize import isotonic_regression
from scipy.stats import binom

from interp.dynamics import emergence as module
from interp.dynamics.emergence import (
    ANY_ORDER,
    DRIFT,
    IN_NOISE,
    NOT_ABOVE,
    TOO_FEW,
    emergence,
    lag_to,
    lags,
    order,
    read_curves,
)

STEPS = np.array([0, 10, 20, 40, 80, 160, 320, 640, 1280, 2560])
RISE = np.array([1, 1, 1, 1, 5, 8, 11, 11, 11, 11.0])
DENSE = np.array([*range(0, 1000, 100), *range(1000, 6501, 500)])
MARKS = ("onset", "midpoint", "completion")


def curve_of(values, steps=STEPS, between="component", labels="abcdefghij", **attrs):
    """(step), (step, fact) or (component, step, fact)."""
    values = np.asarray(values, float)
    dims = {1: ("step",), 2: ("step", "fact"), 3: (between, "step", "fact")}[values.ndim]
    coords = {"step": steps} | ({between: list(labels[: len(values)])} if values.ndim == 3 else {})
    return xr.DataArray(values, dims=dims, coords=coords, attrs=attrs)


def many(values, steps):
    return xr.DataArray(values, dims=("rep", "step", "fact")[: values.ndim], coords={"step": steps})


def logistic(steps, midpoint, scale):
    return 1 / (1 + np.exp(-(steps - midpoint) / scale))


def over_facts(mean, n, spread, seed):
    """``mean`` (step) with facts of different height, and noise in each value."""
    rng = np.random.default_rng(seed)
    height = 1 + 0.3 * rng.normal(size=n)
    return mean[:, None] * height + spread * rng.normal(size=(len(mean), n))


def test_onset_midpoint_and_completion_are_where_interpolation_by_hand_puts_them():
    found = emergence(curve_of(RISE, units="nats"))
    assert found.emerged and found.reason == ""
    assert [float(found[mark]) for mark in MARKS] == pytest.approx([50, 80 + 80 / 3, 160 + 320 / 3])
    assert [float(found[f"resolution_{mark}"]) for mark in MARKS] == [40, 80, 160]
    assert found.rise == 10
    assert (found.rise.units, found.midpoint.units) == ("nats", "steps")


def test_levels_are_means_of_the_plateaus_as_far_as_noise_goes():
    # f = -0.5, 0, 0, 0, 0, 0.5, 20 ...; noise² = 4 / (10 - 4); only 0.5 is further than that.
    found = emergence(curve_of([-0.5, 1, -1, 1, -1, 0.5, 20, 20, 20, 20]))
    assert float(found.rise) == pytest.approx(20.1)
    assert float(found.midpoint) == pytest.approx(160 + 160 * (9.95 - 0.5) / 19.5)


def test_levels_are_less_biased_by_noise_than_the_ends_of_the_fit():
    rng = np.random.default_rng(0)
    noisy = (DENSE > 1200) + 0.1 * rng.normal(size=(40, len(DENSE)))
    ends = [isotonic_regression(y).x[[0, -1]] for y in noisy]
    rise = float(emergence(many(noisy, DENSE)).rise.mean())
    assert np.mean(np.diff(ends)) > 1.09
    assert 1 < rise < 1.06


def test_a_later_small_fall_lowers_the_final_level_and_moves_no_step():
    found = emergence(curve_of([0, 0, 0, 0, 4, 10, 10, 10, 9, 9]))
    assert float(found.rise) == pytest.approx(9.6)
    assert float(found.onset) == pytest.approx(40 + 40 * 0.96 / 4)


def test_a_mark_on_a_checkpoint_belongs_to_the_interval_before_it():
    values = np.array([0, 0, 0, 0, 0.3, 0.5, 1, 1, 1, 1])
    for factor, shift in ((1, 0), (0.1, -3.9), (0.3, 1.3), (3, 1.15), (7, 2.3), (1e-6, 0)):
        found = emergence(curve_of(factor * values + shift))
        assert float(found.midpoint) == pytest.approx(160)
        assert found.resolution_midpoint == 80


def test_a_fall_is_found_when_negated_and_not_otherwise():
    assert emergence(curve_of(-RISE)).reason == IN_NOISE
    assert emergence(-curve_of(-RISE)).midpoint == emergence(curve_of(RISE)).midpoint


@pytest.mark.parametrize(("spread", "n"), [(0.1, 48), (0.6, 96)])
def test_intervals_cover_planted_steps(spread, n):
    steps = np.array([*range(0, 2000, 100), *range(2000, 4001, 250)])
    mean = logistic(steps, 1150, 120)
    reps = np.stack([over_facts(mean, n, spread, seed) for seed in range(40)])
    found = emergence(many(reps, steps), n_resamples=200)
    found = found.sel(rep=found.emerged)
    assert found.sizes["rep"] >= 36
    truth = {share: 1150 + 120 * np.log(share / (1 - share)) for share in (0.1, 0.5, 0.9)}
    for name, value in (*zip(MARKS, truth.values()), ("rise", 1.0)):
        inside = (found[f"{name}_low"] <= value) & (value <= found[f"{name}_high"])
        # interpolation is a few steps off, and the ends a little too far out
        assert inside.mean() > 0.8, name
    for name, widest in (("midpoint", 150), ("rise", 0.3)):
        assert float((found[f"{name}_high"] - found[f"{name}_low"]).mean()) < widest


def test_intervals_cover_planted_steps_when_all_facts_share_noise_between_checkpoints():
    steps = np.array([*range(0, 2000, 100), *range(2000, 4001, 250)])
    noise = 0.03 * np.random.default_rng(0).normal(size=(40, len(steps)))
    mean = logistic(steps, 1150, 120)
    reps = np.stack([over_facts(mean + x, 200, 0.1, seed) for seed, x in enumerate(noise)])
    found = emergence(many(reps, steps), n_resamples=100)
    inside = (found.midpoint_low <= 1150) & (found.midpoint_high >= 1150)
    assert inside.mean() > 0.85  # it is 0.4 over facts alone


def test_without_facts_or_with_one_there_are_no_intervals():
    for values in (RISE, RISE[:, None]):
        found = emergence(curve_of(values))
        assert found.emerged
        assert np.isnan([found[f"{mark}_{end}"] for mark in MARKS for end in ("low", "high")]).all()
        assert np.isnan([found.rise_low, found.rise_high]).all()


def test_one_sample_takes_memory_for_its_steps_only():
    steps = np.arange(100_000)
    noise = curve_of(np.random.default_rng(0).normal(size=len(steps)), steps)
    assert peak_memory(lambda: emergence(noise)) < 100e6  # 1000 resamples are 800 MB


def test_permutations_take_memory_for_one_of_them_only(monkeypatch):
    monkeypatch.setattr(module, "N_PERMUTATIONS", 99)
    monkeypatch.setattr(module, "P_ORDER", 0.1)
    curve = np.linspace(0, 1, 5000)
    assert peak_memory(lambda: module._why_not(curve, curve, 0)) < 1e6  # all of them are 4 MB


def peak_memory(compute):
    tracemalloc.start()
    compute()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_permutations_stop_early_only_where_the_answer_is_certain(monkeypatch):
    """Against all of them at once, with the same seed."""
    monkeypatch.setattr(module, "N_PERMUTATIONS", 199)
    rng, said = np.random.default_rng(0), []
    for seed in range(40):
        curve = np.linspace(0, rng.uniform(0, 1.5), 9) + rng.normal(0, 0.3, 9)
        shuffled = np.random.default_rng(seed).permuted(np.tile(curve, (199, 1)), axis=1)
        left = [((y - isotonic_regression(y).x) ** 2).sum() for y in (curve, *shuffled)]
        expected = np.mean(left <= left[0] + 1e-9 * curve.var()) < module.P_ORDER
        assert module._is_ordered(curve, seed) == expected
        said.append(expected)
    assert 3 < sum(said) < 37


def test_a_curve_in_no_order_is_given_up_after_a_few_permutations(monkeypatch):
    asked = []
    remainder = module._remainder
    monkeypatch.setattr(module, "_remainder", lambda y: asked.append(0) or remainder(y))
    assert not module._is_ordered(np.linspace(1, 0, 50), 0)
    assert len(asked) == 10


NEGATIVES = {
    "flat": (np.zeros(22), 0, {IN_NOISE, NOT_ABOVE}),
    "risen at the first checkpoint": (np.ones(22), 0, {IN_NOISE, NOT_ABOVE}),
    "white noise": (np.zeros(22), 0.1, {IN_NOISE, NOT_ABOVE}),
    "linear drift": (DENSE / 6500, 0.05, {DRIFT}),
    "root drift": (np.sqrt(DENSE / 6500), 0.05, {DRIFT}),
    "up and down again": (
        np.where((DENSE > 600) & (DENSE < 3500), 1.0, 0),
        0.02,
        {IN_NOISE, NOT_ABOVE},
    ),
    "up at the last checkpoint": (np.where(DENSE == 6500, 1.0, 0), 0.02, {ANY_ORDER}),
}


@pytest.mark.parametrize("facts", [0, 32])
@pytest.mark.parametrize("name", NEGATIVES)
def test_what_is_no_step_is_not_claimed_and_why_is_said(name, facts):
    mean, noise, reasons = NEGATIVES[name]
    values = mean + noise * np.random.default_rng(1).normal(size=len(DENSE))
    values = over_facts(values, facts, 0.02, 1) if facts else values
    found = emergence(curve_of(values, DENSE), n_resamples=200)
    assert not found.emerged
    assert found.reason.item() in reasons
    assert np.isnan(
        [found[f"{mark}{end}"] for mark in MARKS for end in ("", "_low", "_high")]
    ).all()
    assert np.isnan([found[f"resolution_{mark}"] for mark in MARKS]).all()


def test_facts_that_stay_where_they_are_are_no_rise():
    still = np.random.default_rng(0).normal(size=(1, 192)).repeat(len(DENSE), 0)
    found = emergence(curve_of(still, DENSE))
    assert found.reason == NOT_ABOVE
    assert abs(found.rise) < 1e-12 and abs(found.rise_high) < 1e-12


def test_noise_over_facts_alone_is_no_rise():
    noise = 3 + np.random.default_rng(0).normal(size=(20, len(DENSE), 64))
    found = emergence(many(noise, DENSE), n_resamples=200)
    assert (found.reason == NOT_ABOVE).sum() >= 18
    assert not found.emerged.any()


def test_facts_that_wander_each_its_own_way_seldom_make_a_step():
    walks = np.cumsum(np.random.default_rng(0).normal(size=(60, len(DENSE), 24)), 1)
    found = emergence(many(walks, DENSE), n_resamples=200)
    above = (found.rise_low > 0).sum()
    assert 0 < above <= binom.ppf(0.999, 60, 0.05)  # 0.025, and more for the bootstrap of 24 facts
    assert found.emerged.sum() <= 2


def test_white_noise_emerges_at_most_as_often_as_stated():
    noise = np.random.default_rng(0).normal(size=(200, len(DENSE)))
    assert emergence(many(noise, DENSE)).emerged.sum() <= binom.ppf(0.999, 200, module.P_ORDER)


def test_the_order_of_checkpoints_alone_keeps_its_level(monkeypatch):
    monkeypatch.setattr(module, "NOISES", 0)
    monkeypatch.setattr(module, "WIDEST", 9)
    noise = np.random.default_rng(0).normal(size=(120, len(STEPS)))
    found = emergence(many(noise, STEPS))
    assert (found.reason == ANY_ORDER).sum() > 40
    assert found.emerged.sum() <= binom.ppf(0.999, 120, module.P_ORDER)


def test_a_step_in_noise_of_a_twentieth_is_nearly_always_found():
    step = logistic(DENSE, 2200, 150)
    noise = 0.05 * np.random.default_rng(0).normal(size=(25, len(DENSE)))
    assert emergence(many(step + noise, DENSE)).emerged.sum() >= 23


def test_eight_checkpoints_are_enough_with_one_on_the_rise_and_not_for_a_jump():
    steps = STEPS[:8]
    rising, jump = ([0, 0, 0, 0, 0.5, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1, 1])
    emerged = [
        sum(int(emergence(curve_of(curve, steps), seed=seed).emerged) for seed in range(8))
        for curve in (rising, jump)
    ]
    assert emerged[0] == 8 and emerged[1] <= 2  # p = 1/280 and 1/70, over random permutations
    with pytest.raises(ValueError, match="7 steps; give at least 8"):
        emergence(curve_of(np.arange(7), STEPS[:7]))


def test_width_is_measured_in_steps_and_not_in_checkpoints():
    values = [0, 0, 0, 0, 0, 0, 0.2, 0.5, 0.9, 1]
    assert emergence(curve_of(values, np.arange(10))).emerged
    assert emergence(curve_of(values)).emerged
    assert emergence(curve_of([0, 0, 0, 0, 0, 0.05, 0.2, 0.3, 0.5, 1])).reason == DRIFT


def test_undefined_checkpoints_are_left_out_of_their_component_only():
    facts = over_facts(RISE, 16, 0.01, 0)
    late = facts.copy()
    late[:2] = np.nan
    found = emergence(curve_of([facts, late]), n_resamples=100)
    alone = emergence(curve_of(facts[2:], STEPS[2:]), n_resamples=100)
    assert found.sel(component="b", drop=True).equals(alone)
    assert not found.sel(component="a", drop=True).equals(alone)


def test_a_component_with_too_few_defined_checkpoints_says_so_beside_one_that_emerges():
    few = np.where(STEPS[:, None] < 40, np.nan, RISE[:, None]).repeat(4, 1)
    found = emergence(curve_of([few, RISE[:, None].repeat(4, 1)]), n_resamples=50)
    assert found.reason.values.tolist() == [TOO_FEW, ""]
    assert np.isnan(found.midpoint[0]) and found.midpoint[1] > 0


def test_the_mean_is_over_the_facts_that_have_a_value():
    facts = RISE[:, None].repeat(12, 1)
    gaps = facts.copy()
    gaps[0, :11] = gaps[5, :6] = np.nan  # a third of the resamples has no fact at step 0
    assert emergence(curve_of(gaps)).equals(emergence(curve_of(facts)))


def test_a_checkpoint_of_which_a_resample_has_no_fact_is_left_out_of_that_resample():
    facts = RISE[:, None].repeat(4, 1)
    facts[4, 1:] = np.nan  # without step 80, 1 at step 40 and 8 at step 160 are all there is
    found = emergence(curve_of(facts), n_resamples=100)
    assert float(found.midpoint) == float(found.midpoint_low) == pytest.approx(80 + 80 / 3)
    assert float(found.midpoint_high) == pytest.approx(40 + 120 * 5 / 7)


def test_further_dims_keep_their_place_and_labels():
    later = np.concatenate([RISE[:1], RISE[:-1]])
    values = np.stack([[RISE, later, np.zeros(10)], [later, RISE, RISE]])
    curve = xr.DataArray(
        values[..., None].repeat(3, -1),
        dims=("component", "job", "step", "fact"),
        coords={"step": STEPS, "component": ["L0H1", "L2"], "job": [3, 5, 8]},
    )
    found = emergence(curve.transpose("fact", "job", "step", "component"), n_resamples=20)
    assert dict(found.sizes) == {"component": 2, "job": 3}
    first, then = float(emergence(curve_of(RISE)).onset), float(emergence(curve_of(later)).onset)
    assert found.onset.sel(component="L0H1", job=[3, 5]).values.tolist() == [first, then]
    assert found.onset.sel(component="L2").values.tolist() == [then, first, first]
    assert found.emerged.sel(component="L0H1").values.tolist() == [True, True, False]


def test_adding_a_constant_or_scaling_changes_no_step_and_permuting_facts_no_estimate():
    curve = curve_of(over_facts(logistic(DENSE, 900, 90), 24, 0.3, 0), DENSE)
    found = emergence(curve, n_resamples=100)
    assert found.emerged
    moved = emergence(4 * curve + 7, n_resamples=100)
    xr.testing.assert_allclose(
        moved.drop_vars(["rise", "rise_low", "rise_high"]),
        found[[*moved]].drop_vars(["rise", "rise_low", "rise_high"]),
        rtol=1e-6,
    )
    assert float(moved.rise_low) == pytest.approx(4 * float(found.rise_low))
    permuted = emergence(curve.isel(fact=np.random.default_rng(0).permutation(24)), n_resamples=100)
    for name in (*MARKS, "rise"):
        assert float(permuted[name]) == pytest.approx(float(found[name]))


def test_a_curve_has_the_same_interval_alone_and_among_others():
    shared = 0.2 * np.random.default_rng(1).normal(
        size=(4, len(DENSE), 1)
    )  # so that noise is added
    heights = [over_facts(logistic(DENSE, at, 90), 24, 0.1, at) for at in (900, 1500, 700, 2500)]
    curve = curve_of(np.stack(heights) + shared, DENSE)
    among = emergence(curve, n_resamples=100)
    assert among.emerged.sum() >= 3
    for label in curve.component.values[::-1]:
        alone = emergence(curve.sel(component=label, drop=True), n_resamples=100)
        xr.testing.assert_allclose(among.sel(component=label, drop=True), alone, rtol=1e-9)
        two = emergence(curve.sel(component=[label, "b"]), n_resamples=100)
        xr.testing.assert_allclose(two.isel(component=[0]), among.sel(component=[label]), rtol=1e-9)


def test_a_lag_is_the_same_whatever_third_curve_there_is_and_noise_is_each_curves_own():
    noise = 0.03 * np.random.default_rng(1).normal(size=(3, len(DENSE), 1))
    curve = curve_of(logistic(DENSE, 900, 90)[:, None] + noise + np.zeros((3, 1, 24)), DENSE)
    three, two = (lags(x, between="component") for x in (curve, curve[[2, 0]]))
    pair = {"earlier": "a", "later": "c"}
    for name in ("lag", "lag_low", "lag_high", "probability"):
        assert float(three[name].sel(pair)) == pytest.approx(float(two[name].sel(pair)))
    # Facts are all alike, so that all that varies is noise: independent, it adds up.
    lag, found = three.sel(pair), emergence(curve)
    widths = (found.midpoint_high - found.midpoint_low).sel(component=["a", "c"]).values
    together = float(lag.lag_high - lag.lag_low)
    assert together == pytest.approx(np.hypot(*widths), rel=0.25)


def test_the_seed_decides_and_the_callers_random_stream_is_untouched():
    curve = curve_of(over_facts(RISE, 16, 0.3, 0))
    state = np.random.get_state()[1].tolist()
    first, again, other = (emergence(curve, n_resamples=50, seed=seed) for seed in (1, 1, 2))
    assert first.equals(again) and not first.equals(other)
    assert np.random.get_state()[1].tolist() == state


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            lambda c: c.rename(step="time"),
            {},
            "dims \\['time'\\] beside fact; give it \\['step'\\]",
        ),
        (lambda c: c.assign_coords(step=STEPS[::-1]), {}, "step 1280 comes after step 2560; sort"),
        (lambda c: c.where(c.step != 20, np.inf), {}, "infinite values"),
        (
            lambda c: c.assign_coords(step=np.where(STEPS > 640, np.nan, STEPS)),
            {},
            "finite numbers",
        ),
        (lambda c: c, {"confidence": 95.0}, "confidence=95.0 and n_resamples=1000 give no"),
        (lambda c: c, {"n_resamples": 0}, "n_resamples=0"),
    ],
)
def test_what_cannot_be_analysed_is_named(change, options, message):
    with pytest.raises(ValueError, match=message):
        emergence(change(curve_of(RISE[:, None].repeat(3, 1))), **options)


JUMPS = {at: np.where(at > STEPS, 0, 1.0) for at in (40, 160, 640)}


def jumps(*places, n=20, spread=0.05):
    return np.stack([over_facts(JUMPS[at], n, spread, i) for i, at in enumerate(places)])


def test_a_lag_is_positive_when_the_later_one_comes_later():
    found = lags(curve_of(np.stack([JUMPS[160], JUMPS[40]])[..., None]), between="component")
    # jumps between 80 and 160, and between 20 and 40
    assert found.lag.sel(earlier="b", later="a") == 90
    assert found.lag.sel(earlier="a", later="b") == -90
    assert found.lag.sel(earlier="a", later="a") == 0
    assert found.resolved.values.tolist() == [[False, True], [True, False]]
    assert np.isnan(found.p_value).all()  # one fact


def test_neighbouring_checkpoint_intervals_tell_two_midpoints_apart():
    curve = curve_of(np.stack([np.where(at > STEPS, 0, 1.0) for at in (160, 320)])[..., None])
    assert lags(curve, between="component").resolved.sel(earlier="a", later="b")


def test_lags_come_with_paired_intervals_probabilities_and_p_values():
    curve = curve_of(jumps(160, 40, 640))
    found = lags(curve, between="component", n_resamples=199)
    forward, back = (found.sel(earlier=x, later=y) for x, y in (("b", "a"), ("a", "b")))
    assert forward.lag_low <= forward.lag <= forward.lag_high
    assert (forward.lag_low, forward.lag_high) == (-back.lag_high, -back.lag_low)
    assert (forward.probability, back.probability) == (1, 0)
    assert float(forward.p_value) == float(back.p_value) == pytest.approx(3 * 2 / 200)


def test_a_copy_has_a_lag_of_0_in_every_resample():
    one = RISE[:, None] * np.random.default_rng(0).uniform(0.5, 1.5, size=24)
    one[3] += one[4] / 5  # so that the heights of facts move the midpoint
    pair = lags(curve_of([one, one]), between="component").sel(earlier="a", later="b")
    assert (pair.lag, pair.lag_low, pair.lag_high, pair.probability) == (0, 0, 0, 0)
    assert pair.p_value == 1 and not pair.resolved


def test_what_did_not_emerge_has_no_lag_and_is_no_test():
    values = np.concatenate([jumps(40, 160), np.zeros((1, 10, 20))])
    found = lags(curve_of(values), between="component", n_resamples=199)
    for name in ("lag", "lag_low", "lag_high", "probability", "p_value"):
        assert np.isnan(found[name].sel(later="c")).all() and np.isnan(found[name][2]).all()
    assert not found.resolved.sel(later="c").any()
    assert float(found.p_value.sel(earlier="a", later="b")) == pytest.approx(2 / 200)


def test_p_values_are_adjusted_by_holm():
    at = np.zeros(
        (3, 101)
    )  # of 100 resamples, b comes before a in 1, c before a in 0, c before b in 4
    at[1, 1:], at[2, 1:] = 5, 9
    at[1, 1], at[2, 2:6] = -1, 4
    found = xr.Dataset(
        {
            "at": (("x", "mark", "resample"), at[:, None]),
            "before": (("x", "mark"), np.zeros((3, 1))),
            "after": (("x", "mark"), np.ones((3, 1))),
        },
        {"x": list("abc"), "mark": ["midpoint"]},
    )
    p = module._lags(found, "x", 0.95).p_value
    raw = {"ac": 2 / 101, "ab": 4 / 101, "bc": 10 / 101}
    for pair, value in zip(raw, (3 * raw["ac"], 2 * raw["ab"], raw["bc"])):
        assert float(p.sel(earlier=pair[0], later=pair[1])) == pytest.approx(value)


def test_lags_want_one_dim_beside_step_and_fact():
    curve = curve_of(jumps(40, 160))
    with pytest.raises(ValueError, match="the dims \\['component', 'step'\\] beside fact; give"):
        lags(curve, between="job")
    with pytest.raises(ValueError, match="give it \\['component', 'step'\\]"):
        lags(curve.expand_dims("job"), between="component")


def test_a_planted_order_is_found():
    found = order(curve_of(jumps(640, 40, 160)), between="component", n_resamples=199)
    assert found.labels == ("b", "c", "a")
    assert found.share == 1 and found.significant
    assert found.p_values == pytest.approx((6 / 200, 6 / 200))


@pytest.mark.parametrize(("own", "shared"), [(0.3, 0), (0.05, 0.04)])
def test_identical_components_with_noise_of_their_own_are_in_no_significant_order(own, shared):
    significant, p_values = [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        noise = own * rng.normal(size=(3, 22, 32)) + shared * rng.normal(size=(3, 22, 1))
        curve = curve_of(logistic(DENSE, 750, 150)[:, None] + noise, DENSE)
        found = order(curve, between="component", n_resamples=199)
        assert len(found.labels) > 1 and found.share < 1
        significant.append(found.significant)
        p_values.append(min(found.p_values))
    assert sum(significant) <= 1
    assert np.mean(np.array(p_values) < 0.05) < 0.3


def test_an_order_within_one_checkpoint_interval_is_not_significant():
    values = np.stack([JUMPS[160], JUMPS[160]])[..., None].repeat(12, -1)
    values[0, 4], values[1, 4] = 0.4, 0.2
    curve = curve_of(values)
    pair = lags(curve, between="component").sel(earlier="a", later="b")
    assert pair.lag > 0 and pair.p_value < 0.01 and not pair.resolved
    found = order(curve, between="component")
    assert found.labels == ("a", "b") and not found.significant


def test_an_order_leaves_out_what_did_not_emerge():
    values = np.concatenate([jumps(640), np.zeros((1, 10, 20)), jumps(40)])
    found = order(curve_of(values), between="component", n_resamples=99)
    assert found.labels == ("c", "a") and found.significant
    nothing = order(curve_of(np.zeros((2, 10, 20))), between="component", n_resamples=99)
    assert nothing.labels == () and not nothing.significant and np.isnan(nothing.share)


def test_an_order_without_facts_is_that_of_the_midpoints_and_not_significant():
    curve = curve_of(np.stack([JUMPS[640], JUMPS[40]])[..., None]).isel(fact=0)
    found = order(curve, between="component")
    assert found.labels == ("b", "a")
    assert np.isnan(found.share) and not found.significant


def test_too_few_resamples_for_so_many_pairs_are_refused():
    with pytest.raises(
        ValueError, match="3 pairs can't be significant with n_resamples=100; give 119"
    ):
        order(curve_of(jumps(40, 160, 640)), between="component", n_resamples=100)


def test_a_lag_to_a_reference_is_positive_after_it():
    curve = curve_of(RISE[:, None].repeat(6, 1))
    midpoint = 80 + 80 / 3
    for reference, resolved in ((60, True), (80, True), (100, False), (160, False), (170, True)):
        found = lag_to(curve, reference, n_resamples=20)
        assert float(found.lag) == pytest.approx(midpoint - reference)
        assert float(found.lag_low) == float(found.lag_high) == pytest.approx(midpoint - reference)
        assert found.resolved == resolved
    with pytest.raises(ValueError, match="the reference is step nan"):
        lag_to(curve, float("nan"))
    nowhere = lag_to(0 * curve, 100, n_resamples=20)
    assert np.isnan(nowhere.lag) and not nowhere.resolved


def test_a_csv_comes_back_as_the_curves_written(tmp_path):
    curve = curve_of(
        np.random.default_rng(0).normal(size=(3, 10, 2)), between="curve", labels="zab"
    )
    curve = curve.assign_coords(fact=["p", "q"])
    table = curve.to_dataframe("value").reset_index()
    table.loc[3, "value"] = np.nan
    table.sample(frac=1, random_state=0).sort_values("curve", key=lambda x: x != "z").to_csv(
        tmp_path / "curves.csv", index=False
    )
    read = read_curves(tmp_path / "curves.csv")
    assert read.dims == ("curve", "step", "fact")
    assert read.curve.values[0] == "z"  # in the order of the file
    assert np.isnan(read.sel(curve="z", step=10, fact="q"))
    xr.testing.assert_allclose(
        read.fillna(0), curve.where(curve != curve[0, 1, 1], 0).sel(curve=read.curve)
    )


def test_a_csv_of_steps_and_values_is_one_curve(tmp_path):
    rows = [f"{step},{value}" for step, value in zip(STEPS, RISE)]
    (tmp_path / "one.csv").write_text("\n".join(["step,value", *rows[::-1]]))
    read = read_curves(tmp_path / "one.csv")
    assert read.dims == ("step",)
    assert emergence(read).equals(emergence(curve_of(RISE)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step,loss\n1,2\n", "{path} has no column value but 'step', 'loss'"),
        ("step;value\n1;2\n", "{path} has its fields separated by semicolons; save it with commas"),
        ("step,value\n", "{path} holds no rows"),
        ("", "{path} is empty"),
        ("step,value,value\n1,2,3\n", "{path} has a column 'value' 2 times"),
        ("step,value,seed\n1,2,0\n1,3,1\n", "{path} has a column 'seed', which is not understood"),
        ("step,value\n1,2,3\n", "{path}, row 1: 3 fields under 2 columns"),  # pandas: step 2
        ("step,value\n1,2\n2\n", "{path}, row 2: 1 fields under 2 columns"),
        ("step,value\n\n\n1,x\n", "{path}, row 3: value is 'x'"),  # blank rows count
        ("step,value\n1,1e400\n", "{path}, row 1: value is '1e400'; write a number"),
        ("step,value\n1,nan\n", "{path}, row 1: value is 'nan'; write a number"),
        ("step,value\n0x10,1\n", "{path}, row 1: step is '0x10'; write a number"),
        ("step,value\n1_000,1\n", "{path}, row 1: step is '1_000'; write a number"),
        ("step,value\nTrue,1\n", "{path}, row 1: step is 'True'; write a number"),
        ("step,value\n9007199254740993,1\n", "{path}, row 1: step is '9007199254740993'; steps"),
        ("step,value\n0,1\n-0,1\n", "{path}, row 2: step -0 again"),
        ("step,value\n1,2\n\0,3\n", "{path}, line 3: a NUL byte"),
        ("step,value\n1,\udcff\n", "{path}, line 2: byte 0xff is not UTF-8"),
        ('step,value\n1,"2\n', "{path}, line 2: can't be read as a CSV"),
        ("curve,step,value\n,1,2\n", "{path}, row 1: no curve; write its label"),
        ("step,value\n1,2\n2,n/a\n", "{path}, row 2: value is 'n/a'; write a number"),
        ("step,value\n1,2\n,3\n", "{path}, row 2: step is ''; write a number"),
        ("step,value\n1,inf\n", "{path}, row 1: value is 'inf'; write a number"),
        (
            "curve,step,value\na,1,2\nb,1,2\nb,1,3\n",
            "{path}, row 3: curve b, step 1 again; name samples in a column fact",
        ),
    ],
)
def test_a_csv_that_is_no_curve_is_refused_with_its_path_and_row(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError) as error:
        read_curves(path)
    assert str(error.value).startswith(message.format(path=path))
    assert "\n" not in str(error.value)


def test_a_csv_as_spreadsheets_write_it_is_read(tmp_path):
    text = '\ufeff"step","value"\r\n"-1.5","1e-3"\r\n\r\n"2"," +.5 "\r\n3,\r\n'
    (tmp_path / "sheet.csv").write_bytes(text.encode())
    read = read_curves(tmp_path / "sheet.csv")
    assert read.step.values.tolist() == [-1.5, 2, 3]
    np.testing.assert_array_equal(read, [0.001, 0.5, np.nan])


def test_curves_that_share_no_steps_are_refused_before_they_fill_memory(tmp_path):
    rows = [f"{i},{i},1" for i in range(4000)]  # 16 million cells
    (tmp_path / "sparse.csv").write_text("\n".join(["curve,step,value", *rows]))
    with pytest.raises(
        ValueError, match="4000 rows for 4000 curves × 4000 steps; give curves that"
    ):
        read_curves(tmp_path / "sparse.csv")


@pytest.mark.parametrize("kind", ["folder", "fifo"])
def test_what_is_no_file_is_refused_and_does_not_hang(tmp_path, kind):
    path = tmp_path / "curves.csv"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(ValueError, match=r"curves\.csv is not a regular file; give a CSV"):
        read_curves(path)


def test_a_csv_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.csv; give a CSV"):
        read_curves(tmp_path / "none.csv")
