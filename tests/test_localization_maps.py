"""Figures of the localization, from made-up results."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from interp.dynamics.emergence import emergence
from interp.dynamics.plateau import Phases
from interp.report.figures import localization_maps as draw
from interp.report.figures.timeline import timeline

STEPS = np.arange(12) * 100


@pytest.fixture
def curves():
    rng = np.random.default_rng(0)
    risen = np.where(STEPS > 550, 0.8, 0.0)[:, None] + rng.normal(0, 0.1, (12, 30))
    flat = rng.normal(0, 0.1, (12, 30))
    return xr.DataArray(
        np.stack((risen, flat)),
        dims=("curve", "step", "fact"),
        coords={"curve": ["memory: needed", "memory: in place"], "step": STEPS},
    )


def metrics():
    rows = [(s, split, "average", 0.001 * s) for s in STEPS for split in ("train", "held-out")]
    return pd.DataFrame(rows, columns=["step", "split", "attribute", "accuracy"])


def test_a_job_has_a_bar_where_it_formed_and_none_where_it_did_not(curves):
    formed = emergence(curves)
    options = {"metrics": metrics(), "phases": Phases(100.0, 300.0), "links": {"memory": "#memory"}}
    figure = timeline(curves, formed, **options)
    lines = {trace.name: trace for trace in figure.data if trace.name}
    np.testing.assert_allclose(lines["memory: needed"].y, curves[0].mean("fact"))
    assert set(lines["memory: needed"].customdata) == {"#memory"}
    (bar,) = [trace for trace in figure.data if trace.line.width == 9]
    assert bar.x == pytest.approx([float(formed.onset[0]), float(formed.completion[0])])
    assert 500 < bar.x[0] < bar.x[1] < 600
    (diamond,) = [trace for trace in figure.data if trace.marker.symbol == "diamond"]
    assert diamond.x[0] == pytest.approx(550, abs=5)
    assert f"{diamond.x[0]:.0f} [" in diamond.hovertemplate
    assert "n = 30 facts" in figure.layout.title.text
    none = timeline(curves, None, **options)
    assert not [trace for trace in none.data if trace.line.width == 9]


def table():
    rows = []
    for step, told in ((0, False), (100, True)):
        for component, share, named in (("L0 MLP", 0.02, False), ("L1 MLP", 0.6, True)):
            for attribute in ("all", "major"):
                rows.append((
                    step, attribute, component, "memory", "final", "mlp", share, share - 0.1,
                    share + 0.1, 0.01, 0.001, 0.3, named and told, told,
                ))  # fmt: skip
    names = (
        "step attribute component role place kind share low high control p gain named told_apart"
    )
    return pd.DataFrame(rows, columns=names.split())


def test_a_component_is_shown_where_it_counts_and_dotted_where_it_is_named():
    figure = draw.roles_over_training(table(), "memory")
    (panel,) = figure.data
    assert list(panel.y) == ["L1 MLP at final"] and list(panel.x) == ["0", "100"]
    np.testing.assert_array_equal(panel.z, [[np.nan, 0.6]])  # not told apart: grey
    assert panel.text.tolist() == [["", "●"]]
    (panel,) = draw.roles_by_attribute(table(), "memory").data
    assert list(panel.x) == ["all", "major"] and panel.text[0][1] == "0.60 ●"


def test_shares_leave_empty_what_is_not_there_and_of_effects_are_centred_on_0():
    values = xr.DataArray(
        [[[0.25, np.nan]]],
        dims=("layer", "site", "role"),
        coords={"layer": [2], "site": ["resid_mid"], "role": ["name_last", "final"]},
    )
    figure = draw.shares({"one": values, "two": values}, "title", "subtitle", of_effect=True)
    assert [list(panel.text[0]) for panel in figure.data] == [["0.25", ""]] * 2
    assert list(figure.data[0].y) == ["L2 resid_mid"]
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (-1, 1)


def test_parts_are_means_in_nats():
    direct = xr.Dataset({
        "embed": ("fact", [1.0, 3.0]),
        "head": (("layer", "head", "fact"), [[[0.0, 1.0], [2.0, 2.0]]]),
        "mlp": (("layer", "fact"), [[4.0, 6.0]]),
    })  # fmt: skip
    (bars,) = draw.parts(direct).data
    assert dict(zip(bars.x, bars.y)) == {"embedding": 2, "L0H0": 0.5, "L0H1": 2, "L0 MLP": 5}
