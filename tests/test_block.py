"""One block: what its taps see, and what they can change, in every way of running it."""

from functools import partial

import pytest
import torch
from oracle import random_model

from interp.data.batches import evaluation_set
from interp.model.attention import rotation
from interp.model.block import after_attention, run_block, silent
from interp.model.decoder import HOOKS
from interp.patching.packed_weights import pack
from interp.training.packing import to_ragged

ATTENTION = ["q", "k", "v", "rot_q", "rot_k", "attn_scores", "pattern", "z"]
NAMES = {
    False: ["resid_pre", *ATTENTION, "attn_out", "resid_mid"],
    True: ["resid_pre", *ATTENTION, "attn_out"],
}
MLP = ["mlp_pre", "mlp_post", "mlp_out", "resid_post"]


class ByHand:
    """A block on single numbers: every part another one."""

    def __init__(self, parallel):
        self.parallel = parallel
        self.attention_input, self.mlp_input = (lambda x: x + 1), (lambda x: 2 * x)
        self.out, self.down = (lambda x: 10 * x), (lambda x: 100 * x)

    def neurons(self, normed, tap):
        return tap("mlp_pre", normed).square()


@pytest.mark.parametrize(
    ("parallel", "after"),
    [
        (False, 3 + 40 + 100 * 86**2),  # 86 = 2 · (3 + 40)
        (True, 3 + 40 + 100 * 6**2),  # the MLP reads 2 · 3
    ],
)
def test_the_sums_of_a_block_by_hand(parallel, after):
    given = torch.tensor([3.0])
    weights = ByHand(parallel)
    assert run_block(weights, given, lambda normed, tap: normed, silent).tolist() == [after]
    assert after_attention(weights, given, given + 1, silent).tolist() == [after]


@pytest.fixture(params=[False, True], ids=["sequential", "parallel"])
def wide(suite, request):
    return random_model(suite, parallel=request.param, rotary_dim=2).requires_grad_(False)


def tapped(model, tokens, tap):
    """Logits by the blocks under ``tap``, which gets the layer too."""
    resid = model.embed(tokens)
    turn = rotation(torch.arange(tokens.shape[1]), model.cfg)
    for layer, block in enumerate(model.blocks):
        attention = partial(block.attn, turn=turn)
        resid = run_block(block, resid, attention, partial(tap, layer))
    return model.unembed(model.ln_final(resid))


def hook_of(layer, name):
    return f"blocks.{layer}.{HOOKS[name]}"


def test_a_hooked_run_fires_every_name_once_and_in_order(wide, facts):
    fired = []
    names = [name for name in wide.hook_dict if "ln" not in name and name != "hook_embed"]
    hooks = [(name, lambda x, hook: fired.append(hook.name)) for name in names]
    wide.run_with_hooks(facts.clean, fwd_hooks=hooks)
    order = [*NAMES[wide.cfg.parallel], *MLP]
    assert fired == [hook_of(layer, name) for layer in range(3) for name in order]


def test_a_tap_that_keeps_what_it_sees_is_the_activation_cache(wide, facts):
    kept = {}

    def record(layer, name, x):
        assert hook_of(layer, name) not in kept
        kept[hook_of(layer, name)] = x
        return x

    logits = tapped(wide, facts.clean, record)
    theirs, cache = wide.run_with_cache(facts.clean)
    assert torch.equal(logits, wide(facts.clean))
    torch.testing.assert_close(logits, theirs)  # by hooked norms
    assert set(kept) == {name for name in cache if "ln" not in name and name != "hook_embed"}
    for name, x in kept.items():
        torch.testing.assert_close(x, cache[name], msg=name)


@pytest.mark.parametrize("name", [*NAMES[False], *MLP])
def test_a_tap_that_pastes_is_a_hook_that_pastes(wide, facts, name):
    if name == "resid_mid" and wide.cfg.parallel:
        pytest.skip("a parallel block has none")
    _, cache = wide.run_with_cache(facts.corrupted)

    def paste(layer, at, x):
        return cache[hook_of(1, name)] if (layer, at) == (1, name) else x

    hook = (hook_of(1, name), lambda x, hook: cache[hook.name])
    theirs = wide.run_with_hooks(facts.clean, fwd_hooks=[hook])
    mine = tapped(wide, facts.clean, paste)
    assert torch.equal(mine, theirs)
    assert not torch.equal(mine, wide(facts.clean))


def test_training_fires_no_hook_of_a_block(wide, suite, config):
    tokens, ragged = to_ragged(evaluation_set(suite.texts, config, "held-out"), wide.cfg, "cpu")
    fired = []
    names = [hook_of(0, name) for name in (*NAMES[wide.cfg.parallel], *MLP)]
    hooks = [(name, lambda x, hook: fired.append(hook.name)) for name in names]
    with wide.hooks(hooks):
        wide.hidden(tokens, ragged)
    assert fired == []


@pytest.mark.parametrize("name", [*ATTENTION[:5], "mlp_pre"])
def test_packed_weights_go_on_with_what_a_tap_returns(wide, name):
    """A tap of no declared names, which returns a new tensor."""
    packed, plain = pack(wide, 6), wide.blocks[1]
    block, resid = packed.blocks[1], torch.randn(2, 6, 16, dtype=torch.float64)
    pos = torch.arange(6)[None]

    def half(at, x):
        return x / 2 if at == name else x

    if name == "mlp_pre":
        ours, theirs = (b.neurons(resid, half) for b in (block, plain))
        assert not torch.allclose(ours, block.neurons(resid, silent))
    else:
        seen = {}
        plain.attn(plain.ln1(resid), lambda at, x: seen.setdefault(at, half(at, x)),
                   rotation(torch.arange(6), wide.cfg))  # fmt: skip
        ours = block.heads(resid, packed.turn_at(pos), half)
        theirs = [seen["rot_q"], seen["rot_k"], seen["v"]]
        plainly = block.heads(resid, packed.turn_at(pos))
        assert not all(torch.allclose(x, y) for x, y in zip(ours, plainly))
    for x, y in zip(ours, theirs):
        torch.testing.assert_close(x, y)
