"""The same call on other people's models: equal to our engine, and to hooks written by hand."""

from dataclasses import replace
from functools import partial
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracle import HOOKS, inputs, metrics, random_model
from test_interventions import EDGES, N_NEURONS, cells_of, change, compare, ours
from torch import nn
from transformer_lens import HookedRootModule, TransformerBridge
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from interp.model.checkpoint_io import write_checkpoint
from interp.model.decoder import HookedDecoder
from interp.patching import patch, patch_sites
from interp.patching.hooks import HookedRuns
from interp.patching.sites import SITES


def bridge_around(hf_model):
    return build_bridge_from_module(
        hf_model.eval(), architecture=type(hf_model).__name__, hf_config=hf_model.config
    ).eval()


@pytest.fixture(scope="module")
def decoder(suite):
    return random_model(suite).float()


@pytest.fixture(scope="module")
def bridge(decoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bridge") / "step"
    write_checkpoint(decoder, folder, dtype=torch.float32)
    return bridge_around(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))


@pytest.fixture(scope="module", params=["grouped queries", "parallel", "learned positions"])
def foreign(request, suite):
    shape = dict(vocab_size=suite.tokenizer.get_vocab_size(), initializer_range=0.4)
    torch.manual_seed(0)
    if request.param == "learned positions":
        return bridge_around(GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=4, **shape)))
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4)
    if request.param == "parallel":
        config = GPTNeoXConfig(use_parallel_residual=True, **sizes, **shape)
        return bridge_around(GPTNeoXForCausalLM(config))
    config = LlamaConfig(num_key_value_heads=2, **sizes, **shape)
    return bridge_around(LlamaForCausalLM(config))


@pytest.fixture(scope="module")
def few(suite):
    return suite.facts(5, seed=3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"direction": "noising", "window": 2},
        {"replacement": "noise", "noise_draws": 2},
        {"direction": "noising", "replacement": "mean"},
        {"direction": "noising", "replacement": "zero"},
        {"direction": "noising", "replacement": "resample", "groups": ("all", "name_last+final")},
    ],
    ids=str,
)
def test_a_bridge_around_the_same_checkpoint_gives_the_same_results(decoder, bridge, few, options):
    sites = [s for s in SITES if "knockout" not in s or options.get("direction") == "noising"]
    sites = [s for s in sites if not s.startswith("rot")]  # a bridge never calls their hooks
    if options.get("replacement") in ("mean", "resample"):
        sites = [s for s in sites if s not in ("attn_scores", "pattern", "edge")]
    if options.get("replacement") == "zero":
        sites.remove("attn_scores")
    fast = patch_sites(decoder, few, sites=sites, n_neurons=8, **options)
    slow = patch_sites(bridge, few, sites=sites, n_neurons=8, **options)
    for site in sites:
        assert fast[site].patched.dims == slow[site].patched.dims
        for name in fast[site].data_vars:
            np.testing.assert_allclose(
                fast[site][name], slow[site][name], atol=5e-5, err_msg=f"{site} {name}"
            )
    assert float(abs(slow["z"].patched - slow["z"].corrupted).max()) > 1e-2


def by_hooks(monkeypatch, model):
    """From here on our own model is patched as models of others are."""
    name = "interp.patching.act_patch.Recompute"
    monkeypatch.setattr(name, lambda _, max_bytes: HookedRuns(model, max_bytes))


def test_zeros_are_pasted_in_the_models_own_precision(decoder, few, monkeypatch):
    double = HookedDecoder(decoder.cfg)
    double.load_state_dict(decoder.state_dict())
    options = {"site": "pattern", "direction": "noising", "replacement": "zero"}
    fast = patch(double.eval().double(), few, **options)
    by_hooks(monkeypatch, double)
    np.testing.assert_allclose(fast.patched, patch(double, few, **options).patched, atol=1e-6)


def test_our_model_by_hooks_gives_the_same_results(decoder, few, monkeypatch):
    fast = patch_sites(decoder, few, sites=["z", "pattern"])
    by_hooks(monkeypatch, decoder)
    slow = patch_sites(decoder, few, sites=["z", "pattern"])
    for site, result in fast.items():
        np.testing.assert_allclose(result.patched, slow[site].patched, atol=2e-5)


@pytest.mark.parametrize("site", SITES)
def test_other_architectures_give_what_hooks_written_by_hand_do(foreign, few, site):
    if site == "resid_mid" and site not in str(foreign.hook_dict.keys()):
        with pytest.raises(ValueError, match="no site 'resid_mid' in this TransformerBridge"):
            patch(foreign, few, site=site)
        return
    if site.startswith("rot") and not foreign.cfg.n_key_value_heads:
        with pytest.raises(ValueError, match=r"no site|never calls its hook|has shape"):
            patch(foreign, few, site=site)
        return
    options = {"direction": "noising", "window": 2, "n_neurons": N_NEURONS}
    max_memory = 1e-2 if site in EDGES else 4e-3  # several portions
    results = patch_sites(foreign, few, sites=[site], max_memory=max_memory, **options)
    rng = np.random.default_rng(0)
    cells = cells_of(site, foreign, results[site])
    if site in ("k", "v", "rot_k"):
        n_key_heads = foreign.cfg.n_key_value_heads or foreign.cfg.n_heads
        assert results[site].sizes["head"] == n_key_heads
        cells = [cell for cell in cells if cell[2] < n_key_heads]
    chosen = [(cells[i], int(rng.integers(len(few)))) for i in rng.permutation(len(cells))[:16]]
    assert compare(foreign, few, site, results, chosen, "noising", 2, atol=5e-5) > 1e-3


class ToyBlock(nn.Module):
    """Attention, causal or not, and an MLP; no LayerNorm. ``deaf``: what the hook of the MLP's
    output returns is not used.
    """

    def __init__(self, d, n_heads, *, causal, deaf=False):
        super().__init__()
        self.causal, self.deaf = causal, deaf
        self.attn, self.mlp = nn.Module(), nn.Module()
        for name in ("q", "k", "v"):
            setattr(self.attn, name, nn.Parameter(torch.randn(n_heads, d, d // n_heads)))
        self.attn.o = nn.Parameter(torch.randn(n_heads, d // n_heads, d))
        self.mlp.up, self.mlp.down = (nn.Parameter(torch.randn(d, d) / 2) for _ in range(2))
        for name in ("q", "k", "v", "attn_scores", "pattern", "z"):
            setattr(self.attn, f"hook_{name}", HookPoint())
        self.mlp.hook_post = HookPoint()
        for name in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"):
            setattr(self, f"hook_{name}", HookPoint())

    def forward(self, x):
        x, a = self.hook_resid_pre(x), self.attn
        q, k, v = (
            hook(torch.einsum("bpd,hde->bphe", x, w))
            for hook, w in ((a.hook_q, a.q), (a.hook_k, a.k), (a.hook_v, a.v))
        )
        scores = torch.einsum("bdhe,bshe->bhds", q, k)
        if self.causal:
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
        pattern = a.hook_pattern(a.hook_attn_scores(scores).softmax(-1))
        z = a.hook_z(torch.einsum("bhds,bshe->bdhe", pattern, v))
        x = self.hook_resid_mid(x + self.hook_attn_out(torch.einsum("bphe,hed->bpd", z, a.o)))
        written = self.mlp.hook_post((x @ self.mlp.up).relu()) @ self.mlp.down
        heard = self.hook_mlp_out(written)
        return self.hook_resid_post(x + (written if self.deaf else heard))


class Toy(HookedRootModule):
    """A user's own model, in float64; as a rule it attends both ways."""

    def __init__(self, d_vocab, *, causal=False, n_layers=2, n_heads=2, d=8, deaf=()):
        super().__init__()
        torch.manual_seed(0)
        self.cfg = SimpleNamespace(
            n_layers=n_layers, n_heads=n_heads, n_key_value_heads=n_heads, d_model=d, d_mlp=d,
            d_vocab=d_vocab, n_ctx=64,
        )  # fmt: skip
        self.embed, self.pos = nn.Embedding(d_vocab, d), nn.Parameter(torch.randn(64, d) / 2)
        self.hook_embed, self.unembed = HookPoint(), nn.Linear(d, d_vocab)
        self.blocks = nn.ModuleList(
            ToyBlock(d, n_heads, causal=causal, deaf=i in deaf) for i in range(n_layers)
        )
        self.double().eval().setup()

    def forward(self, tokens):
        x = self.hook_embed(self.embed(tokens)) + self.pos[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.unembed(x)


@pytest.fixture(scope="module")
def d_vocab(suite):
    return suite.tokenizer.get_vocab_size()


@pytest.fixture(scope="module")
def of_one_length(suite):
    facts = suite.facts(40, seed=3)
    facts = facts[(facts.lengths == facts.lengths.mode().values).nonzero()[:, 0].tolist()][:3]
    assert len(facts) == 3
    return replace(facts, answers=facts.answers[:, :1])


def test_a_model_that_does_not_listen_to_its_hook_is_refused(d_vocab, few):
    deaf = Toy(d_vocab, causal=True, deaf=(1,))
    assert float(abs(patch(deaf, few, site="z").patched).max()) > 0
    with pytest.raises(ValueError, match=r"depends on what its hook 'blocks\.1\.hook_mlp"):
        patch(deaf, few, site="mlp_out")
    heard = patch(deaf, few, site="mlp_out", layers=(0,))  # layer 1 is not changed
    assert heard.layer.values.tolist() == [0]


@pytest.mark.parametrize("site", ["z", "attn_out", "v", "pattern", "knockout", "head_knockout"])
def test_a_layer_whose_output_has_no_effect_has_effects_of_0(d_vocab, few, site):
    dead = Toy(d_vocab, causal=True)
    dead.blocks[1].attn.o.data.zero_()
    result = patch(dead, few, site=site, direction="noising", groups=("final", "all"))
    effect = (result.patched - result.clean).fillna(0.0)
    assert float(abs(effect.sel(layer=0)).max()) > 1e-3
    assert float(abs(effect.sel(layer=1)).max()) == 0


@pytest.mark.parametrize(
    "site", ["embed", "resid_pre", "attn_out", "mlp_out", "z", "k", "pattern", "edge", "knockout"]
)
def test_effects_in_a_model_that_attends_both_ways_are_those_of_hooks_by_hand(
    d_vocab, of_one_length, site
):
    toy, direction = Toy(d_vocab), "noising" if site == "knockout" else "denoising"
    results = patch_sites(
        toy, of_one_length, sites=[site], direction=direction, whole_value=False, n_neurons=8
    )
    assert not np.isnan(results[site].patched).any()
    worst = 0.0
    with torch.no_grad():
        for fact, cell in product(range(len(of_one_length)), cells_of(site, toy, results[site])):
            theirs, plain = by_hand(toy, of_one_length[fact], cell, direction)
            mine = ours(results[site].pipe(with_value), cell, fact)[:2]
            np.testing.assert_allclose(mine, theirs, atol=1e-5, err_msg=f"{cell}, fact {fact}")
            earlier = site in EDGES or cell[3] == "bos"
            worst = max(worst, max(abs(np.subtract(theirs, plain))) if earlier else 0)
    assert worst > 1e-2 or site == "embed"  # where a causal model has none


def with_value(result):
    """As if the whole value were its first token, for ``ours``."""
    return result.assign(patched_value_logprob=result.patched_first_logprob)


def by_hand(toy, fact, cell, direction):
    """Metrics of one cell, and of the base run, with nothing known of causality."""
    site, layer, part, group, src = cell
    base, source = inputs(fact, direction)
    _, cache = toy.run_with_cache(source)
    positions, sources = ([p for p, x in enumerate(fact.roles) if x == at] for at in (group, src))
    hook = partial(change, site=site, source=cache, part=part, positions=positions, sources=sources)
    logits = toy.run_with_hooks(base, fwd_hooks=[(HOOKS[site].format(layer), hook)])
    return metrics(logits, fact)[:2], metrics(toy(base), fact)[:2]


def test_what_a_model_that_attends_both_ways_would_read_too_much_is_refused(suite, d_vocab):
    toy, facts = Toy(d_vocab), suite.facts(12, seed=3)
    with pytest.raises(ValueError, match=r"this Toy attends to later tokens, .*of one length"):
        patch(toy, facts, site="z", whole_value=False)
    longer = facts[(facts.lengths == facts.lengths[0]).nonzero()[:, 0].tolist()]
    longer = replace(longer, answers=longer.answers[:, :1].repeat(1, 2))
    with pytest.raises(ValueError, match=r"this Toy .*values of up to 2 tokens.*whole_value=False"):
        patch(toy, longer, site="z")


@pytest.fixture(scope="module")
def bert(d_vocab):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=d_vocab, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, initializer_range=0.4,
    )  # fmt: skip
    return bridge_around(BertForMaskedLM(config))


@pytest.mark.parametrize("site", ["z", "attn_out", "mlp_out", "resid_pre"])
def test_a_bert_bridge_gives_what_hooks_by_hand_do(bert, of_one_length, site):
    results = patch_sites(bert, of_one_length, sites=[site], whole_value=False)
    worst = 0.0
    with torch.no_grad():
        for cell in cells_of(site, bert, results[site]):
            theirs, plain = by_hand(bert, of_one_length[1], cell, "denoising")
            mine = ours(results[site].pipe(with_value), cell, 1)[:2]
            np.testing.assert_allclose(mine, theirs, atol=5e-5, err_msg=f"{cell}")
            worst = max(worst, max(abs(np.subtract(theirs, plain))) if cell[3] == "bos" else 0)
    assert worst > 1e-3


def test_hooks_of_a_users_own_on_a_bert_bridge_are_refused(bert, of_one_length):
    point = bert.hook_dict["blocks.0.hook_mlp_out"]
    for options, advice in (
        ({}, r"with model\.reset_hooks\(\)"),
        ({"is_permanent": True}, "build"),
    ):
        handle = point.add_hook(lambda x, hook: 0 * x, **options)
        with pytest.raises(ValueError, match=rf"the model has hooks.*{advice}"):
            patch(bert, of_one_length, site="z", whole_value=False)
        handle.hook.remove()
        point.fwd_hooks.remove(handle)


def test_transformer_lenss_own_bidirectional_model_gives_what_hooks_by_hand_do(
    d_vocab, of_one_length
):
    shape = dict(n_layers=2, d_model=16, n_heads=4, d_head=4, d_mlp=32, n_ctx=64, d_vocab=d_vocab)
    cfg = TransformerBridgeConfig(
        act_fn="gelu", normalization_type="LN", seed=0, attention_dir="bidirectional", **shape
    )
    native = TransformerBridge.boot_native(cfg).eval()
    with torch.no_grad():
        for weight in native.parameters():
            weight.add_(torch.randn(weight.shape) / 3)
        result = patch(native, of_one_length, site="resid_pre", whole_value=False)
        for cell in cells_of("resid_pre", native, result):
            theirs, plain = by_hand(native, of_one_length[0], cell, "denoising")
            mine = ours(result.pipe(with_value), cell, 0)[:2]
            np.testing.assert_allclose(mine, theirs, atol=1e-4, err_msg=f"{cell}")
            if cell[1:4:2] == (1, "bos"):
                assert max(abs(np.subtract(theirs, plain))) > 1e-3


def test_a_hook_that_is_never_called_stops_the_sweep(bridge, few, monkeypatch):
    monkeypatch.setattr(bridge, "run_with_hooks", lambda tokens, fwd_hooks: bridge(tokens))
    with pytest.raises(ValueError, match=r"never calls its hook .blocks\.0\.hook_mlp_out."):
        patch(bridge, few, site="mlp_out")


def test_paths_and_training_mode_are_refused(bridge, few):
    with pytest.raises(ValueError, match="path 'z-q' needs a HookedDecoder, got a Transformer"):
        patch(bridge, few, site="z-q")
    bridge.train()
    try:
        with pytest.raises(ValueError, match="the model is in training mode"):
            patch(bridge, few, site="z")
    finally:
        bridge.eval()
