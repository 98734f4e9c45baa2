"""Runs of circuits beside plain runs, path patching and TransformerLens's faithfulness."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from oracle import random_model
from test_attribution_patching import difference
from test_edges import name_of
from test_hooks import bridge_around
from transformer_lens.tools.analysis.attribution_patching import (
    EdgeAttributionConfig,
    attribution_patch,
)
from transformer_lens.tools.analysis.attribution_patching import faithfulness as theirs_of
from transformers import AutoModelForCausalLM

from interp.attribution import circuits
from interp.attribution.circuits import (
    FRACTIONS,
    areas,
    connected,
    everything,
    everything_but,
    faithfulness,
    greedy_edges,
    importance,
    run_circuits,
    top_edges,
    without_each,
)
from interp.attribution.edges import Graph, edge_effects, graph_of
from interp.model.checkpoint_io import read_checkpoint, write_checkpoint


@pytest.fixture(scope="module", params=[False, True], ids=["sequential", "parallel"])
def wide(request, suite):
    return random_model(suite, n_layers=2, parallel=request.param)


@pytest.fixture(scope="module")
def few(suite):
    return suite.facts(6, seed=3)


@pytest.fixture(scope="module")
def exact(wide, few):
    return edge_effects(wide, few, method="exact")


def test_everything_is_the_clean_run_and_nothing_the_corrupted(wide, few, exact):
    whole = everything(graph_of(wide.cfg), exact.sizes["role"])
    found = run_circuits(wide, few, np.stack([whole, ~whole & False]), exact.role.values.tolist())
    np.testing.assert_allclose(found[0], exact.clean, atol=1e-5)
    np.testing.assert_allclose(found[1], exact.corrupted, atol=1e-5)
    assert float(abs(exact.clean - exact.corrupted).max()) > 0.1


def test_everything_but_one_edge_is_that_edge_patched(wide, few, exact, monkeypatch):
    monkeypatch.setattr(circuits, "ROWS_BYTES", 1e6)  # several portions
    whole, rng = everything(graph_of(wide.cfg), exact.sizes["role"]), np.random.default_rng(0)
    places = rng.permutation(np.argwhere(whole))[:40]
    without = np.repeat(whole[None], len(places), 0)
    without[np.arange(len(places)), *places.T] = False
    found = run_circuits(wide, few, without, exact.role.values.tolist())
    effects = exact.effect.transpose("writer", "reader", "role", "fact").values[*places.T]
    np.testing.assert_allclose(found - exact.clean.values, np.nan_to_num(effects), atol=1e-5)
    assert np.nanmax(abs(effects)) > 1e-2


def test_circuits_are_as_faithful_as_transformer_lens_says(suite, few, tmp_path):
    write_checkpoint(random_model(suite, n_layers=2), tmp_path / "step", dtype=torch.float32)
    model = read_checkpoint(tmp_path / "step").double()
    hf = AutoModelForCausalLM.from_pretrained(tmp_path / "step", dtype=torch.float32)
    bridge, graph, rng = bridge_around(hf.double()), graph_of(model.cfg), np.random.default_rng(1)
    for i in (0, 3):
        fact = few[i]
        pair = fact.clean[None], fact.corrupted[None]

        def metric(logits, fact=fact):
            return difference(logits, fact)

        scores = attribution_patch(bridge, *pair, metric, EdgeAttributionConfig("edge"))
        roles = list(dict.fromkeys(fact.roles))
        kept = rng.random((len(graph.writers), len(graph.readers), len(roles))) < 0.7
        kept &= graph.exists[..., None]
        circuit = [
            (writer, reader)
            for writer, reader in scores.edge_scores
            if kept[
                graph.writers.index(name_of(writer)),
                graph.readers.index(name_of(reader)),
                roles.index(fact.roles[writer.position]),
            ]
        ]
        theirs = theirs_of(bridge, *pair, metric, circuit)
        (mine,) = run_circuits(model, few[[i]], kept[None], roles)[0]
        share = (mine - theirs.corrupt_metric) / (theirs.full_metric - theirs.corrupt_metric)
        assert share == pytest.approx(theirs.recovered, abs=1e-4)
        assert abs(theirs.recovered) > 0.02 and abs(theirs.recovered - 1) > 0.02


def test_with_everything_ablated_to_means_the_logits_are_those_of_the_means(wide, few, exact):
    nothing = np.zeros((1, *everything(graph_of(wide.cfg), exact.sizes["role"]).shape), bool)
    roles = exact.role.values.tolist()
    (found,) = run_circuits(wide, few, nothing, roles, ablation="mean")
    sums, n = 0.0, 0
    for fact in few:
        _, cache = wide.run_with_cache(fact.clean[None])
        # All at the last token: embedding, both layers' attention and MLP; its role is final.
        parts = [cache["blocks.0.hook_resid_pre"]]
        parts += [cache[f"blocks.{i}.hook_{x}"] for i in (0, 1) for x in ("attn_out", "mlp_out")]
        sums, n = sums + sum(part[0, -1] for part in parts), n + 1
    logits = wide.unembed(wide.ln_final.unhooked(sums / n)).detach()
    for i, fact in enumerate(few):
        wanted = logits[fact.answer[0]] - logits[fact.corrupted_answer[0]]
        assert found[i] == pytest.approx(float(wanted), abs=1e-6)


def test_unconnected_edges_change_nothing(wide, few, exact):
    rng, whole = np.random.default_rng(2), everything(graph_of(wide.cfg), exact.sizes["role"])
    sparse = (rng.random((5, *whole.shape)) < 0.08) & whole
    graph = graph_of(wide.cfg)
    pruned = np.stack([connected(circuit, graph) for circuit in sparse])
    assert 0 < pruned.sum() < sparse.sum()
    roles = exact.role.values.tolist()
    np.testing.assert_allclose(
        run_circuits(wide, few, pruned, roles), run_circuits(wide, few, sparse, roles), atol=1e-6
    )


def small():
    """One layer of one head, two roles; scores by hand."""
    graph = Graph(n_layers=1, n_heads=1, n_key_value_heads=1, parallel=False)
    assert graph.readers == ["L0H0.q", "L0H0.k", "L0H0.v", "L0-MLP", "logits"]
    scores = np.full((3, 5, 2), -np.inf)
    scores[:, 4] = [[1.0, 2.0], [0.5, -3.0], [0.1, 0.2]]  # embed, head, MLP to the logits
    scores[0, :4] = [[0.0, 9.0], [7.0, 0.0], [-8.0, 0.3], [4.0, 5.0]]
    scores[1, 3] = [6.0, 0.0]
    return graph, scores


def test_top_edges_are_those_of_largest_importance():
    _, scores = small()
    signed, absolute = (np.argwhere(top_edges(scores, 3, how)) for how in ("signed", "absolute"))
    assert signed.tolist() == [[0, 0, 1], [0, 1, 0], [1, 3, 0]]
    assert absolute.tolist() == [[0, 0, 1], [0, 1, 0], [0, 2, 0]]
    assert top_edges(scores, 16).sum() == np.isfinite(scores).sum() == 16
    with pytest.raises(ValueError, match="n is 17, and there are 16 edges"):
        top_edges(scores, 17)
    with pytest.raises(ValueError, match="n is -3; it must be at least 0"):
        top_edges(scores, -3)


def test_greedy_edges_grow_backwards_from_the_logits():
    graph, scores = small()
    # head → logits (−3) at role 1; then its query at role 1 (9), values (−8) and keys (7) anywhere.
    order = [{tuple(x) for x in np.argwhere(greedy_edges(scores, n, graph)).tolist()}
             for n in range(5)]  # fmt: skip
    grown = [next(iter(later - earlier)) for earlier, later in pairwise(order)]
    assert grown == [(1, 4, 1), (0, 0, 1), (0, 2, 0), (0, 1, 0)]


def test_a_circuit_keeps_only_ways_from_the_embedding_to_the_logits():
    graph, scores = small()
    circuit = np.zeros(scores.shape, bool)
    for edge in ((0, 1, 0), (1, 4, 1), (0, 3, 1), (2, 4, 0), (1, 3, 0)):
        circuit[edge] = True
    # The MLP is fed at role 1 and at role 0 (by the head), and used at role 0 alone.
    kept = {tuple(x) for x in np.argwhere(connected(circuit, graph)).tolist()}
    assert kept == {(0, 1, 0), (1, 4, 1), (1, 3, 0), (2, 4, 0)}
    unused = np.zeros(scores.shape, bool)
    unused[0, :3] = True  # into a head that nothing reads
    assert not connected(unused, graph).any()


def test_areas_are_mibs(wide, few, exact, monkeypatch):
    asked = []

    def fake(model, facts, circuits, roles, *, ablation):
        asked.append(circuits)
        share = circuits.sum((1, 2, 3)) / everything(graph_of(wide.cfg), exact.sizes["role"]).sum()
        return np.broadcast_to(share[:, None] * 5 - 2, (len(circuits), len(few)))

    monkeypatch.setattr(circuits, "run_circuits", fake)
    found = areas(wide, few, importance(exact), exact.role.values.tolist())
    # With f = the share of edges kept, the trapezoids give (1 − 0.001²) ÷ 2 but for whole edges.
    assert float(found.cpr) == pytest.approx(0.4999995, abs=2e-3)
    assert float(found.cpr + found.cmd) == pytest.approx(0.999, abs=1e-6)
    assert found.fraction.values.tolist() == list(FRACTIONS)
    assert found.n_edges.values[0, -1] == everything(graph_of(wide.cfg), exact.sizes["role"]).sum()


def test_faithfulness_is_a_share_of_the_whole_difference(wide, few, exact, monkeypatch):
    monkeypatch.setattr(circuits, "runs_differ", lambda gap: True)  # of six facts
    graph, roles, scores = graph_of(wide.cfg), exact.role.values.tolist(), importance(exact)
    best, whole = top_edges(scores, 60, "signed"), everything(graph, len(roles))
    some = np.stack([best, everything_but(best, graph), whole])
    found = faithfulness(wide, few, some, roles)
    runs, low, high = run_circuits(wide, few, some, roles).mean(1), exact.corrupted, exact.clean
    shares = (runs - float(low.mean())) / float((high - low).mean())
    np.testing.assert_allclose(found.faithfulness, shares, atol=1e-4)
    assert float(found.faithfulness[2]) == pytest.approx(1, abs=1e-5)
    assert found.faithfulness_low[0] <= found.faithfulness[0] <= found.faithfulness_high[0]
    assert found.n_edges.values.tolist() == [60, whole.sum() - 60, whole.sum()]
    fewer = without_each(best)
    assert len(fewer) == 60 and (fewer.sum((1, 2, 3)) == 59).all() and not (fewer & ~best).any()


def test_where_the_runs_do_not_differ_nothing_is_faithful(wide, few, exact):
    alike = replace(few, corrupted=few.clean)
    whole = everything(graph_of(wide.cfg), exact.sizes["role"])[None]
    found = faithfulness(wide, alike, whole, exact.role.values.tolist())
    assert found.faithfulness.isnull().all()


def test_circuits_of_another_shape_or_role_are_refused(wide, few, exact):
    roles = exact.role.values.tolist()
    whole = everything(graph_of(wide.cfg), len(roles))
    with pytest.raises(ValueError, match=r"circuits is bool of shape \(1, 11, 27, 5\); give a"):
        run_circuits(wide, few, whole[None, ..., :5], roles)
    with pytest.raises(ValueError, match="no role 'shoe'; these facts have bos, context, name"):
        run_circuits(wide, few, whole[None], [*roles[:-1], "shoe"])
    with pytest.raises(ValueError, match="roles lacks 'final', which these facts have"):
        run_circuits(wide, few, whole[None, ..., :-1], roles[:-1])
    twice = np.concatenate([whole, whole[..., :1]], -1)[None]
    with pytest.raises(ValueError, match=f"roles has '{roles[0]}' twice"):
        faithfulness(wide, few, twice, [*roles, roles[0]])
    with pytest.raises(ValueError, match=r"circuits has the edge .* which does not exist"):
        faithfulness(wide, few, np.ones_like(whole)[None], roles)
    with pytest.raises(ValueError, match="circuits has no circuit"):
        run_circuits(wide, few, whole[None][:0], roles)


def test_scores_that_are_not_of_every_edge_are_refused(wide, few, exact):
    scores, roles = importance(exact), exact.role.values.tolist()
    for wrong in (np.full_like(scores, np.nan), np.nan_to_num(scores), scores[..., :-1]):
        with pytest.raises(ValueError, match="scores must be numbers for each of the"):
            areas(wide, few, wrong, roles)
    with pytest.raises(ValueError, match="effects is not what edge_effects returns"):
        importance(exact.mean("fact"))
