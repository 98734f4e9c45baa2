"""The bars of a score add up to it, at every step of the slider."""

import numpy as np
import pytest
import xarray as xr

from interp.report.figures.score_parts import score_by_pairs


@pytest.fixture
def parts():
    rng, names = np.random.default_rng(0), ["embed", "bias", *(f"L0H{i}" for i in range(3))]
    terms = rng.normal(size=(2, 5, 5))
    terms[0, :, 3:] = np.nan
    dims, pairs = ("step",), ("step", "query_part", "key_part")
    return xr.Dataset(
        {
            "terms": (pairs, terms),
            "terms_margin": (pairs, np.full_like(terms, 0.1)),
            "score": (dims, np.nansum(terms, (1, 2))),
            "score_margin": (dims, [0.2, 0.3]),
        },
        {"step": [0, 100], "query_part": names, "key_part": names},
    )


def test_bars_add_up_to_the_score_at_every_step(parts):
    figure = score_by_pairs(parts, title="<b>L1H0</b>", subtitle="n = 4 facts")
    assert [frame.name for frame in figure.frames] == ["0", "100"]
    for frame, score in zip(figure.frames, parts.score.values):
        (bars,) = frame.data
        assert len(bars.x) == 12 and bars.y[-2:] == ("all other pairs", "score")
        assert bars.x[:-1].sum() == pytest.approx(score) == bars.x[-1]
    assert figure.layout.xaxis.range[1] == -figure.layout.xaxis.range[0] > abs(parts.score).max()


def test_the_largest_pairs_are_named_with_their_values(parts):
    parts.terms[1, 2, 1] = -9.0
    parts["score"] = parts.terms.sum(("query_part", "key_part"))
    bars = score_by_pairs(parts, title="", subtitle="").data[0]
    assert bars.y[0] == "L0H0 · bias" and bars.x[0] == -9.0
    assert bars.error_x.array[0] == pytest.approx(0.1)
