"""Path patching against hooks that freeze everything off the path, stop by stop, in float64."""

from functools import partial

import numpy as np
import pytest
import torch
from oracle import AFTER, GROUPED, HOOKS, inputs, metrics, random_model, unpatched

from interp.patching import patch
from interp.patching.path_patching import parse_path

N_NEURONS = 16
PATHS = (
    "z-q", "z-k", "z-v", "z-mlp_out", "z-logits", "attn_out-v", "mlp_out-q", "mlp_out-mlp_out",
    "mlp_out-logits", "mlp_post-logits", "embed-v", "z-q-logits", "z-v-logits",
    "embed-v-mlp_out", "embed-k-q", "z-mlp_out-logits", "embed-v-v-logits", "embed-q-mlp_out-k",
)  # fmt: skip


@pytest.fixture(scope="module")
def nets(suite):
    """By direction, so that both kinds of block and both directions are seen."""
    return {
        "denoising": random_model(suite),
        "noising": random_model(suite, parallel=True),
    }


@pytest.fixture(scope="module")
def few(suite):
    return suite.facts(4, seed=3)


@torch.no_grad()
def along(model, fact, stops, cells, group, direction, *, share=1.0, held=()):
    """Logits with one path changed, hop by hop: at each hop all heads and MLPs but the one just
    changed keep the base run's outputs, and what the next stop then computes is kept. The first
    stop goes this share of the way to the other run; ``held`` are further hooks of every hop.
    """
    base_tokens, source_tokens = inputs(fact, direction)
    base, source = (unpatched(model, tokens)[1] for tokens in (base_tokens, source_tokens))
    start = HOOKS[stops[0].site].format(cells[0][0])
    source = {start: base[start] + share * (source[start] - base[start])}
    at = [p for p, role in enumerate(fact.roles) if role == group]
    pasted = (start, source, cells[0][1], at, stops[0].site)
    active = None
    for i, (stop, (layer, part)) in enumerate(zip(stops, cells)):
        if i == 0:
            active = None if stop.site == "embed" else (layer, kind(stop), None)
            continue
        hold = [(pasted[0], partial(paste, pasted=pasted)), *frozen(model, base, active), *held]
        if stop.site == "logits":
            return model.run_with_hooks(base_tokens, fwd_hooks=hold)
        name, heard = HOOKS[stop.site].format(layer), {}
        hear = (name, partial(keep, heard=heard))
        model.run_with_hooks(base_tokens, fwd_hooks=[hear, *hold])
        if any(before.site in ("k", "v") for before in stops[1:i]):
            at = list(range(len(base_tokens[0])))
        n = model.cfg.n_grouped if stop.site in ("k", "v") else 1
        heads = slice(part * n, (part + 1) * n)
        pasted, active = (name, heard, part, at, stop.site), (layer, kind(stop), heads)
    hooks = [(name, partial(paste, pasted=pasted)), *held]
    return model.run_with_hooks(base_tokens, fwd_hooks=hooks)


def kind(stop):
    return "mlp" if stop.site.startswith("mlp") else "attention"


def keep(x, hook, heard):
    heard[hook.name] = x.clone()


def paste(x, hook, pasted):
    _, new, part, at, site = pasted
    x, new = x.clone(), new[hook.name]
    if site == "mlp_post":
        units = slice(part * N_NEURONS, (part + 1) * N_NEURONS)
        x[:, at, units] = new[:, at, units]
    elif site in ("z", "q", "k", "v"):
        x[:, at, part] = new[:, at, part]
    else:
        x[:, at] = new[:, at]
    return x


def frozen(model, base, active):
    """Hooks that hold every head's and MLP's output at the base run, but for the active one."""

    def hold(x, hook, head):
        new = base[hook.name].clone()
        if head is not None:
            new[:, :, head] = x[:, :, head]
        return new

    hooks = []
    for layer in range(model.cfg.n_layers):
        for of, name in (("mlp", "hook_mlp_out"), ("attention", "attn.hook_z")):
            head = None
            if active and active[:2] == (layer, of):
                head = active[2]
                if of == "mlp" or head is None:
                    continue
            hooks.append((f"blocks.{layer}.{name}", partial(hold, head=head)))
    return hooks


def place_of(stops, cells):
    place = {}
    for i, (stop, (layer, part)) in enumerate(zip(stops, cells)):
        suffix = f"_{i}" if i else ""
        if stop.site not in ("embed", "logits"):
            place[f"layer{suffix}"] = layer
        if stop.site in ("z", "q", "k", "v"):
            place[f"head{suffix}"] = part
        if stop.site == "mlp_post":
            place["neuron"] = part * N_NEURONS
    return place


def in_order(stops, cells, parallel):
    attention_from = mlp_from = 0
    for i, (stop, (layer, _)) in enumerate(zip(stops, cells)):
        first = mlp_from if stop.site == "mlp_out" else attention_from
        if i and stop.site != "logits" and layer < first:
            return False
        if stop.site != "embed":
            attention_from = layer + 1
            of_attention = not stop.site.startswith("mlp")
            mlp_from = layer if of_attention and not parallel else layer + 1
    return True


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_what_freezing_everything_off_it_gives(nets, few, path, direction):
    check_path(nets[direction], few, path, direction)


@pytest.mark.parametrize("path", PATHS)
def test_a_path_through_grouped_keys_is_what_freezing_everything_off_it_gives(suite, few, path):
    check_path(random_model(suite, **GROUPED), few, path, "denoising")


# Where heads share a norm, a hook on one head's query moves those of all; a path's does not.
@pytest.mark.parametrize("path", [x for x in PATHS if not {"q", "k"} & {*x.split("-")}])
def test_a_path_before_norms_is_what_freezing_everything_off_it_gives(suite, few, path):
    check_path(random_model(suite, **AFTER), few, path, "noising")


def check_path(net, few, path, direction):
    n_keys = net.cfg.n_key_value_heads
    stops, rng = parse_path(path), np.random.default_rng(0)
    result = patch(net, few, site=path, direction=direction)
    worst, n_compared = 0.0, 0
    while n_compared < 24:
        cells, order = [], rng.integers(net.cfg.n_layers, size=len(stops))
        order = np.sort(order) if rng.random() < 0.8 else order
        for stop, layer in zip(stops, order):
            n_parts = {"z": 4, "q": 4, "k": n_keys, "v": n_keys, "mlp_post": 2}.get(stop.site, 1)
            layer = 0 if stop.site in ("embed", "logits") else int(layer)
            cells.append((layer, int(rng.integers(n_parts))))
        i, group = int(rng.integers(len(few))), str(rng.choice(result.role))
        fact = few[i]
        ours = result.sel(place_of(stops, cells) | {"role": group}).isel(fact=i)
        ours = [float(ours[f"patched{s}"]) for s in ("", "_first_logprob", "_value_logprob")]
        if not in_order(stops, cells, net.cfg.parallel) or group not in fact.roles:
            assert np.isnan(ours).all(), (cells, group)
            continue
        theirs = metrics(along(net, fact, stops, cells, group, direction), fact)
        np.testing.assert_allclose(ours, theirs, atol=1e-6, err_msg=f"{cells} {group} {i}")
        base = metrics(unpatched(net, inputs(fact, direction)[0])[0], fact)
        worst, n_compared = max(worst, abs(theirs[0] - base[0])), n_compared + 1
    assert worst > 1e-5


def test_a_path_with_every_stop_given_is_one_cell_of_the_whole(nets, few):
    whole = patch(nets["denoising"], few, site="z-q-logits")
    one = patch(nets["denoising"], few, site="L0H2.z-L2H1.q-logits")
    assert one.sizes["layer"] == one.sizes["head_1"] == 1
    place = dict(layer=[0], head=[2], layer_1=[2], head_1=[1])
    np.testing.assert_array_equal(one.patched, whole.patched.sel(place))


def test_the_direct_effect_of_the_last_layer_is_its_whole_effect(nets, few):
    direct = patch(nets["denoising"], few, site="mlp_out-logits").patched.sel(layer=2)
    whole = patch(nets["denoising"], few, site="mlp_out").patched.sel(layer=2)
    np.testing.assert_allclose(direct, whole, atol=1e-9)


def test_all_that_the_embeddings_tell_an_attention_layer_is_a_patch_of_it(nets, few):
    """Keys of layer 0 read the embeddings alone, so the path is the patch."""
    direct = patch(nets["denoising"], few, site="embed-L0.k").patched.sel(layer_1=0)
    whole = patch(nets["denoising"], few, site="k").patched.sel(layer=0)
    np.testing.assert_allclose(
        direct.rename(head_1="head").transpose(*whole.dims), whole, atol=1e-9
    )


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("z-zz", "no stop 'zz' in path 'z-zz'; it can go on to mlp_out, q, k, v, logits"),
        ("resid_pre-q", "no stop 'resid_pre' in path 'resid_pre-q'; it can start with embed"),
        ("z-logits-q", "goes on after the logits; end it there"),
        ("L0H1.mlp_out-logits", "'mlp_out' has no L0H1; take it out of"),
        ("L2.z-L0.q", "no stop of path 'L2.z-L0.q' can reach the next; order their layers"),
        ("L7.z-logits", "a stop outside the model's 3 layers of 4 heads; count from 0"),
    ],
)
def test_a_path_that_does_not_exist_is_refused_with_what_there_is(nets, few, path, message):
    with pytest.raises(ValueError, match=message):
        patch(nets["denoising"], few, site=path)
    with pytest.raises(ValueError, match="path 'z-q' goes through single layers; use window 1"):
        patch(nets["denoising"], few, site="z-q", window=2)
