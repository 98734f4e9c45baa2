"""The analysis of circuits: what it computes of a checkpoint, and its page."""

import sys

import numpy as np
import pytest
import xarray as xr

from analyses import interp_analyse
from analyses.checkpoints import halves
from analyses.circuits.circuits_page import _overlap, final_edges, said, when
from analyses.circuits.over_training import SIZES, heads, of_model
from analyses.circuits.takeovers import head_shares, takeovers
from analyses.report import stored_results
from analyses.report.stored_results import stored_lines
from interp.attribution import areas, faithfulness, importance, top_edges
from interp.attribution.edges import edge_effects
from interp.patching import patch
from interp.results.store import join_steps


@pytest.fixture(scope="module")
def few(model, suite):
    """Eight facts on two attributes of which the random model, by chance, prefers the right value
    about as much.
    """
    facts = suite.facts(60, seed=3)
    ends, attribute = edge_effects(model, facts, method="eap"), facts.texts.attribute.to_numpy()
    gap = (ends.clean - ends.corrupted).values
    places = [np.flatnonzero(attribute == name) for name in ("major", "company")]
    return facts[np.concatenate([at[np.argsort(-gap[at])][:4] for at in places])]


@pytest.fixture(scope="module")
def both(few):
    """The facts chosen by and those measured on."""
    return [few[at] for at in halves(few.texts.attribute.to_numpy())]


@pytest.fixture(scope="module")
def found(model, few):
    return of_model(model, few, 0.5)


def test_halves_alternate_within_each_attribute():
    one, other = halves(np.array(["a", "a", "b", "a", "b", "c", "a"]))
    assert one.tolist() == [0, 2, 3, 5] and other.tolist() == [1, 4, 6]


def test_the_circuit_is_the_smallest_that_is_faithful_enough_and_is_measured_on_other_facts(
    model, both, found
):
    chosen_by, others = both
    scores = importance(edge_effects(model, chosen_by, method="exact"))
    size, roles = int(found["size"]), found.role.values.tolist()
    before = SIZES[SIZES.index(size) - 1]
    tried = np.stack([top_edges(scores, n, "signed") for n in (before, size)])
    shares = faithfulness(model, chosen_by, tried, roles).faithfulness
    assert float(shares[0]) < 0.5 <= float(shares[1])
    np.testing.assert_array_equal(found.circuit, tried[1])
    assert float(found.chosen_faithfulness) == pytest.approx(float(shares[1]), abs=1e-5)
    measured = faithfulness(model, others, tried, roles)
    for end in ("", "_low", "_high"):
        theirs = float(measured[f"faithfulness{end}"][1])
        assert float(found[f"circuit_faithfulness{end}"]) == pytest.approx(theirs, abs=1e-5)
    assert 0 < float(found.connected_size) <= size


def test_areas_are_of_edges_chosen_on_one_half_and_measured_on_the_other(model, both, found):
    chosen_by, others = both
    scores = importance(edge_effects(model, chosen_by, method="eap"))
    theirs = areas(model, others, scores, found.role.values.tolist())
    ours = found.sel(estimate="eap")
    assert float(ours.cpr) == pytest.approx(float(theirs.cpr), abs=1e-5)
    assert float(ours.cmd) == pytest.approx(float(theirs.cmd), abs=1e-5)


def test_a_head_is_lost_by_hooks_as_its_share_says(model, few):
    found, fact = heads(model, few), few[3]
    pair = int(fact.answer[0]), int(fact.corrupted_answer[0])
    _, cache = model.run_with_cache(fact.corrupted[None])

    def put(z, hook):
        z = z.clone()
        z[:, :, 2] = cache[hook.name][:, :, 2]
        return z

    def logit_diff(hooks):
        logits = model.run_with_hooks(fact.clean[None], fwd_hooks=hooks)[0, -1]
        return float(logits[pair[0]] - logits[pair[1]])

    lost = logit_diff([]) - logit_diff([("blocks.1.attn.hook_z", put)])
    ours = found.head_lost.sel(layer=1, head=2)[3]
    assert float(ours) == pytest.approx(lost, abs=2e-4)


def test_estimates_of_nodes_are_held_against_exact_patching(model, both, found):
    chosen_by, _ = both
    options = dict(site="z", direction="noising", whole_value=False)
    atp, exact = (patch(model, chosen_by, method=x, **options) for x in ("atp", "exact"))
    x, y = ((of.patched - of.clean).values.ravel() for of in (atp, exact))
    there = np.isfinite(y) & (np.abs(y) > 1e-9)
    at = found.node_agreement.sel(node_estimate="atp", site="z", measure="pearson")
    assert float(at) == pytest.approx(np.corrcoef(x[there], y[there])[0, 1], abs=0.02)
    assert found.node_agreement.max() <= 1 + 1e-9


def part_handed_over(n_facts=120, seed=0):
    """Head 0 makes 0.8 of the difference up to step 300 and 0.3 from then on, head 1 the reverse;
    head 2 makes 0.1 throughout, head 3 nothing. At step 0 nothing is known.
    """
    rng, steps = np.random.default_rng(seed), np.arange(0, 600, 100)
    late = steps >= 300
    shares = np.stack([np.where(late, 0.3, 0.8), np.where(late, 0.8, 0.3),
                       np.full(6, 0.1), np.zeros(6)])  # fmt: skip
    gap = rng.normal(5, 1, (6, n_facts)) - 5 * (steps == 0)[:, None]
    lost = shares[:, :, None] * gap + rng.normal(0, 0.3, (4, 6, n_facts))
    return xr.Dataset(
        {
            "head_lost": (("layer", "head", "step", "any_fact"), lost.reshape(2, 2, 6, -1)),
            "head_gap": (("step", "any_fact"), gap),
        },
        {"step": steps, "layer": [0, 1], "head": [0, 1], "asked": ("any_fact", ["a"] * n_facts)},
    )


def test_a_part_that_goes_from_one_head_to_another_is_found_and_no_other():
    table = takeovers(part_handed_over()).set_index("head")
    assert table.index[table.falls].tolist() == ["L0H0"]
    assert table.index[table.rises].tolist() == ["L0H1"]
    assert (table.first_step == 100).all()  # at step 0 the difference is not precise
    first = table.loc["L0H0"]
    assert first.peak_step in (100, 200)
    assert first.change == pytest.approx(-0.5, abs=0.05) and first.low < -0.5 < first.high
    second = table.loc["L0H1"]
    assert second.rise == pytest.approx(0.5, abs=0.05) and second.rise_low < 0.5 < second.rise_high
    shares = head_shares(part_handed_over())
    np.testing.assert_allclose(shares.isel(step=1).values.ravel(), [0.8, 0.3, 0.1, 0], atol=0.05)
    assert bool(shares.isel(step=0).isnull().all())


def test_intervals_of_a_change_are_those_of_a_bootstrap():
    """Half as wide as 2.24 standard deviations of the resampled change (1 − 0.05 ÷ 4 ÷ 2)."""
    given, rng = part_handed_over(), np.random.default_rng(1)
    row = takeovers(given).set_index("head").loc["L1H0"]
    measured = halves(given.asked.values)[1]
    lost = given.head_lost.isel(layer=1, head=0).values[:, measured]
    gap, changes = given.head_gap.values[:, measured], []
    first = int(row.first_step) // 100
    for _ in range(4000):
        at = rng.integers(len(measured), size=len(measured))
        shares = lost[:, at].mean(1) / gap[:, at].mean(1)
        changes.append(shares[-1] - shares[first])
    assert (row.rise_high - row.rise_low) / 2 == pytest.approx(2.5 * np.std(changes), rel=0.1)


def test_where_heads_differ_by_chance_none_falls_or_rises():
    given, n_found = part_handed_over(), 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        noise = 0.3 * given.head_gap.values + rng.normal(0, 1, given.head_lost.shape)
        table = takeovers(given.assign(head_lost=given.head_lost.copy(data=noise)))
        n_found += table.falls.any()
    assert n_found <= 8  # 5 % of 60 are expected; 9 or more have a probability of 0.004


def test_where_no_difference_is_precise_there_is_no_takeover():
    same = part_handed_over()
    assert takeovers(same.assign(head_gap=0 * same.head_gap)).empty
    assert bool(head_shares(same.assign(head_gap=0 * same.head_gap)).isnull().all())


def test_exact_effects_agree_with_themselves_and_estimates_less(found):
    exact = found.agreement.sel(estimate="exact")
    np.testing.assert_allclose(exact, 1.0, atol=1e-6)
    others = found.agreement.sel(estimate=["eap", "relp", "eap-ig"], measure="pearson")
    assert (others < 0.999).all()


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
    alike = none.assign(gap=0 * none.gap)
    assert "can't be told apart" in said(join_steps({7: alike}))[0]


def test_the_command_writes_results_and_a_page(suite, tmp_path, monkeypatch, capsys):
    words = ["circuits", "--ckpt", suite.path, "--facts", "12", "--workers", "1"]
    words += [
        "--steps",
        "0,30",
        "--out",
        tmp_path / "results/circuits",
        "--report",
        tmp_path / "page.html",
    ]
    monkeypatch.setattr(sys, "argv", ["interp-analyse", *map(str, words)])
    interp_analyse.analyse()
    text, page = capsys.readouterr().out, (tmp_path / "page.html").read_text()
    assert "step 30: " in text and "page.html" in text
    assert page.count("plotly-graph-div") >= 5 and "Where estimates mislead" in page
    assert len(list((tmp_path / "results/circuits").glob("*.nc"))) == 2
    monkeypatch.setattr("analyses.circuits.over_training.edge_effects", None)
    interp_analyse.analyse()  # from the stored results
    assert capsys.readouterr().out == text and (tmp_path / "page.html").read_text() == page
    assert "circuits" in stored_lines(suite, tmp_path / "results")  # the run's own page has it


def test_the_page_of_the_run_shows_what_the_circuit_keeps():
    names = {"circuit_faithfulness": 0.75, "without_circuit": 0.25}
    ends = {"": 0.0, "_low": -0.125, "_high": 0.125}
    kept = {
        of + end: ("step", [np.nan, x + by]) for of, x in names.items() for end, by in ends.items()
    }
    kept["gap"] = (("step", "measured"), np.ones((2, 5)))
    panel = stored_results._circuit(xr.Dataset(kept, {"step": [0, 10]}))
    assert panel.n == "n = 5 facts" and panel.over_training
    alone, without = panel.lines
    assert (alone["name"], without["name"]) == ("in the circuit alone", "without it")
    for line, x in ((alone, 0.75), (without, 0.25)):
        np.testing.assert_array_equal(line["x"], [0, 10])
        assert np.isnan(line["mean"][0])
        assert (line["low"][1], line["mean"][1], line["high"][1]) == (x - 0.125, x, x + 0.125)
