"""The bars of a waterfall add up to its sum, at every step of the slider."""

import numpy as np
import pytest
import xarray as xr

from interp.report.figures.waterfall import waterfall

WORDS = {"title": "<b>L1H0</b>", "subtitle": "n = 4 facts", "unit": "score"}
BY = ("query_part", "key_part")


@pytest.fixture
def parts():
    rng, names = np.random.default_rng(0), ["embed", "bias", *(f"L0H{i}" for i in range(3))]
    terms = rng.normal(size=(2, 5, 5))
    terms[0, :, 3:] = np.nan
    dims, pairs = ("step",), ("step", *BY)
    return xr.Dataset(
        {
            "term": (pairs, terms),
            "term_margin": (pairs, np.full_like(terms, 0.1)),
            "total": (dims, np.nansum(terms, (1, 2))),
            "total_margin": (dims, [0.2, 0.3]),
        },
        {"step": [0, 100], "query_part": names, "key_part": names},
    )


def test_bars_add_up_to_the_sum_at_every_step(parts):
    figure = waterfall(parts, BY, **WORDS)
    assert [frame.name for frame in figure.frames] == ["0", "100"]
    low, high = figure.layout.xaxis.range
    for frame, total in zip(figure.frames, parts.total.values):
        bars, intervals = frame.data
        assert len(bars.x) == 12 and bars.y[-2:] == ("all others", "sum")
        assert bars.measure == (*["relative"] * 11, "total")
        assert bars.x[:-1].sum() == pytest.approx(total) == bars.x[-1]
        np.testing.assert_allclose(intervals.x, [*np.cumsum(bars.x[:-1]), total])
        reach = np.stack(
            [intervals.x - intervals.error_x.array, intervals.x + intervals.error_x.array]
        )
        assert low < reach.min() and reach.max() < high


def test_the_largest_parts_are_named_with_their_values(parts):
    parts.term[1, 2, 1] = -9.0
    parts["total"] = parts.term.sum(BY)
    bars, intervals = waterfall(parts, BY, **WORDS).data
    assert bars.y[0] == "L0H0 · bias" and bars.x[0] == -9.0
    assert bars.customdata[0] == "-9.00 ± 0.10"
    assert intervals.error_x.array[0] == pytest.approx(0.1)
