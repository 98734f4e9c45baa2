import numpy as np
import pytest

from interp.dynamics import Phases, phases, plateau_end

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


def test_the_plateau_runs_from_five_percent_above_the_baseline_to_its_end():
    loss = np.array([9.0, 2.11, 2.09, 2.0, 1.9])
    assert phases(STEPS, loss, 2.0) == Phases(plateau_start=200.0, plateau_end=400.0)
    assert phases(STEPS, loss, 2.0, start_margin=0.06) == Phases(100.0, 400.0)


def test_a_run_that_never_comes_near_the_baseline_has_no_phases():
    found = phases(STEPS, np.full(5, 9.0), 2.0)
    assert np.isnan([found.plateau_start, found.plateau_end]).all()


def test_on_the_papers_own_curve_the_plateau_ends_where_the_paper_says():
    # arXiv 2503.21676, figure 2: left, 64k individuals (mean of 5 seeds); right, 3085 steps at 64k.
    curve = {
        0: 38.86, 250: 8.776, 500: 7.12, 1000: 6.977, 1500: 6.908, 2000: 6.866, 2500: 6.814,
        3000: 6.718, 3500: 6.554, 4000: 6.304, 5000: 5.468, 8000: 1.846, 16000: 0.01715,
    }  # fmt: skip
    found = phases(np.array(list(curve)), np.array(list(curve.values())), 6.784)
    assert abs(found.plateau_end - 3085) <= 500
    assert found.plateau_start == 500
