"""The analysis of circuits: what it computes of a checkpoint, and its page."""

import sys

import numpy as np
import pytest
import xarray as xr

from analyses import interp_analyse
from analyses.circuits.circuits_page import _overlap, final_edges, said, when
from analyses.circuits.over_training import SIZES, of_model
from interp.attribution import faithfulness, importance, top_edges
from interp.attribution.edges import edge_effects
from interp.results.store import join_steps


@pytest.fixture(scope="module")
def few(model, facts):
    """Three facts of which the random model, by chance, prefers the right value about as much."""
    ends = edge_effects(model, facts, method="eap")
    gap = (ends.clean - ends.corrupted).values
    return facts[np.argsort(-gap)[1:4]]


@pytest.fixture(scope="module")
def found(model, few):
    return of_model(model, few, 0.5)


def test_the_circuit_is_the_smallest_that_is_faithful_enough(model, few, found):
    scores = importance(edge_effects(model, few, method="exact"))
    size, roles = int(found["size"]), found.role.values.tolist()
    before = SIZES[SIZES.index(size) - 1]
    tried = np.stack([top_edges(scores, n, "signed") for n in (before, size)])
    shares = faithfulness(model, few, tried, roles).faithfulness
    assert float(shares[0]) < 0.5 <= float(shares[1])
    np.testing.assert_array_equal(found.circuit, tried[1])
    assert float(found.circuit_faithfulness) == pytest.approx(float(shares[1]), abs=1e-5)
    assert 0 < float(found.connected_size) <= size


def test_exact_effects_agree_with_themselves_and_estimates_less(found):
    exact = found.agreement.sel(estimate="exact")
    np.testing.assert_allclose(exact, 1.0, atol=1e-6)
    others = found.agreement.sel(estimate=["eap", "relp", "eap-ig"], measure="pearson")
    assert (others < 0.999).all()
    assert float(found.cmd.sel(estimate="exact")) <= float(found.cmd.min()) + 0.05


def test_overlap_is_edges_in_both_by_edges_in_either():
    dims = ("writer", "reader", "role")
    one, two = (xr.DataArray(np.reshape(x, (2, 2, 1)), dims=dims)
                for x in ([1, 1, 1, 0], [0, 1, 1, 1]))  # fmt: skip
    assert float(_overlap(one, two)) == 0.5
    assert np.isnan(float(_overlap(0 * one, 0 * one)))


def test_the_final_edges_are_those_of_largest_importance(found):
    joined = join_steps({0: found, 30: found})
    edges = final_edges(joined)
    mean = -found.effect.sel(estimate="exact")
    sizes = [float(mean.sel(writer=u, reader=v, role=r)) for u, v, r in edges]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == pytest.approx(float(mean.where(found.circuit > 0).max()))
    assert when(joined, edges[0]) == "too few checkpoints (2)"


def test_a_step_without_a_circuit_says_so(found):
    none = found.assign(size=np.nan)
    assert said(join_steps({7: none})) == ["step 7: no circuit reaches a faithfulness of 0.5"]


def test_the_command_writes_results_and_a_page(suite, tmp_path, monkeypatch, capsys):
    words = ["circuits", "--ckpt", suite.path, "--facts", "6", "--workers", "1"]
    words += ["--steps", "0,30", "--out", tmp_path / "out", "--report", tmp_path / "page.html"]
    monkeypatch.setattr(sys, "argv", ["interp-analyse", *map(str, words)])
    interp_analyse.analyse()
    text, page = capsys.readouterr().out, (tmp_path / "page.html").read_text()
    assert "step 30: " in text and "page.html" in text
    assert page.count("plotly-graph-div") >= 5 and "Where estimates mislead" in page
    assert len(list((tmp_path / "out").glob("*.nc"))) == 2
    monkeypatch.setattr("analyses.circuits.over_training.edge_effects", None)
    interp_analyse.analyse()  # from the stored results
    assert capsys.readouterr().out == text and (tmp_path / "page.html").read_text() == page
