"""The rule for mechanisms and its tests, on made-up effects."""

import numpy as np
import pytest
import xarray as xr
from builders import one_result

from interp.localization.mechanisms import by_attribute, mechanisms
from interp.results.metrics import interval
from interp.statistics import format_p, share_interval


def made_up(effect, control, gap, role="extraction"):
    """Cells with given effects, all of one attribute."""
    n_cells, n = effect.shape
    names = [f"L{i}H0" if role != "memory" else f"L{i} MLP" for i in range(n_cells)]
    place = "final" if role == "memory" else "final ← names"
    cell = {
        "component": names,
        "role": [role] * n_cells,
        "place": [place] * n_cells,
        "kind": ["mlp" if role == "memory" else "head"] * n_cells,
    }
    return xr.Dataset(
        {
            "effect": (("cell", "fact"), effect),
            "control": (("cell", "fact"), control),
            "clean": ("fact", gap),
            "corrupted": ("fact", np.zeros(n)),
        },
        {name: ("cell", x) for name, x in cell.items()} | {"attribute": ("fact", ["a"] * n)},
    )


def test_shares_are_of_the_mean_gap_and_all_conditions_must_hold():
    rng, n = np.random.default_rng(0), 100
    noise = rng.normal(0, 0.1, (4, n))
    noise -= noise.mean(1, keepdims=True)
    mean = np.array([[2.0], [0.1], [2.0], [0.0]])
    control = np.array([[0.0], [0.0], [2.0], [0.0]]) + noise[::-1]
    table = mechanisms(made_up(mean + noise, control, np.full(n, 4.0)))
    whole = table[table.attribute == "all"]
    np.testing.assert_allclose(whole.share, [0.5, 0.025, 0.5, 0.0], atol=1e-6)
    # enough; too little; no more than its control; nothing
    assert whole.named.tolist() == [True, False, False, False]
    gap = rng.normal(0, 4, n)
    assert not mechanisms(made_up(mean + noise, control, gap - gap.mean())).named.any()
    unread = made_up(mean + noise, control, np.full(n, 4.0), role="memory")
    assert not mechanisms(unread).named.any()
    gain = xr.DataArray(
        np.stack([rng.random((1, n)) < 0.5, np.zeros((1, n), bool)]).astype(float),
        dims=("layer", "role", "fact"),
        coords={"layer": [0, 1], "role": ["final"], "attribute": ("fact", ["a"] * n)},
    )
    whole = mechanisms(unread, gain)
    assert whole[whole.attribute == "all"].named.tolist() == [True, False, False, False]


def test_a_mark_inside_an_interval_makes_a_component_borderline():
    """Standard errors are 0.01 of the gap: intervals reach 0.02 to either side of a share."""
    rng, n = np.random.default_rng(0), 100
    noise = rng.normal(0, 1, (4, n))
    noise = 0.1 * (noise - noise.mean(1, keepdims=True)) / noise.std(1, keepdims=True)
    share = np.array([[0.09], [0.06], [0.04], [0.02]])
    needed = made_up(4 * (share + noise), 0 * noise, np.full(n, 4.0))
    whole = mechanisms(needed).query("attribute == 'all'")
    assert whole.named.tolist() == [True, False, False, False]
    assert whole.borderline.tolist() == [False, True, True, False]
    normal = [1.0, 0.841, 0.159, 0.001]  # of a normal distribution, above 0.05
    np.testing.assert_allclose(whole.stability, normal, atol=0.04)  # of 1,000 resamples ± 0.012


@pytest.mark.parametrize(
    ("n_read", "named", "borderline"), [(400, True, False), (62, False, True), (30, False, False)]
)
def test_a_memory_makes_enough_values_readable(n_read, named, borderline):
    """Of 1,000 facts; at 0.062 and 0.03 the interval reaches 0.015 and 0.011 to either side."""
    n = 1000
    needed = made_up(np.full((1, n), 2.0), np.zeros((1, n)), np.full(n, 4.0), role="memory")
    needed["effect"] = needed.effect + np.random.default_rng(0).normal(0, 0.1, (1, n))
    gain = xr.DataArray(
        (np.arange(n) < n_read).astype(float)[None, None],
        dims=("layer", "role", "fact"),
        coords={"layer": [0], "role": ["final"], "attribute": ("fact", ["a"] * n)},
    )
    whole = mechanisms(needed, gain).query("attribute == 'all'").iloc[0]
    assert whole.gain_p < 1e-6 and whole.gain == pytest.approx(n_read / n)
    assert (whole.named, whole.borderline) == (named, borderline)


def test_components_that_do_nothing_are_rarely_named():
    """100 models of 20 components whose effects and controls are noise: 5 % of models may err."""
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(100):
        effect, control = rng.normal(0.5, 2, (2, 20, 60))
        wrong += (
            mechanisms(made_up(effect, control, rng.normal(4, 1, 60)))
            .query("attribute == 'all'")
            .named.any()
        )
    assert wrong <= 12  # P(more | 5 %) < 0.002


def of_two_attributes(shares, gaps, *, n=60, seed=0):
    """Facts of a and b; cell i has ``shares[i]`` (of a, of b) of gaps ``gaps``, and noise."""
    attribute = np.repeat(["a", "b"], [n, 2 * n])
    gap = np.where(attribute == "a", *gaps)
    share = np.where(attribute == "a", *np.array(shares, float).T[..., None])
    noise = np.random.default_rng(seed).normal(0, 0.4, share.shape)
    noise *= np.where(attribute == "a", 1.0, 0.3)  # spread is no difference of means
    made = made_up(gap * (share + noise), gap * np.zeros_like(share), gap)
    return made.assign_coords(attribute=("fact", attribute))


def test_a_head_for_one_attribute_is_told_from_one_for_all():
    needed = of_two_attributes([(0.6, 0.1), (0.4, 0.4)], (8.0, 2.0))
    found = by_attribute(needed, n_shuffles=999).set_index("component")
    assert list(found.index) == ["L0H0", "L1H0"]
    one = found.loc["L0H0"]
    assert (one.most, one.least) == ("a", "b") and one.p < 0.01
    assert (one.most_share, one.least_share) == pytest.approx((0.6, 0.1), abs=0.15)
    assert found.p["L1H0"] > 0.05  # as large a share of a larger gap
    assert by_attribute(needed.isel(fact=range(60))).p.isna().all()
    needed["effect"][1] = needed["control"][1] = 0.0  # cut or not, it is the same
    assert by_attribute(needed, n_shuffles=199).p[1] == 1


def test_heads_for_all_attributes_are_rarely_said_to_be_for_one():
    """Whether their share is large, or so small that only chance brings it above the mark."""
    wrong = 0
    for seed in range(100):
        needed = of_two_attributes([(0.5, 0.5), (0.03, 0.03)] * 2, (8.0, 2.0), n=25, seed=seed)
        wrong += (by_attribute(needed, n_shuffles=199, seed=seed).p < 0.05).any()
    assert wrong <= 12  # P(more | 5 %) < 0.002


def test_the_interval_of_a_components_share_is_that_of_any_share():
    """The gap varies between facts, and the effect with it: both are resampled together."""
    rng = np.random.default_rng(0)
    gap = rng.normal(4, 2, 80)
    effect = 0.5 * gap + rng.normal(0, 0.2, (3, 80))
    table = mechanisms(made_up(effect, 0 * effect, gap)).query("attribute == 'all'")
    low, high = share_interval(effect, gap)
    np.testing.assert_allclose(table[["low", "high"]], np.stack([low, high], 1), rtol=1e-12)
    result = one_result(effect[:, None], gap, 0 * gap)
    as_patched = interval(result).isel(role=0)
    np.testing.assert_allclose(table.low, as_patched.low, atol=1e-5)
    np.testing.assert_allclose(table.high, as_patched.high, atol=1e-5)


def test_a_permutations_p_comes_with_the_least_that_so_many_shuffles_can_give():
    needed = of_two_attributes([(0.9, 0.1), (0.4, 0.4)], (8.0, 8.0))
    found = by_attribute(needed, n_shuffles=199)
    assert found.p_floor.tolist() == [2 / 200] * 2  # of two tests
    assert format_p(found.p[0], found.p_floor[0]) == "≤ 0.010"
    assert format_p(found.p[1], found.p_floor[1]) == f"{found.p[1]:.3f}"
    assert by_attribute(needed.isel(fact=range(60))).p_floor.isna().all()


def test_an_attribute_of_one_fact_is_not_compared():
    needed = of_two_attributes([(0.9, 0.1)], (8.0, 8.0))
    lonely = needed.isel(fact=range(60)).assign_coords(attribute=("fact", ["c"] + ["a"] * 59))
    found = by_attribute(
        xr.concat([lonely, needed.isel(fact=range(60, 180))], "fact"), n_shuffles=99
    )
    assert {found.most[0], found.least[0]} == {"a", "b"}
