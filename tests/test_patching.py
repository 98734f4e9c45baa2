from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformer_lens import patching as tl_patching
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import AutoModelForCausalLM

from interp.config import Direction
from interp.fields import argument
from interp.model.checkpoint_io import write_checkpoint
from interp.model.decoder import DecoderConfig, HookedDecoder, initialise
from interp.patching import patch, patch_sites, recompute
from interp.patching.sites import default_sites

SITES = default_sites(parallel=False)
RESIDUAL = ("resid_pre", "resid_mid", "attn_out", "mlp_out")
METRICS = ("patched", "patched_first_logprob", "patched_value_logprob")


def hook_name(site, layer):
    return f"blocks.{layer}.attn.hook_z" if site == "z" else f"blocks.{layer}.hook_{site}"


def paste(activation, hook, *, source, positions, head):
    activation = activation.clone()
    at = (slice(None), positions) if head is None else (slice(None), positions, head)
    activation[at] = source[hook.name][at]
    return activation


def naive_patch(model, fact, site, layer, head, positions, direction):
    """The three metrics of one cell and fact by a hook on a whole forward pass."""
    value = fact.answer
    clean, corrupted = (torch.cat((p, value[:-1]))[None] for p in (fact.clean, fact.corrupted))
    base, source = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
    name = hook_name(site, layer)
    _, cache = model.run_with_cache(source, names_filter=name)
    hook = partial(paste, source=cache, positions=positions, head=head)
    logits = model.run_with_hooks(base, fwd_hooks=[(name, hook)])[0]
    log_p, final = logits.log_softmax(-1), len(fact.clean) - 1
    difference = logits[final, value[0]] - logits[final, fact.corrupted_answer[0]]
    whole = sum(log_p[final + i, token] for i, token in enumerate(value))
    return [difference.item(), log_p[final, value[0]].item(), whole.item()]


def compare_with_naive(model, facts, results, direction, by, cells):
    for site, layer, head, group, i in cells:
        fact = facts[i]
        label = results[site][by].values[group]
        positions = (
            [p for p, role in enumerate(fact.roles) if role == label] if by == "role" else [label]
        )
        place = {"layer": layer, by: label} | ({"head": head} if site == "z" else {})
        ours = [float(results[site][metric].sel(place)[i]) for metric in METRICS]
        if not positions:
            assert np.isnan(ours).all()
            continue
        head = head if site == "z" else None
        theirs = naive_patch(model, fact, site, layer, head, positions, direction)
        np.testing.assert_allclose(ours, theirs, atol=2e-5, err_msg=f"{site} {place} fact {i}")


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_every_cell_is_what_a_hook_on_a_whole_forward_pass_gives(model, facts, direction):
    results = patch_sites(model, facts, sites=SITES, direction=direction)
    rng = np.random.default_rng(0)
    n_roles = results["z"].sizes["role"]
    cells = [
        (site, *(int(rng.integers(n)) for n in (3, 4, n_roles, len(facts))))
        for site in SITES
        for _ in range(25)
    ]
    compare_with_naive(model, facts, results, direction, "role", cells)


@settings(max_examples=8, deadline=None)
@given(
    shape=st.tuples(
        st.integers(1, 4), st.sampled_from([1, 2, 4]), st.booleans(), st.sampled_from([None, 2])
    ),
    seed=st.integers(0, 99),
    tokens_at_once=st.sampled_from([1, 40, 8192]),
    direction=st.sampled_from(["denoising", "noising"]),
    data=st.data(),
)
def test_random_models_cells_and_portions_agree_with_hooks(
    suite, shape, seed, tokens_at_once, direction, data
):
    n_layers, n_heads, parallel, rotary_dim = shape
    d_vocab = suite.tokenizer.get_vocab_size()
    config = DecoderConfig(
        n_layers, n_heads, 16, 32, d_vocab, parallel=parallel, rotary_dim=rotary_dim
    )
    model = HookedDecoder(config)
    initialise(model, std=0.4, seed=seed)
    model = model.eval().double()
    facts = suite.facts(5, seed=seed)
    sites = [site for site in SITES if not (parallel and site == "resid_mid")]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(recompute, "TOKENS_AT_ONCE", tokens_at_once)
        results = patch_sites(model, facts, sites=sites, direction=direction)
    n_roles = results["z"].sizes["role"]
    cell = st.tuples(
        st.sampled_from(sites), *(st.integers(0, n - 1) for n in (n_layers, n_heads, n_roles, 5))
    )
    cells = data.draw(st.lists(cell, min_size=6, max_size=6))
    compare_with_naive(model, facts, results, direction, "role", cells)


@pytest.fixture(scope="module")
def same_length(suite):
    return suite.facts(8, length=11, seed=2)


@pytest.fixture(scope="module")
def bridge(model, tmp_path_factory):
    """What a TransformerLens user builds around the same checkpoint folder."""
    folder = tmp_path_factory.mktemp("bridge") / "step"
    write_checkpoint(model, folder, dtype=torch.float32)
    hf_model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    kind = type(hf_model).__name__
    return build_bridge_from_module(hf_model, architecture=kind, hf_config=hf_model.config).eval()


@pytest.mark.parametrize(
    ("site", "theirs"),
    [
        ("resid_pre", tl_patching.get_act_patch_resid_pre),
        ("resid_mid", tl_patching.get_act_patch_resid_mid),
        ("attn_out", tl_patching.get_act_patch_attn_out),
        ("mlp_out", tl_patching.get_act_patch_mlp_out),
        ("z", tl_patching.get_act_patch_attn_head_out_by_pos),
    ],
)
@pytest.mark.parametrize("which", ["bridge", "model"])
def test_transformer_lens_gives_the_same_numbers(model, bridge, same_length, site, theirs, which):
    facts, other = same_length, {"bridge": bridge, "model": model}[which]
    final = facts.lengths[0] - 1

    def metric(logits):
        rows = torch.arange(len(facts))
        answer, wrong = facts.answers[:, 0], facts.corrupted_answers[:, 0]
        return (logits[rows, final, answer] - logits[rows, final, wrong]).mean()

    with torch.no_grad():
        _, cache = other.run_with_cache(facts.clean)
        expected = theirs(other, facts.corrupted, cache, metric)
    ours = patch(model, facts, site=site, by="pos").patched.mean("fact")
    ours = ours.transpose("layer", "pos", *(["head"] if site == "z" else []))
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_denoising_the_only_difference_at_layer_0_gives_the_clean_run(model, facts):
    name = facts.roles.clone()
    name[(name >= 2) & (name <= 4)] = 2
    together = type(facts)(**{**vars(facts), "roles": name})
    result = patch(model, together, site="resid_pre").sel(layer=0, role="name_first")
    for metric in ("", "_first_logprob", "_value_logprob"):
        np.testing.assert_allclose(result[f"patched{metric}"], result[f"clean{metric}"], atol=2e-5)


def test_the_last_residual_stream_at_final_decides_the_first_token(model, facts):
    result = patch(model, facts, site="mlp_out", direction="noising")
    assert not np.allclose(result.patched.sel(layer=2, role="final"), result.clean, atol=1e-3)
    result = patch(model, facts, site="resid_mid").sel(layer=2, role="final")
    np.testing.assert_allclose(result.patched, result.clean, atol=2e-5)


@pytest.mark.parametrize("site", SITES)
def test_cells_before_the_first_difference_are_exactly_the_base_run(model, facts, site):
    result = patch(model, facts, site=site)
    assert (result.patched.sel(role="bos") == result.corrupted).all()
    early = facts[[i for i, fact in enumerate(facts) if fact.roles[1] == "cue"]]
    assert len(early)


@pytest.mark.parametrize("site", [site for site in SITES if site != "resid_pre"])
def test_outputs_of_the_last_layer_matter_at_the_final_position_only(model, facts, site):
    last = patch(model, facts, site=site).patched.isel(layer=-1)
    corrupted = patch(model, facts, site=site).corrupted
    for role in ("name_first", "name_middle", "name_last"):
        assert (last.sel(role=role) == corrupted).all()


@pytest.mark.parametrize("site", SITES)
def test_patching_a_run_into_itself_changes_nothing(model, facts, site):
    itself = type(facts)(**{**vars(facts), "corrupted": facts.clean})
    result = patch(model, itself, site=site)
    unpatched = result.corrupted.broadcast_like(result.patched).where(result.patched.notnull())
    np.testing.assert_array_equal(result.patched, unpatched.transpose(*result.patched.dims))


@pytest.mark.parametrize("site", SITES)
def test_denoising_is_noising_with_the_prompts_exchanged(model, facts, site):
    exchanged = type(facts)(**{**vars(facts), "clean": facts.corrupted, "corrupted": facts.clean})
    denoised = patch(model, facts, site=site, direction="denoising")
    noised = patch(model, exchanged, site=site, direction="noising")
    np.testing.assert_allclose(denoised.patched, noised.patched, atol=1e-6)
    np.testing.assert_allclose(denoised.clean, noised.corrupted, atol=1e-6)


def test_a_planted_head_that_moves_the_last_name_is_the_only_one_found(suite):
    """Layer 1, head 2 copies a name token's embedding to ``final``; nothing else writes."""
    d_vocab, d_model = suite.tokenizer.get_vocab_size(), 64
    model = HookedDecoder(DecoderConfig(2, 4, d_model, 8, d_vocab))
    initialise(model, std=0.0, seed=0)
    generator = torch.Generator().manual_seed(0)
    model.embed.weight.data = torch.randn(d_vocab, d_model, generator=generator)
    model.unembed.weight.data = torch.randn(d_vocab, d_model, generator=generator)
    attention = model.blocks[1].attn
    head, d_head = 2, 16
    values = slice((head * 3 + 2) * d_head, (head * 3 + 3) * d_head)
    attention.qkv.weight.data[values] = torch.randn(d_head, d_model, generator=generator)
    outputs = slice(head * d_head, (head + 1) * d_head)
    attention.out.weight.data[:, outputs] = torch.randn(d_model, d_head, generator=generator)
    facts = suite.facts(12, seed=0)
    result = patch(model.eval(), facts, site="z")
    effect = abs(result.patched - result.corrupted).max("fact")
    assert float(effect.sel(layer=1, head=head, role="final")) > 0.1
    planted = (effect["layer"] == 1) & (effect["head"] == head) & (effect["role"] == "final")
    assert float(effect.where(~planted, 0).max()) == 0
    silent = patch(model, facts, site="mlp_out")
    assert float(abs(silent.patched - silent.corrupted).max()) == 0


def test_logit_difference_is_correct_minus_other_at_final(model, facts):
    result = patch(model, facts, site="z")
    fact = facts[4]
    logits = model(fact.clean[None])[0, -1]
    expected = logits[fact.answer[0]] - logits[fact.corrupted_answer[0]]
    assert float(result.clean[4]) == pytest.approx(expected.item(), abs=1e-5)
    corrupted = model(fact.corrupted[None])[0, -1].log_softmax(-1)[fact.answer[0]]
    assert float(result.corrupted_first_logprob[4]) == pytest.approx(corrupted.item(), abs=1e-5)


def test_a_role_that_a_fact_lacks_is_missing_and_not_zero(model, suite):
    facts = suite.facts(240)
    without_cue = [i for i, fact in enumerate(facts) if "cue" not in fact.roles]
    chosen = facts[[*without_cue[:2], 0, 1, 2]]
    cue = patch(model, chosen, site="attn_out").patched.sel(role="cue", layer=0)
    assert cue.isnull().values.tolist() == ["cue" not in fact.roles for fact in chosen]


def test_dimensions_and_labels_are_those_of_the_design(model, facts):
    result = patch(model, facts, site="z")
    assert result.patched.dims == ("layer", "head", "role", "fact")
    assert result.clean.dims == result.corrupted.dims == ("fact",)
    assert patch(model, facts, site="attn_out").patched.dims == ("layer", "role", "fact")
    assert result.patched.attrs["units"] == "nats"
    assert result.attribute.values.tolist() == facts.texts.attribute.tolist()


def test_the_model_and_the_random_stream_are_left_alone(model, facts):
    before, state = model(facts.clean), torch.random.get_rng_state()
    patch(model, facts, site="z")
    assert torch.equal(model(facts.clean), before)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_unknown_sites_groups_and_lengths_are_refused_with_what_there_is(model, facts):
    with pytest.raises(ValueError, match="no site 'zz'; there are embed, resid_pre"):
        patch(model, facts, site="zz")
    with pytest.raises(
        ValueError, match=r"prompts of one length, got \d+ to \d+ tokens; sample them"
    ):
        patch(model, facts, site="z", by="pos")
    parallel = HookedDecoder(DecoderConfig(1, 1, 4, 4, model.cfg.d_vocab, parallel=True))
    with pytest.raises(ValueError, match="no site 'resid_mid' in a model whose attention and MLP"):
        patch(parallel, facts, site="resid_mid")


def test_an_unknown_direction_is_refused_where_types_are_not_checked():
    with pytest.raises(ValueError, match="direction is 'up'; it must be one of denoising"):
        argument("direction", "up", Direction)


def test_hooks_left_on_the_model_are_refused(model, facts):
    with (
        model.hooks(fwd_hooks=[("hook_embed", lambda x, hook: x)]),
        pytest.raises(ValueError, match="the model has hooks"),
    ):
        patch(model, facts, site="z")
