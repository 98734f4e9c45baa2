"""The written-out backward pass beside autograd over hooked forward passes, in float64."""

import pytest
import torch
from oracle import AFTER, GROUPED, HOOKS

from interp.model.decoder import DecoderConfig, HookedDecoder, initialise
from interp.patching.activations import prompts
from interp.patching.backward import NEEDED, block_gradients, run_blocks
from interp.patching.gradients import gradients
from interp.patching.sites import SITES

SHAPES = {
    "plain": {},
    "parallel": {"parallel": True, "rotary_dim": 4},
    "learned": {"learned_positions": True, "activation": "gelu_tanh"},
    "grouped": GROUPED,
    "after": AFTER,
}
RESIDUAL = ("embed", "resid_pre", "resid_mid", "resid_post")


@pytest.fixture(scope="module", params=SHAPES)
def decoder(request, suite):
    shape = DecoderConfig(3, 4, 32, 64, suite.tokenizer.get_vocab_size(), **SHAPES[request.param])
    model = HookedDecoder(shape)
    initialise(model, std=0.3, seed=1)
    generator = torch.Generator().manual_seed(2)
    for weight in model.parameters():
        if weight.ndim == 1:
            weight.data += 0.1 * torch.randn(weight.shape, generator=generator)
    return model.double().eval().requires_grad_(False)


def names_of(model):
    activations = dict.fromkeys(site.activation for site in SITES.values())
    return [name for name in activations if not (model.cfg.parallel and name == "resid_mid")]


def by_autograd(model, tokens, slope, hooks=()):
    """Gradients of (slope · last residual stream) by every activation; None where there is none."""
    kept = {}

    def start(x, hook):
        kept[hook.name] = x.detach().requires_grad_()
        return kept[hook.name]

    def keep(x, hook):
        kept[hook.name] = x.clone()  # so that hooks that follow do not change its gradient
        return kept[hook.name]

    places = {(name, at): HOOKS[name].format(at) for name in names_of(model)
              for at in range(1 if name == "embed" else model.cfg.n_layers)}  # fmt: skip
    keeping = [(hook, start if name == "embed" else keep) for (name, _), hook in places.items()]
    model.run_with_hooks(tokens, fwd_hooks=[*keeping, *hooks])
    last = kept[HOOKS["resid_post"].format(model.cfg.n_layers - 1)]
    inputs = [kept[hook] for hook in places.values()]
    return dict(zip(places, torch.autograd.grad((slope * last).sum(), inputs, allow_unused=True)))


def written_out(model, facts, slope, **options):
    cache = run_blocks(model, model.embed(facts.clean), NEEDED)
    names = names_of(model)
    return {
        (name, layer): x[:, 0]
        for layer, of in block_gradients(model, cache, slice(None), slope[None], names, **options)
        for name, x in of.items()
    }


@pytest.fixture
def slope(facts):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(*facts.clean.shape, 32, generator=generator, dtype=torch.double)


def test_gradients_by_every_activation_are_those_of_autograd(decoder, facts, slope):
    theirs = by_autograd(decoder, facts.clean, slope)
    ours = written_out(decoder, facts, slope)
    assert ours.keys() == theirs.keys()
    for place, x in theirs.items():
        torch.testing.assert_close(ours[place][0], x, rtol=1e-10, atol=1e-11)
        assert float(x.abs().max()) > 1e-3


def test_relp_is_autograd_with_scales_and_slopes_detached(decoder, facts, slope):
    if decoder.cfg.gated:
        pytest.skip("relp is refused where neurons are gated")
    pre = {}

    def hold(x, hook):
        return x.detach()

    def remember(x, hook):
        pre[hook.name.replace("pre", "post")] = x

    def linear(x, hook):
        return pre[hook.name] * (x / pre[hook.name]).detach()

    hooks = []
    for at in range(3):
        hooks += [(f"blocks.{at}.ln{n}.hook_scale", hold) for n in (1, 2)]
        hooks += [(HOOKS["mlp_pre"].format(at), remember), (HOOKS["mlp_post"].format(at), linear)]
    hooks.sort(key=lambda hook: hook[1] is linear)
    plain, theirs = (by_autograd(decoder, facts.clean, slope, of) for of in ((), hooks))
    # Neurons are kept before the hook that makes them linear, so their gradient is not seen.
    seen = [place for place in theirs if place[0] != "mlp_post"]
    ours = written_out(decoder, facts, slope, relp=True)
    for place in seen:
        torch.testing.assert_close(ours[place][0], theirs[place], rtol=1e-10, atol=1e-11)
    assert not torch.allclose(plain["resid_pre", 0], theirs["resid_pre", 0], rtol=1e-2)


def test_dropping_a_layer_is_detaching_its_outputs(decoder, facts, slope):
    """An earlier layer changes nothing; a layer's own inside has no gradient then."""
    ours = written_out(decoder, facts, slope, drop_layers=True)
    plain = by_autograd(decoder, facts.clean, slope)
    for dropped in range(3):
        outputs = [HOOKS[x].format(dropped) for x in ("attn_out", "mlp_out")]
        detach = [(hook, lambda x, hook: x.detach()) for hook in outputs]
        theirs = by_autograd(decoder, facts.clean, slope, detach)
        for (name, layer), x in theirs.items():
            first = layer if name in RESIDUAL else layer + 1
            assert len(ours[name, layer]) == 1 + 3 - first
            if dropped >= first:
                mine = ours[name, layer][1 + dropped - first]
                torch.testing.assert_close(mine, x, rtol=1e-10, atol=1e-11)
            elif dropped < layer:
                torch.testing.assert_close(x, plain[name, layer], rtol=1e-10, atol=1e-11)
            else:
                assert x is None


@torch.no_grad()
def test_gradients_of_a_model_in_bf16_are_in_fp32(model, facts):
    (given, _), names = prompts(facts, "cpu"), ("z", "resid_pre")
    fact = torch.arange(len(facts))
    narrow = HookedDecoder(model.cfg)
    narrow.load_state_dict(model.state_dict())
    narrow = narrow.bfloat16()
    wide = HookedDecoder(model.cfg)
    wide.load_state_dict(narrow.float().state_dict())
    narrow = narrow.bfloat16()
    for layer in range(3):
        for name in names:
            x, y = (gradients(m, given, fact, names).of[1][layer][name] for m in (narrow, wide))
            assert x.dtype == torch.float32
            assert float((x - y).norm() / y.norm()) < 0.1  # activations have 8 bits
