import itertools

import numpy as np
import pytest

from interp.results.weight_drift import (
    misplaced,
    off_the_path,
    shortest_order,
    similarities,
)

STEPS = (0, 100, 200, 300, 400, 500, 600, 700)


def random_walk(n=8, size=0.3, seed=0, width=20_000):
    """Unit vectors as ``weight_drift`` makes them of n checkpoints."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(width) + size * rng.standard_normal((n, width)).cumsum(0)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def said(x, steps=STEPS):
    return off_the_path(steps, x @ x.T)


def distances(points):
    points = np.asarray(points, dtype=float)
    return np.abs(points[:, None] - points[None])


def test_similarity_is_the_mean_correlation_of_matrices_that_all_steps_have():
    samples = {
        0: {"a": np.array([3.0, 4.0]), "b": np.array([1.0, 0.0]), "c": np.ones(3)},
        7: {"a": np.array([4.0, 3.0]), "b": np.array([0.0, -2.0]), "c": np.ones(4)},
    }
    found = similarities(samples)
    assert found[0, 1] == pytest.approx((24 / 25 + 0) / 2) and found[0, 0] == pytest.approx(1)
    for of in samples.values():
        of["b"] = -of["b"]
    assert np.allclose(similarities(samples), found)
    samples[7]["a"] = -samples[7]["a"]
    assert similarities(samples)[0, 1] == pytest.approx(-24 / 50)


def test_a_matrix_of_zeros_correlates_with_nothing():
    samples = {0: {"a": np.zeros(3)}, 1: {"a": np.ones(3)}}
    assert similarities(samples)[0, 1] == 0


@pytest.mark.parametrize("seed", range(5))
def test_a_random_walk_is_in_line(seed):
    assert said(random_walk(seed=seed)) == []


def test_a_straight_line_and_uneven_strides_are_in_line():
    rng = np.random.default_rng(0)
    one, two = rng.standard_normal((2, 5000))
    for places in (np.linspace(0, 1, 8), np.geomspace(1e-3, 1, 8), np.cumsum([1, 9] * 4) / 40):
        x = one + places[:, None] * two
        assert said(x / np.linalg.norm(x, axis=1, keepdims=True)) == []


def test_weights_that_stand_still_but_for_noise_are_in_line():
    rng = np.random.default_rng(0)
    for noise in (np.full(8, 0.3), np.linspace(0.5, 0.01, 8)):
        x = rng.standard_normal(20_000) + noise[:, None] * rng.standard_normal((8, 20_000))
        assert said(x / np.linalg.norm(x, axis=1, keepdims=True)) == []


def test_a_rate_that_rises_and_falls_between_checkpoints_is_the_stated_false_alarm():
    rng = np.random.default_rng(0)
    noise = np.array([0.1, 0.1, 0.1, 0.6, 0.1, 0.1, 0.1, 0.1])
    x = rng.standard_normal(20_000) + noise[:, None] * rng.standard_normal((8, 20_000))
    (found,) = said(x / np.linalg.norm(x, axis=1, keepdims=True))
    assert found.steps == (300,) and found.why.startswith("misplaced")


@pytest.mark.parametrize(("i", "j"), list(itertools.combinations(range(8), 2))[:-1])
def test_two_steps_in_each_others_place_are_named(i, j):
    x = random_walk()
    x[[i, j]] = x[[j, i]]
    (found,) = said(x)
    assert found.steps == (STEPS[i], STEPS[j])
    assert found.why.endswith(f"in the order {STEPS[j]}, {STEPS[i]}")


@pytest.mark.parametrize("seed", range(20))
def test_shuffled_steps_do_not_go_unnoticed(seed):
    assert said(random_walk()[np.random.default_rng(seed).permutation(8)])


@pytest.mark.parametrize("places", [[0], [3], [7], [3, 4], [0, 1], [2, 6]])
def test_steps_of_another_run_are_named_together(places):
    x, other = random_walk(), random_walk(seed=9)
    x[places] = other[places]
    (found,) = said(x)
    assert found.steps == tuple(STEPS[i] for i in places)
    assert found.why.startswith("of another run: correlation with the other steps is 0.0")


@pytest.mark.parametrize(("i", "j"), [(2, 3), (1, 1), (3, 3), (2, 4)])
def test_steps_that_hold_weights_of_another_time_are_named(i, j):
    x, steps = random_walk(14, size=0.2), range(0, 1400, 100)
    noise = np.random.default_rng(1).standard_normal((j + 1 - i, x.shape[1]))
    x[i : j + 1] = x[13] + 1e-4 * noise  # nearly the last
    found = off_the_path(steps, x @ x.T)
    assert [one.steps for one in found] == [tuple(steps[i : j + 1])]
    assert found[0].why.startswith(f"misplaced: steps {steps[i - 1]} and {steps[j + 1]} are closer")


def test_the_order_of_points_on_a_line_is_found_by_hand():
    assert shortest_order(distances([0, 1, 2, 3])) == [0, 1, 2, 3]
    assert shortest_order(distances([0, 2, 1, 3])) == [0, 2, 1, 3]
    assert shortest_order(distances([0, 3, 2, 1, 4])) == [0, 3, 2, 1, 4]
    assert shortest_order(distances([1, 0, 2, 3])) == [1, 0, 2, 3]
    # 1 + 1.02 + 1 and 1.02 + 1 + 0.02: the last two are too close to be told apart
    assert shortest_order(distances([0, 1, 2.02, 2])) == [0, 1, 2, 3]


def test_misplaced_points_are_found_by_hand():
    assert misplaced(distances([0, 1, 2, 3, 4])) == []
    assert misplaced(distances([0, 1, 9, 2, 3])) == [([2], (1, 3))]
    assert misplaced(distances([0, 1, 9, 9.5, 2, 3])) == [([2, 3], (1, 4))]
    assert misplaced(distances([0, 1, 3, 2.8])) == []  # |2.8 − 1| is not below 0.9 · |3 − 2.8|


def test_one_step_or_none_is_in_line():
    assert off_the_path([5], np.eye(1)) == [] and off_the_path([], np.eye(0)) == []
