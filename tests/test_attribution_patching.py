"""GradientEstimates of patching beside derivatives, TransformerLens's tool and brute force."""

import json
from dataclasses import replace
from functools import partial
from weakref import finalize

import numpy as np
import pytest
import torch
from oracle import AFTER, GROUPED, HOOKS, inputs, metrics, random_model
from test_hooks import bridge_around
from test_interventions import EDGES, N_NEURONS, change
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformer_lens.tools.analysis.attribution_patching import attribution_patch
from transformers import AutoModelForCausalLM

from interp.config import METRICS
from interp.model.checkpoint_io import read_checkpoint, write_checkpoint
from interp.patching import attribution_patching, patch
from interp.patching.attribution_patching import _FactGradients
from interp.patching.cost import plan
from interp.patching.sites import SITES
from interp.report.patching_page import build_report
from interp.results.sweep import patch_suite

NAMES = ["patched", *(f"patched_{metric}" for metric in METRICS[1:])]
METHODS = ("atp", "atp-star", "relp", "eap-ig")


@pytest.fixture(scope="module")
def wide(suite):
    return random_model(suite)


@pytest.fixture(scope="module")
def few(suite):
    return suite.facts(6, seed=3)


def effect(model, facts, name="patched", **options):
    result = patch(model, facts, **options)
    base = "corrupted" if options.get("direction", "denoising") == "denoising" else "clean"
    return result[name] - result[name.replace("patched", base)]


def towards(x, hook, *, share, base, source, positions, part):
    """This share of the way from the base run's activation to the other's."""
    x, step = x.clone(), share * (source[hook.name] - base[hook.name])
    at = (slice(None), positions) if part is None else (slice(None), positions, part)
    x[at] += step[at]
    return x


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize(
    "site", ["embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k"]
)
def test_attribution_patching_is_the_derivative_of_patching(wide, few, site, direction):
    check_derivative(wide, few, site, direction, part=2)


@pytest.mark.parametrize("shape", [GROUPED, AFTER], ids=["grouped", "after"])
@pytest.mark.parametrize("site", ["resid_mid", "attn_out", "mlp_out", "z", "q", "k", "v"])
def test_it_is_where_keys_are_grouped_and_heads_have_norms(suite, few, shape, site):
    check_derivative(random_model(suite, **shape), few, site, "noising", part=1)


def check_derivative(wide, few, site, direction, part):
    # Central differences of exact patching in float64, one 10⁻⁵th of the way: error about 10⁻⁸.
    result = {name: effect(wide, few, name, site=site, direction=direction, method="atp")
              for name in NAMES}  # fmt: skip
    layer, role, i = 0 if site == "embed" else 1, "name_last", 4
    fact, place = few[i], {"layer": layer, "role": role, "fact": i}
    place |= {"head": part} if SITES[site].part else {}
    base, source = inputs(fact, direction)
    (_, of_base), (_, of_source) = (wide.run_with_cache(tokens) for tokens in (base, source))
    positions = [p for p, x in enumerate(fact.roles) if x == role]
    scores = []
    for share in (1e-5, -1e-5):
        move = partial(
            towards, share=share, base=of_base, source=of_source, positions=positions,
            part=part if SITES[site].part else None,
        )  # fmt: skip
        logits = wide.run_with_hooks(base, fwd_hooks=[(HOOKS[site].format(layer), move)])
        scores.append(metrics(logits, fact))
    slopes = np.subtract(*scores) / 2e-5
    assert abs(slopes).max() > 3e-4
    mine = [float(of.sel({k: v for k, v in place.items() if k != "fact"})[i])
            for of in result.values()]  # fmt: skip
    np.testing.assert_allclose(mine, slopes, rtol=1e-4, atol=2e-6)


def test_nodes_are_those_of_transformer_lens(wide, few, tmp_path):
    """Its convention is that of denoising: the gradient is the corrupted run's."""
    write_checkpoint(wide, tmp_path / "step", dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "step", dtype=torch.float32)
    bridge = bridge_around(theirs.double())
    model = read_checkpoint(tmp_path / "step").double()
    ours = {site: effect(model, few, site=site, method="atp") for site in ("embed", "z", "mlp_out")}
    for i in (0, 3):
        fact = few[i]

        def metric(logits, fact=fact):
            return logits[0, -1, fact.answer[0]] - logits[0, -1, fact.corrupted_answer[0]]

        scores = attribution_patch(bridge, fact.clean[None], fact.corrupted[None], metric)
        sums = {}
        for node, score in scores.node_scores.items():
            place = (node.kind, node.layer or 0, node.head, fact.roles[node.position])
            sums[place] = sums.get(place, 0.0) + score
        assert len(sums) > 50 and max(map(abs, sums.values())) > 0.1
        for (kind, layer, head, role), score in sums.items():
            site = {"embed": "embed", "attn_head_out": "z", "mlp_out": "mlp_out"}[kind]
            at = {"layer": layer, "role": role} | ({} if head is None else {"head": head})
            assert float(ours[site].sel(at)[i]) == pytest.approx(score, abs=1e-5)


BY_SOFTMAX = ["q", "k", "rot_q", "rot_k", "attn_scores"]
PLAIN = ["v", "pattern", "edge", "knockout", "head_knockout", "mlp_pre", "mlp_post", "attn_scores"]


@pytest.mark.parametrize(
    ("site", "method"), [(s, "atp-star") for s in BY_SOFTMAX] + [(s, "atp") for s in PLAIN]
)
def test_estimates_are_products_of_change_and_gradient(suite, few, site, method):
    """The change is seen in a run that is patched by a hook, at the pattern if it goes through the
    softmax. In the last of two layers atp-star drops one other layer: sizes are the plain ones.
    """
    model = random_model(suite, n_layers=2)
    options = {"site": site, "direction": "noising", "n_neurons": N_NEURONS}
    ours = effect(model, few, method=method, **options)
    if method == "atp-star":
        assert abs(ours - effect(model, few, method="atp", **options)).max() > 1e-3
    seen = "pattern" if method == "atp-star" or "knockout" in site else site
    compared = ours.sel(layer=[1]) if method == "atp-star" else ours
    for place in largest(compared, 4):
        fact, layer = few[place["fact"]], place["layer"]
        base, source = inputs(fact, "noising")
        _, other = model.run_with_cache(source)
        own, new, hook = {}, {}, HOOKS[seen].format(layer)
        logits = model.run_with_hooks(base, fwd_hooks=[(hook, partial(keep, kept=own))])
        (slope,) = torch.autograd.grad(difference(logits, fact), own[hook])
        at = [
            [p for p, x in enumerate(fact.roles) if x == place.get(name)]
            for name in (("dest", "src") if site in EDGES else ("role", "role"))
        ]
        part = place.get("head", place.get("neuron", 0) // N_NEURONS)
        change_at = partial(
            change, site=site, source=other, part=part, positions=at[0], sources=at[1]
        )
        hooks = [(HOOKS[site].format(layer), change_at), (hook, partial(keep, kept=new))]
        with torch.no_grad():
            model.run_with_hooks(base, fwd_hooks=hooks)
            theirs = float(((new[hook] - own[hook]).nan_to_num() * slope).sum())
        assert float(
            ours.sel({k: v for k, v in place.items() if k != "fact"})[{"fact": place["fact"]}]
        ) == pytest.approx(theirs, abs=2e-6)
        assert abs(theirs) > 1e-4


def largest(effects, n):
    """The places of the ``n`` largest effects."""
    values = effects.fillna(0.0).assign_coords(fact=range(effects.sizes["fact"]))
    flat = abs(values.reset_coords(drop=True)).stack(cell=values.dims)
    return [
        dict(zip(values.dims, cell)) for cell in flat.sortby(flat, ascending=False).cell.values[:n]
    ]


def keep(x, hook, kept):
    kept[hook.name] = x


def difference(logits, fact):
    final = len(fact.clean) - 1
    return logits[0, final, fact.answer[0]] - logits[0, final, fact.corrupted_answer[0]]


DROPPED = ["embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "v"]


@pytest.mark.parametrize("site", DROPPED)
def test_sizes_are_means_over_passes_that_drop_a_layer(wide, few, site):
    """Dropping its own layer leaves no effect of what is inside it, so that pass is not counted."""
    ours, signs = (
        effect(wide, few, site=site, method=method, direction="noising")
        for method in ("atp-star", "atp")
    )
    i, layer, head, role = 2, 0 if site in ("embed", "z") else 1, 3, "name_middle"
    part = (head,) if SITES[site].part else ()
    fact, total = few[i], 0.0
    base, source = inputs(fact, "noising")
    _, own = wide.run_with_cache(base)
    _, other = wide.run_with_cache(source)
    name = HOOKS[site].format(layer)
    positions = [p for p, x in enumerate(fact.roles) if x == role]
    for dropped in range(3):
        kept = {}
        outputs = [HOOKS[x].format(dropped) for x in ("attn_out", "mlp_out")]
        hooks = [(hook, lambda x, hook: x.detach()) for hook in outputs]

        def leaf(x, hook, kept=kept):
            kept["x"] = x.detach().requires_grad_()
            return kept["x"]

        logits = wide.run_with_hooks(base, fwd_hooks=[(name, leaf), *hooks])
        (slope,) = torch.autograd.grad(difference(logits, fact), kept["x"], allow_unused=True)
        moved = (other[name] - own[name])[(0, positions, *part)]
        if slope is not None:
            total += abs(float((moved * slope[(0, positions, *part)]).sum()))
    n_passes = 3 if site.startswith(("embed", "resid")) else 2
    place = {"layer": layer, "role": role} | ({"head": head} if part else {})
    mine = float(ours.sel(place)[i])
    assert abs(mine) == pytest.approx(total / n_passes, abs=2e-6) and total > 1e-3
    assert np.sign(mine) == np.sign(float(signs.sel(place)[i]))


@pytest.mark.parametrize("site", ["q", "k"])
def test_ablated_queries_and_keys_go_through_the_softmax(suite, few, site):
    model = random_model(suite, n_layers=1)
    ours = effect(model, few, site=site, method="atp-star", direction="noising", replacement="zero")
    pattern, name = HOOKS["pattern"].format(0), HOOKS[site].format(0)
    for place in largest(ours, 2):
        fact, own, new = few[place["fact"]], {}, {}
        tokens, _ = inputs(fact, "noising")
        logits = model.run_with_hooks(tokens, fwd_hooks=[(pattern, partial(keep, kept=own))])
        (slope,) = torch.autograd.grad(difference(logits, fact), own[pattern])

        def ablate(x, hook, place=place, fact=fact):
            x = x.clone()
            x[
                :, [p for p, role in enumerate(fact.roles) if role == place["role"]], place["head"]
            ] = 0
            return x

        hooks = [(name, ablate), (pattern, partial(keep, kept=new))]
        with torch.no_grad():
            model.run_with_hooks(tokens, fwd_hooks=hooks)
            theirs = float(((new[pattern] - own[pattern]) * slope).sum())
        at = {"layer": 0, "head": place["head"], "role": place["role"]}
        assert float(ours.sel(at)[place["fact"]]) == pytest.approx(theirs, abs=2e-6)
        assert abs(theirs) > 1e-2


@pytest.mark.parametrize("method", METHODS)
def test_metrics_do_not_depend_on_which_others_are_asked_for(wide, few, method):
    options = {"site": "z", "method": method, "direction": "noising"}
    whole, first = (patch(wide, few, **options, whole_value=more) for more in (True, False))
    for name in NAMES[:2]:
        np.testing.assert_allclose(whole[name], first[name], rtol=1e-6, atol=1e-6)
    effects = [whole[name] - whole[name.replace("patched", "clean")] for name in NAMES[1:]]
    assert not np.allclose(*effects, atol=1e-2, equal_nan=True)
    if method == "eap-ig":
        return
    alone = replace(few, corrupted=None, corrupted_answers=None)
    options |= {"replacement": "zero"}
    some, both = (patch(wide, facts, **options) for facts in (alone, few))
    np.testing.assert_allclose(some[NAMES[1]], both[NAMES[1]], rtol=1e-6, atol=1e-6)
    assert np.isnan(some.patched).all() and not np.isnan(both.patched).all()


@pytest.mark.parametrize("method", METHODS)
def test_gradients_fit_into_their_share_of_memory(suite, method, monkeypatch):
    facts, max_bytes, portions = suite.facts(48, seed=3), 4e6, []
    model = random_model(suite).float().requires_grad_(False)
    whole = patch(model, facts, site="k", method=method)
    effects = _FactGradients.effects

    def measured(self, *args):
        with AllocatedBytes() as allocated:
            found = effects(self, *args)
        portions.append((len(self.fact), allocated.peak))
        return found

    monkeypatch.setattr(_FactGradients, "effects", measured)
    monkeypatch.setattr("interp.patching.act_patch.piece_bytes", lambda _: max_bytes)
    parts = patch(model, facts, site="k", method=method)
    np.testing.assert_allclose(parts.patched, whole.patched, rtol=1e-5, atol=1e-4)
    assert sum(n for n, _ in portions) == len(facts) and len(portions) > 1
    most = max(peak for _, peak in portions)
    assert 0.1 * max_bytes < most < max_bytes


class AllocatedBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are made meanwhile and are alive at once."""

    def __init__(self):
        super().__init__()
        self.now, self.peak, self.alive = 0, 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        for x in filter(torch.is_tensor, tree_leaves(out)):
            storage = x.untyped_storage()
            if storage.data_ptr() not in self.alive:
                self.alive[storage.data_ptr()] = 0
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
            self.alive[storage.data_ptr()] += 1
            finalize(x, self.freed, storage.data_ptr(), storage.nbytes())
        return out

    def freed(self, place, n_bytes):
        self.alive[place] -= 1
        if not self.alive[place]:
            del self.alive[place]
            self.now -= n_bytes


@pytest.mark.parametrize("site", ["resid_pre", "z", "mlp_out"])
def test_relp_is_the_derivative_with_scales_and_slopes_held(wide, few, site):
    ours = effect(wide, few, site=site, method="relp")
    i, layer, role = 1, 1, "name_first"
    fact = few[i]
    base, source = inputs(fact)
    _, own = wide.run_with_cache(base)
    _, other = wide.run_with_cache(source)
    pre = {}

    def hold(x, hook):
        return own[hook.name]

    def remember(x, hook):
        pre[hook.name.replace("pre", "post")] = x

    def held_slope(x, hook):
        return pre[hook.name] * own[hook.name] / own[hook.name.replace("post", "pre")]

    held = [("ln_final.hook_scale", hold)]
    for at in range(3):
        held += [(f"blocks.{at}.ln{n}.hook_scale", hold) for n in (1, 2)]
        held += [
            (HOOKS["mlp_pre"].format(at), remember),
            (HOOKS["mlp_post"].format(at), held_slope),
        ]
    positions = [p for p, x in enumerate(fact.roles) if x == role]
    scores = []
    for share in (1e-5, -1e-5):
        move = partial(towards, share=share, base=own, source=other, positions=positions,
                       part=2 if site == "z" else None)  # fmt: skip
        hooks = [(HOOKS[site].format(layer), move), *held]
        scores.append(metrics(wide.run_with_hooks(base, fwd_hooks=hooks), fact)[0])
    place = {"layer": layer, "role": role} | ({"head": 2} if site == "z" else {})
    slope = (scores[0] - scores[1]) / 2e-5
    assert float(ours.sel(place)[i]) == pytest.approx(slope, abs=2e-6) and abs(slope) > 3e-4


def test_integrated_gradients_of_all_embeddings_add_up_to_the_whole_difference(
    wide, few, monkeypatch
):
    monkeypatch.setattr(attribution_patching, "N_POINTS", 60)
    for name, end in (("patched", "clean"), ("patched_value_logprob", "clean_value_logprob")):
        result = patch(wide, few, site="embed", groups=("all",), method="eap-ig")
        start = result[end.replace("clean", "corrupted")]
        np.testing.assert_allclose(result[name][0, 0], result[end], atol=2e-3)
        assert abs(result[end] - start).max() > 0.1


@pytest.mark.parametrize("method", METHODS)
def test_where_the_runs_are_alike_there_are_no_effects(wide, few, method):
    same = replace(few, corrupted=few.clean)
    for site in ("resid_pre", "z", "q", "pattern"):
        assert float(abs(effect(wide, same, site=site, method=method)).max()) == 0.0


def test_a_page_says_that_effects_are_estimated(suite, few):
    results = {
        method: patch_suite(suite, few, sites=["z"], steps=[0, 30], method=method)["z"]
        for method in ("exact", "atp")
    }
    result = results["atp"].to_dataset()
    assert result.attrs["method"] == "atp"
    assert json.loads(result.attrs["intervention"])["method"] == "atp"
    assert not np.allclose(results["exact"].patched, result.patched, atol=1e-6, equal_nan=True)
    known = result.assign(clean=result.clean + 20)  # as of a run that knows the facts
    pages = [build_report({"z": x}, title="t")
             for x in (known, known.assign_attrs(method="exact"))]  # fmt: skip
    for said in ("the largest effect as atp estimates it", "estimated (atp)"):
        assert [said in page for page in pages] == [True, False]


def test_a_plan_of_estimates_counts_passes(suite, few):
    (atp,) = plan(suite.shape, few, sites=["z"], method="atp")
    (star,) = plan(suite.shape, few, sites=["z"], method="atp-star")
    (points,) = plan(suite.shape, few, sites=["z"], method="eap-ig")
    # Two runs; then per metric (3) a backward pass, as long as two forward passes.
    assert atp.forwards == pytest.approx(len(few) * (2 + 1 + 2 * 3))
    assert star.forwards == pytest.approx(len(few) * (2 + 1 + 2 * 3 * (1 + 3)))
    assert points.forwards == pytest.approx(len(few) * (2 + 5 * (1 + 2 * 3)))


@pytest.mark.parametrize("method", ["atp", "eap-ig"])
def test_a_bridge_gives_the_same_estimates(wide, few, tmp_path, method):
    write_checkpoint(wide, tmp_path / "step", dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "step", dtype=torch.float32)
    bridge, model = bridge_around(theirs), read_checkpoint(tmp_path / "step")
    for site in ("embed", "resid_pre", "z", "mlp_out", "pattern", "q", "k"):
        ours, slow = (effect(x, few, site=site, method=method) for x in (model, bridge))
        np.testing.assert_allclose(ours, slow, atol=1e-4)
        assert float(abs(ours).max()) > 1e-2
    with pytest.raises(ValueError, match="relp needs a HookedDecoder, got a TransformerBridge"):
        patch(bridge, few, site="z", method="relp")
    with pytest.raises(ValueError, match="can't estimate 'resid_mid' of a TransformerBridge"):
        patch(bridge, few, site="resid_mid", method=method)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": "relp", "site": "resid_pre", "frozen": "mlp_out"},
            "relp holds nothing frozen; use method exact",
        ),
        (
            {"method": "eap-ig", "site": "z", "direction": "noising", "replacement": "mean"},
            "eap-ig goes from one run to the other, and with 'mean' there is one",
        ),
    ],
)
def test_what_cannot_be_estimated_is_refused(wide, few, options, message):
    with pytest.raises(ValueError, match=message):
        patch(wide, few, **options)
