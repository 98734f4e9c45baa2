"""What a model must be before its weights are read, and what it is asked otherwise."""

from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_hooks import Toy
from torch import nn
from torch.nn.utils import parametrizations, prune
from transformer_lens.hook_points import HookPoint

from interp.localization.attention_to_names import attention
from interp.localization.logit_attribution import copying, direct_attribution
from interp.localization.neurons import written
from interp.localization.probes import probe, read_off
from interp.localization.rome import find_edits
from interp.model.decoder import HookedDecoder
from interp.model.model_check import check_agree, check_finite, check_plain, is_causal
from interp.patching import patch
from interp.patching.activations import prompts
from interp.patching.packed_weights import pack
from interp.patching.recompute import Recompute, check_same_logits


class LoraLinear(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.linear, self.down, self.up = linear, nn.Linear(32, 2), nn.Linear(2, 64)

    def forward(self, x):
        return self.linear(x) + self.up(self.down(x))


class Scaled(HookedDecoder):
    def forward(self, tokens):
        return 2 * super().forward(tokens)


class Named(HookedDecoder):
    def describe(self):
        return "methods of one's own do no harm"


def with_lora(model):
    model.blocks[1].mlp.up = LoraLinear(model.blocks[1].mlp.up).eval()


def scaled(model):
    model.__class__ = Scaled


def patched_on_the_instance(model):
    model.blocks[0].mlp.forward = lambda x: x


def parametrized(model):
    parametrizations.orthogonal(model.blocks[0].attn.out)


def pruned(model):
    prune.random_unstructured(model.blocks[2].mlp.down, "weight", amount=0.3)


def hooked_by_torch(model):
    model.blocks[1].register_forward_hook(lambda *_: None)


def hooked_before(model):
    model.ln_final.register_forward_pre_hook(lambda *_: None)


def hooked_at_a_hook_point(model):
    model.hook_embed.register_forward_hook(lambda *_: None)


def with_other_heads(model):
    model.blocks[0].attn.n_heads = 2


def with_other_eps(model):
    model.ln_final.eps = 0.5


def with_clipped_embeddings(model):
    model.embed.max_norm = 1.0


def with_an_extra_module(model):
    model.blocks[0].adapter = nn.Linear(2, 2).eval()


def without_a_block(model):
    del model.blocks[2]


def with_narrow_weights(model):
    model.blocks[0].mlp.down.weight = nn.Parameter(torch.zeros(32, 8))


def with_whole_numbers(model):
    weight = torch.zeros(model.unembed.weight.shape, dtype=torch.int8)
    model.unembed.weight = nn.Parameter(weight, requires_grad=False)


def compare_logits(model, facts):
    given = prompts(facts, "cpu")[0]
    runs = Recompute(pack(model, given.tokens.shape[1]), max_bytes=1e9)
    check_same_logits(model, runs, runs.run(given), n=8)


NOT_PLAIN = {
    with_lora: r"blocks\.1\.mlp\.up is a LoraLinear, not the Linear .* merge it into the weights",
    scaled: "Scaled has another forward than HookedDecoder",
    patched_on_the_instance: r"blocks\.0\.mlp has a forward of its own",
    parametrized: r"blocks\.0\.attn\.out is a ParametrizedLinear, not the Linear",
    pruned: r"blocks\.2\.mlp\.down has PyTorch forward pre hooks",
    hooked_by_torch: r"blocks\.1 has PyTorch forward hooks",
    hooked_before: "ln_final has PyTorch forward pre hooks",
    hooked_at_a_hook_point: "hook_embed has PyTorch forward hooks",
    with_other_heads: r"blocks\.0\.attn\.n_heads is 2 where the model's cfg makes it 4",
    with_other_eps: r"ln_final\.eps is 0\.5 where",
    with_clipped_embeddings: r"embed\.max_norm is 1\.0 where the model's cfg makes it None",
    with_an_extra_module: r"blocks\.0\.adapter is a Linear, which a HookedDecoder does not have",
    without_a_block: r"blocks\.2 is missing from the model",
    with_narrow_weights: r"blocks\.0\.mlp\.down\.weight has shape \(32, 8\)",
    with_whole_numbers: r"unembed\.weight is a Parameter, not a parameter of floating-point",
}


@pytest.mark.parametrize("change", NOT_PLAIN, ids=lambda change: change.__name__)
def test_a_decoder_whose_weights_do_not_tell_all_is_refused_by_the_modules_name(
    model, facts, change
):
    other = deepcopy(model)
    change(other)
    other.eval()
    with pytest.raises(ValueError, match=NOT_PLAIN[change]) as error:
        patch(other, facts, site="z")
    assert "\n" not in str(error.value)


def test_hooks_on_all_modules_are_refused(model, facts):
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(ValueError, match="PyTorch has hooks on all modules"):
            patch(model, facts, site="z")
    finally:
        handle.remove()


def test_a_subclass_with_more_methods_and_tied_weights_are_plain(model, facts):
    named = deepcopy(model)
    named.__class__ = Named
    named.unembed.weight = named.embed.weight
    state = torch.get_rng_state()
    check_plain(named)
    compare_logits(named, facts)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "ask",
    [
        attention,
        direct_attribution,
        probe,
        read_off,
        copying,
        lambda model, facts: written(model, facts, layer=0),
    ],
)
def test_localization_refuses_a_decoder_whose_weights_do_not_tell_all(model, facts, ask):
    other = deepcopy(model)
    with_lora(other)
    with pytest.raises(ValueError, match=r"blocks\.1\.mlp\.up is a LoraLinear"):
        ask(other, facts)


def test_an_edit_of_a_decoder_whose_weights_do_not_tell_all_is_refused(model, suite, facts):
    other = deepcopy(model)
    with_lora(other)
    with pytest.raises(ValueError, match=r"blocks\.1\.mlp\.up is a LoraLinear"):
        find_edits(other, suite, facts, layer=0, role="name_last")


@pytest.mark.parametrize(("permanent", "how"), [(False, ""), (True, "including_permanent=True")])
def test_the_advice_takes_a_hook_off_indeed(model, facts, permanent, how):
    other = deepcopy(model)
    other.add_hook("blocks.1.attn.hook_z", lambda x, hook: 0 * x, is_permanent=permanent)
    with pytest.raises(ValueError, match=rf"'blocks\.1\.attn\.hook_z'.*reset_hooks\({how}\)"):
        patch(other, facts, site="z")
    other.reset_hooks(including_permanent=permanent)
    patch(other, facts[[0]], site="mlp_out")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_engines_logits_are_the_models_own_in_every_precision(model, facts, dtype):
    compare_logits(deepcopy(model).to(dtype), facts)


def test_a_forward_that_computes_something_else_is_noticed_by_its_logits(model, facts, monkeypatch):
    monkeypatch.setattr(
        "interp.model.decoder.F.gelu", lambda x, **_: nn.functional.silu(1.702 * x) / 1.702
    )
    with pytest.raises(ValueError, match=r"the model's own forward gives logits up to .* away"):
        patch(model, facts, site="z")


def test_logits_agree_within_half_the_digits_of_the_largest():
    own = torch.tensor([[10.0, -2.0]])
    check_agree(own + 0.003, own)  # √1.2e-7 · 10 = 0.0035
    with pytest.raises(ValueError, match=r"up to 0\.004 away from those .*largest: 10"):
        check_agree(own + 0.004, own)


def test_attention_to_later_tokens_is_found_wherever_it_is(model):
    tokens = torch.arange(3, 14)
    assert is_causal(model, tokens)
    assert is_causal(Toy(40, causal=True), tokens)
    assert not is_causal(Toy(40), tokens)
    within_a_prefix = Toy(40, causal=True)
    for block in within_a_prefix.blocks:
        hook = block.attn.hook_attn_scores
        block.causal = False
        block.attn.hook_attn_scores = ToPrefix(hook)
    assert not is_causal(within_a_prefix, tokens)


@pytest.mark.parametrize("causal", [True, False])
def test_rounding_that_does_not_repeat_itself_is_not_taken_for_later_tokens(causal):
    torch.manual_seed(0)
    model, tokens = Toy(40, causal=causal), torch.arange(3, 14)
    rounded = model.forward

    def forward(tokens):
        logits = rounded(tokens)
        return logits + 1e-6 * torch.rand_like(logits)

    model.forward = forward
    assert is_causal(model, tokens) == causal


class ToPrefix(HookPoint):
    """Causal but for the first two tokens, which see each other."""

    def __init__(self, _):
        super().__init__()

    def forward(self, scores):
        future = torch.ones_like(scores).triu(1).bool()
        future[..., :2, :2] = False
        return scores.masked_fill(future, -torch.inf)


def spoiled(change, d_vocab):
    toy = Toy(d_vocab, causal=True)
    change(toy)
    return toy


def empty(toy):
    for module in toy.modules():
        module._parameters.clear()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (empty, "this Toy has no parameters"),
        (lambda toy: setattr(toy, "cfg", SimpleNamespace(n_heads=2)), r"no cfg\.n_layers; give"),
        (lambda toy: delattr(toy, "cfg"), r"this Toy has no cfg\.n_layers"),
        (lambda toy: setattr(toy.cfg, "d_mlp", None), r"this Toy has no cfg\.d_mlp"),
        (lambda toy: toy.to("meta"), r"pos is on the meta device"),
        (lambda toy: toy.blocks[1].train(), r"blocks\.1 of the model is in training mode"),
        (lambda toy: setattr(toy, "forward", lambda x: (x,)), "this Toy returns tuple for tokens"),
    ],
)
def test_a_model_that_cannot_be_run_is_refused_in_one_line(suite, facts, change, message):
    with pytest.raises(ValueError, match=message) as error:
        patch(spoiled(change, suite.tokenizer.get_vocab_size()), facts, site="z")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("where", ["embed", "unembed"])
def test_a_model_with_weights_that_are_not_finite_is_refused(model, facts, where):
    other = deepcopy(model)
    getattr(other, where).weight.data[:] = torch.nan
    with pytest.raises(ValueError, match="logits on fact 0, clean prompt, are not finite"):
        patch(other, facts, site="z")


def test_the_first_fact_that_is_not_finite_is_named():
    scores = np.array([[1.0, 2.0, np.inf, np.nan], [1.0, 1.0, 1.0, 1.0]])
    check_finite(scores[:, :2], np.array([5, 6]), "clean")
    with pytest.raises(ValueError, match=r"on fact 7, corrupted prompt, .*\(2 of 4 facts\)"):
        check_finite(scores, np.arange(5, 9), "corrupted")


def test_autocast_and_mixed_precisions_are_refused(suite):
    model = suite.load(30)
    with pytest.raises(ValueError, match=r"torch.autocast is on"), torch.autocast("cpu"):
        check_plain(model)
    model.blocks[0].mlp.double()
    with pytest.raises(ValueError, match=r"blocks.0.mlp.up.weight is torch.float64, other weights"):
        check_plain(model)
