"""Effects of edges beside derivatives, TransformerLens's edge attribution and path patching."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from oracle import inputs, metrics, random_model
from planted import facts as hand_made
from planted import late_gate
from test_attribution_patching import difference
from test_hooks import bridge_around
from transformer_lens.tools.analysis.attribution_patching import (
    EdgeAttributionConfig,
    attribution_patch,
)
from transformers import AutoModelForCausalLM

from interp.attribution.edges import edge_effects, graph_of
from interp.model.checkpoint_io import read_checkpoint, write_checkpoint
from interp.patching import edge_estimates, patch


@pytest.fixture(scope="module", params=[False, True], ids=["sequential", "parallel"])
def wide(request, suite):
    return random_model(suite, n_layers=2, parallel=request.param)


@pytest.fixture(scope="module")
def few(suite):
    return suite.facts(6, seed=3)


def at_edge(effects, writer, reader, role, fact):
    return float(effects.effect.sel(writer=writer, reader=reader, role=role)[fact])


def test_the_graph_has_every_later_reader_once(wide):
    graph = graph_of(wide.cfg)
    assert graph.writers[:3] == ["embed", "L0H0", "L0H1"] and len(graph.writers) == 1 + 2 * 5
    assert graph.readers[0] == "L0H0.q" and len(graph.readers) == 2 * 13 + 1
    read = {r: {w for w, there in zip(graph.writers, graph.exists[:, i]) if there}
            for i, r in enumerate(graph.readers)}  # fmt: skip
    assert read["L0H2.k"] == {"embed"} and read["logits"] == set(graph.writers)
    heads = set() if wide.cfg.parallel else {f"L0H{i}" for i in range(4)}
    assert read["L0-MLP"] == {"embed"} | heads
    assert read["L1H1.v"] == {"embed", "L0-MLP"} | {f"L0H{i}" for i in range(4)}


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("reader", ["L1H2.q", "L1H0.k", "L1H3.v", "L1-MLP", "logits"])
def test_estimates_are_derivatives_of_what_the_reader_alone_reads(wide, few, reader, direction):
    """Central differences in float64: the reader's input is moved 10⁻⁵ of the way, by hooks."""
    effects = edge_effects(wide, few, method="eap", direction=direction)
    writer, layer, block = "L0-MLP", 1, wide.blocks[1]
    for i, role in ((0, "final"), (4, "name_last")):
        fact = few[i]
        base, source = inputs(fact, direction)
        base, source = (x[:, : len(fact.clean)] for x in (base, source))
        (_, own), (_, other) = (wide.run_with_cache(x) for x in (base, source))
        name = "blocks.0.hook_mlp_out"
        at = torch.tensor([x == role for x in fact.roles])[None, :, None]
        delta = (other[name] - own[name]) * at

        def read(x, hook, share, delta=delta, own=own):
            resid = own[f"blocks.{layer}.hook_resid_pre"] + share * delta
            if reader == "logits":
                return x + share * delta
            if reader == "L1-MLP":
                mid = "resid_pre" if wide.cfg.parallel else "resid_mid"
                mid = own[f"blocks.{layer}.hook_{mid}"] + share * delta
                return block.mlp.up(block.ln2.unhooked(mid))
            head, kind = int(reader[3]), reader[-1]
            new = block.attn.qkv(block.ln1.unhooked(resid)).unflatten(-1, (4, 3, -1))
            x = x.clone()
            x[:, :, head] = new[:, :, head, "qkv".index(kind)]
            return x

        hook = {"logits": "hook_resid_post", "L1-MLP": "mlp.hook_pre"}.get(
            reader, f"attn.hook_{reader[-1]}"
        )
        scores = [
            metrics(wide.run_with_hooks(base, fwd_hooks=[
                (f"blocks.{layer}.{hook}", partial(read, share=share))]), first_token(fact))[0]
            for share in (1e-5, -1e-5)
        ]  # fmt: skip
        slope = (scores[0] - scores[1]) / 2e-5
        assert at_edge(effects, writer, reader, role, i) == pytest.approx(slope, abs=2e-6)


def first_token(fact):
    return type(fact)(**{**vars(fact), "answer": fact.answer[:1]})


def test_edges_are_those_of_transformer_lens(suite, few, tmp_path):
    """Its convention is that of denoising: the gradient is the corrupted run's."""
    write_checkpoint(random_model(suite, n_layers=2), tmp_path / "step", dtype=torch.float32)
    model = read_checkpoint(tmp_path / "step").double()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "step", dtype=torch.float32)
    bridge = bridge_around(theirs.double())
    effects = edge_effects(model, few, method="eap", direction="denoising")
    for i in (0, 3):
        fact = few[i]
        scores = attribution_patch(
            *(bridge, fact.clean[None], fact.corrupted[None]),
            lambda logits, fact=fact: difference(logits[:, : len(fact.clean)], fact),
            EdgeAttributionConfig(granularity="edge"),
        )
        sums = {}
        for (writer, reader), score in scores.edge_scores.items():
            place = (name_of(writer), name_of(reader), fact.roles[writer.position])
            sums[place] = sums.get(place, 0.0) + score
        assert len(sums) > 500 and max(map(abs, sums.values())) > 0.05
        for place, score in sums.items():
            assert at_edge(effects, *place, i) == pytest.approx(score, abs=1e-5)


def name_of(node):
    if node.kind in ("embed", "logits"):
        return node.kind
    if node.kind.startswith("mlp"):
        return f"L{node.layer}-MLP"
    head = f"L{node.layer}H{node.head}"
    return head if node.kind == "attn_head_out" else f"{head}.{node.kind[0]}"


def test_edges_of_a_writer_add_up_to_the_estimate_of_patching_it(wide, few):
    effects = edge_effects(wide, few, method="eap").effect.sum("reader")
    for site, writer, place in (
        ("embed", "embed", {"layer": 0}),
        ("z", "L0H3", {"layer": 0, "head": 3}),
        ("mlp_out", "L0-MLP", {"layer": 0}),
    ):
        result = patch(wide, few, site=site, method="atp", direction="noising", whole_value=False)
        node = (result.patched - result.clean).sel(place)
        np.testing.assert_allclose(effects.sel(writer=writer), node.fillna(0.0), atol=3e-6)
    assert float(abs(effects).max()) > 1e-2


def test_integrated_gradients_of_the_embeddings_edges_add_up_to_the_difference(
    wide, few, monkeypatch
):
    monkeypatch.setattr(edge_estimates, "N_POINTS", 200)
    found = edge_effects(wide, few, method="eap-ig", direction="denoising")
    total = found.effect.sel(writer="embed").sum(("reader", "role"))
    np.testing.assert_allclose(total, found.clean - found.corrupted, atol=2e-3)
    assert float(abs(found.clean - found.corrupted).max()) > 0.1


def test_exact_effects_are_those_of_path_patching(wide, few):
    found = edge_effects(wide, few, method="exact")
    edges_of = {
        "L0H1.z-L1H2.q": ("L0H1", "L1H2.q"),
        "L1.mlp_out-logits": ("L1-MLP", "logits"),
        "embed-L0H3.v": ("embed", "L0H3.v"),
    }
    for path, (writer, reader) in edges_of.items():
        result = patch(wide, few, site=path, direction="noising", whole_value=False)
        mine = found.effect.sel(writer=writer, reader=reader)
        np.testing.assert_allclose(mine, result.patched.squeeze() - result.clean, atol=1e-6)
    there = found.effect.notnull().any(("role", "fact")).values
    assert (there == graph_of(wide.cfg).exists).all()
    estimate = edge_effects(wide, few, method="relp")
    assert (estimate.effect.isnull() == found.effect.isnull()).all()


def test_facts_that_lack_what_edges_need_are_refused(wide, few):
    with pytest.raises(ValueError, match="the facts have no corrupted twins"):
        edge_effects(wide, replace(few, corrupted=None))
    with pytest.raises(ValueError, match="token 0 of fact 0 has no role; give one for each token"):
        edge_effects(wide, replace(few, roles=torch.full_like(few.roles, -1)))


@pytest.fixture(scope="module")
def circuit():
    return late_gate()


PLANTED = {
    ("embed", "L0H1.v", "name_last"),
    ("L0H1", "L1-MLP", "final"),
    ("L1-MLP", "logits", "final"),
}


@pytest.fixture(scope="module", params=["denoising", "noising"])
def planted(request, circuit):
    """Effects by method on a circuit made by hand: those of the planted edges, and of the others.

    Its MLP is a steep ramp that both runs are far beyond, one at either end.
    """
    found = {}
    for method in ("exact", "eap", "relp", "eap-ig"):
        effects = edge_effects(circuit, hand_made(), method=method, direction=request.param)
        of = effects.effect.isel(fact=0).fillna(0.0) * (1 if request.param == "denoising" else -1)
        own = {edge: float(of.sel(dict(zip(of.dims, edge)))) for edge in PLANTED}
        for edge in PLANTED:
            of.loc[dict(zip(of.dims, edge))] = 0
        found[method] = own, of.values
    return found


def test_exact_effects_are_of_the_planted_edges_alone(planted):
    own, others = planted["exact"]
    assert min(own.values()) == pytest.approx(max(own.values()), abs=1e-5) and min(own.values()) > 1
    np.testing.assert_array_equal(others, np.zeros(others.shape))


@pytest.mark.parametrize("method", ["eap", "relp"])
def test_gradients_do_not_see_what_feeds_a_saturated_mlp(planted, method):
    """Its slope is 0 in the base run; RelP's, gelu(x) ÷ x, cancels over the two neurons."""
    own, _ = planted[method]
    assert own["L1-MLP", "logits", "final"] > 1
    assert abs(own["L0H1", "L1-MLP", "final"]) < 1e-3


def test_integrated_gradients_rank_planted_edges_first_but_missize_them(planted):
    """One of few points lies on the ramp, whose slope stands for a fifth of the way."""
    own, others = planted["eap-ig"]
    assert min(own.values()) > 2 * abs(others).max()
    assert own["L0H1", "L1-MLP", "final"] > 10 * planted["exact"][0]["L0H1", "L1-MLP", "final"]
