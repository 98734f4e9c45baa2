"""Sweeps that take turns on one engine, and what they count."""

import itertools

import numpy as np
import pytest
from oracle import random_model

from interp.patching.activations import prompts
from interp.patching.engine import Engine
from interp.patching.intervention import Intervention, cells_of

SITES = ["resid_pre", "k"]


@pytest.fixture(scope="module")
def wide(suite):
    return random_model(suite)


@pytest.fixture(scope="module")
def few(suite):
    return suite.facts(3, seed=3)


def sweeps(engine, few, **options):
    """One sweep each way on the same engine, not yet begun."""
    cells, _, may_differ = cells_of(few, Intervention(**options))
    clean, corrupted = (engine.run(given) for given in prompts(few, "cpu"))
    ends = [(corrupted, clean), (clean, corrupted)]
    return [engine.sweep(SITES, cells, *pair, may_differ, max_bytes=1e6) for pair in ends]


@pytest.mark.parametrize("options", [{}, {"window": 2}], ids=str)
def test_two_sweeps_in_turns_give_what_they_give_one_after_the_other(wide, few, options):
    alone, together = (Engine(wide, prompts(few, "cpu")[0]) for _ in range(2))
    expected = [list(sweep) for sweep in sweeps(alone, few, **options)]
    turns = list(itertools.zip_longest(*sweeps(together, few, **options)))
    assert len(turns) > 4
    for got, wanted in zip(zip(*turns), expected):
        got = [portion for portion in got if portion is not None]
        assert len(got) == len(wanted)
        for (rows, scores), (same_rows, same_scores) in zip(got, wanted):
            for column, same in zip(vars(rows).values(), vars(same_rows).values()):
                np.testing.assert_array_equal(column, same)
            np.testing.assert_array_equal(scores, same_scores)
    assert together.flops == alone.flops > 0
