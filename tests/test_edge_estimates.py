"""Estimates of paths of two stops beside derivatives, exact path patching and effects of edges."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracle import GROUPED, HOOKS, inputs, metrics, random_model, unpatched
from test_circuits import facts as hand_made
from test_circuits import late_gate
from test_hooks import bridge_around
from test_path_patching import N_NEURONS, along, place_of
from transformers import AutoModelForCausalLM

from interp.attribution.edges import edge_effects, graph_of
from interp.config import METRICS
from interp.model.checkpoint_io import write_checkpoint
from interp.patching import act_patch, edge_estimates, patch, patch_sites
from interp.patching.attribution_patching import GradientEstimates
from interp.patching.cost import plan
from interp.patching.path_patching import parse_path
from interp.patching.sites import names_of

FIRST, LAST = names_of(writes=True), [*names_of(reads=True), "logits"]
PATHS = [f"{first}-{last}" for first in FIRST for last in LAST]
METHODS = ("eap", "relp", "eap-ig")
NAMES = ("", "_first_logprob", "_value_logprob")


@pytest.fixture(scope="module", params=[False, True], ids=["sequential", "parallel"])
def wide(request, suite):
    model, generator = random_model(suite, parallel=request.param), torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if ".ln" in name and name.endswith("weight"):  # factors that are not all 1
            weight.data.uniform_(0.5, 1.5, generator=generator)
    return model


@pytest.fixture(scope="module")
def few(suite):
    return suite.facts(4, seed=3)


def effects_of(result, suffix=""):
    base = "corrupted" if result.attrs["direction"] == "denoising" else "clean"
    return result[f"patched{suffix}"] - result[f"{base}{suffix}"]


def cells_of(first, last):
    """A layer and part of each of two stops, in layers 0 and 1; before the logits in layer 1."""
    parts = {"z": 3, "q": 2, "k": 0, "v": 1, "mlp_post": 1}
    layers = (0, 1)
    if last.site == "logits":
        layers = (0 if first.site == "embed" else 1, 0)
    return [(layer, parts.get(stop.site, 0)) for stop, layer in zip((first, last), layers)]


def held_scales(model, own):
    """Hooks that keep LayerNorm's scale and gelu(x) ÷ x as in the base run."""
    pre = {}

    def hold(x, hook):
        return own[hook.name]

    def remember(x, hook):
        pre[hook.name.replace("pre", "post")] = x

    def linear(x, hook):
        return pre[hook.name] * own[hook.name] / own[hook.name.replace("post", "pre")]

    hooks = [("ln_final.hook_scale", hold)]
    for layer in range(model.cfg.n_layers):
        hooks += [(f"blocks.{layer}.ln{n}.hook_scale", hold) for n in (1, 2)]
        hooks += [(f"blocks.{layer}.mlp.hook_pre", remember)]
        hooks += [(f"blocks.{layer}.mlp.hook_post", linear)]
    return hooks


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize(
    ("path", "method"),
    [(path, "eap") for path in PATHS] + [(f"z-{last}", "relp") for last in LAST],
)
def test_an_estimate_is_the_derivative_of_path_patching(wide, few, path, method, direction):
    check_derivative(wide, few, path, method, direction)


@pytest.mark.parametrize("path", PATHS)
def test_an_estimate_through_grouped_keys_is_the_derivative_of_path_patching(suite, few, path):
    check_derivative(random_model(suite, **GROUPED), few, path, "eap", "noising")


def check_derivative(wide, few, path, method, direction):
    """Central differences in float64 of the path changed by hooks, its first stop going 10⁻⁵ of the
    way: their error is about 10⁻⁸; results are in 32 bits, which is 10⁻⁶ of a metric of 10 nats.
    """
    result = patch(wide, few, site=path, direction=direction, method=method, n_neurons=N_NEURONS)
    stops, largest = parse_path(path), 0.0
    cells = cells_of(*stops)
    for i, role in ((0, "name_last"), (2, "final")):
        fact = few[i]
        _, own = unpatched(wide, inputs(fact, direction)[0])
        held = held_scales(wide, own) if method == "relp" else []
        scores = [
            metrics(along(wide, fact, stops, cells, role, direction, share=x, held=held), fact)
            for x in (1e-5, -1e-5)
        ]
        slopes = np.subtract(*scores) / 2e-5
        at = place_of(stops, cells) | {"role": role}
        mine = [float(effects_of(result, suffix).sel(at)[i]) for suffix in NAMES]
        np.testing.assert_allclose(mine, slopes, rtol=1e-4, atol=4e-6)
        largest = max(largest, *abs(slopes))
    # No embedding of the token that is read differs.
    assert largest == 0 if path == "embed-logits" else largest > 3e-4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("by", "direction"), [("role", "denoising"), ("pos", "noising")])
def test_estimates_are_the_effects_of_edges(suite, wide, direction, method, by):
    """Every writer and reader; positions are summed by role."""
    facts = suite.facts(4, seed=3, length=int(suite.facts(60).lengths.mode().values))
    graph = graph_of(wide.cfg)
    edges = edge_effects(wide, facts, method=method, direction=direction).effect
    paths = [path for path in PATHS if path.split("-")[0] in ("embed", "z", "mlp_out")]
    found = patch_sites(wide, facts, sites=paths, method=method, direction=direction, by=by)
    seen = np.zeros((len(graph.writers), len(graph.readers)), bool)
    for result in found.values():
        effect = effects_of(result)
        for u, writer in enumerate(graph.writers):
            for v, reader in enumerate(graph.readers):
                if (at := labels_of(result.attrs["site"], writer, reader)) is None:
                    continue
                seen[u, v] = True
                mine = effect.sel(at)
                if by == "pos":
                    mine = by_role(mine, facts, edges.role.values)
                theirs = edges.sel(writer=writer, reader=reader).values
                np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=4e-6)
    assert seen.all() and float(abs(edges).max()) > 0.1


def by_role(effect, facts, roles):
    """Sums over the positions of each role."""
    at = np.array([facts.role_names.index(role) for role in roles])
    masks = facts.roles.numpy() == at[:, None, None]
    sums = np.einsum("rfp,pf->rf", masks, effect.fillna(0.0).values)
    return np.where(masks.any(2) & effect.notnull().all().item(), sums, np.nan)


def labels_of(path, writer, reader):
    """The labels of an edge in the results of a path; None if it is of another kind."""
    first, last = path.split("-")
    at = {}
    if writer == "embed" or first == "embed":
        if writer != first:
            return None
    elif writer.endswith("MLP") != (first == "mlp_out"):
        return None
    elif first == "mlp_out":
        at["layer"] = int(writer[1])
    else:
        at |= {"layer": int(writer[1]), "head": int(writer[3])}
    if reader == "logits" or last == "logits":
        return at if reader == last else None
    if reader.endswith("MLP") != (last == "mlp_out"):
        return None
    if last == "mlp_out":
        return at | {"layer_1": int(reader[1])}
    if reader[-1] != last:
        return None
    return at | {"layer_1": int(reader[1]), "head_1": int(reader[3])}


@pytest.mark.parametrize("path", [*PATHS, "L0H2.z-L2H1.q", "L1.mlp_out-L2.v", "L0.z-L1H3.k"])
def test_results_have_the_form_of_exact_path_patching(wide, suite, path):
    few = suite.facts(12, attribute="major", seed=3)
    options = {"groups": ("name_first+name_last", "name_middle"), "control": True}
    exact, estimate = (
        patch(wide, few, site=path, method=method, **options) for method in ("exact", "eap")
    )
    assert estimate.patched.dims == exact.patched.dims
    assert set(estimate.data_vars) == set(exact.data_vars)
    for name in exact.coords:
        np.testing.assert_array_equal(estimate[name], exact[name])
    for name, values in exact.data_vars.items():
        np.testing.assert_array_equal(estimate[name].isnull(), values.isnull(), err_msg=name)
    assert exact.patched.notnull().any() and json.loads(estimate.intervention)["method"] == "eap"
    alone = patch(wide, few, site=path, method="eap", whole_value=False)
    assert "patched_value_logprob" not in alone
    together = effects_of(alone).sel(role=["name_first", "name_last"]).sum("role")
    mine = effects_of(estimate).sel(role="name_first+name_last").fillna(0.0)
    np.testing.assert_allclose(mine, together, atol=4e-6)


def test_a_fact_without_the_role_or_the_corrupted_answer_has_no_estimate(wide, few):
    roles = few.roles.clone()
    roles[0][roles[0] == few.role_names.index("name_middle")] = few.role_names.index("cue")
    facts = replace(few, roles=roles)
    exact, estimate = (patch(wide, facts, site="z-v", method=m) for m in ("exact", "eap"))
    assert estimate.patched.sel(role="name_middle")[..., 0].isnull().all()
    assert (estimate.patched.isnull() == exact.patched.isnull()).all()
    unanswered = patch(wide, replace(few, corrupted_answers=None), site="z-v", method="eap")
    answered = patch(wide, few, site="z-v", method="eap")
    assert unanswered.patched.isnull().all()
    for name in ("patched_first_logprob", "patched_value_logprob"):
        np.testing.assert_allclose(unanswered[name], answered[name], atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "options",
    [
        {"replacement": "noise", "noise_draws": 2},
        {"replacement": "noise", "noise_draws": 2, "direction": "noising"},
        *({"replacement": x, "direction": "noising"} for x in ("mean", "zero", "resample")),
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_paths_from_a_head_add_up_to_the_estimate_of_patching_it(wide, few, method, options):
    if method == "eap-ig" and options["replacement"] != "noise":
        with pytest.raises(ValueError, match="eap-ig goes from one run to the other"):
            patch(wide, few, site="z-q", method=method, **options)
        return
    found = patch_sites(wide, few, sites=[f"z-{x}" for x in LAST], method=method, **options)
    node = patch(
        wide, few, site="z", method="atp" if method == "eap" else method, control=False, **options
    )
    for suffix in NAMES:
        total = sum(
            effects_of(result, suffix).sum(
                [dim for dim in ("layer_1", "head_1") if dim in result.dims]
            )
            for result in found.values()
        )
        theirs = effects_of(node, suffix).fillna(0.0).transpose(*total.dims)
        np.testing.assert_allclose(total, theirs, rtol=1e-4, atol=3e-5)  # sums of 29 in 32 bits
        assert float(abs(theirs).max()) > 0.05


def test_parts_of_a_component_add_up_to_it(wide, few):
    """Groups of neurons to the MLP, and heads to the attention output."""
    for last in LAST:
        for part, dim, whole in (("mlp_post", "neuron", "mlp_out"), ("z", "head", "attn_out")):
            paths = [f"{part}-{last}", f"{whole}-{last}"]
            found = patch_sites(wide, few, sites=paths, method="eap", n_neurons=N_NEURONS)
            parts, of_whole = (effects_of(found[path]) for path in paths)
            np.testing.assert_allclose(parts.sum(dim, skipna=False), of_whole, rtol=1e-5, atol=4e-6)


def test_the_control_is_estimated_as_logit_diff_is(wide, few, monkeypatch):
    def own_pair(facts, seed):
        return torch.stack((facts.answers[:, 0], facts.corrupted_answers[:, 0]), 1).numpy()

    monkeypatch.setattr(act_patch, "_control_pairs", own_pair)
    found = patch(wide, few, site="z-v", method="eap", control=True)
    np.testing.assert_array_equal(found.patched_control_logit_diff, found.patched)
    assert float(abs(effects_of(found)).max()) > 1e-2


@pytest.mark.parametrize("name", ["logit_diff", *METRICS[1:]])
def test_integrated_gradients_from_the_embeddings_add_up_to_the_difference(
    wide, few, monkeypatch, name
):
    monkeypatch.setattr(edge_estimates, "N_POINTS", 60)
    suffix = "" if name == "logit_diff" else f"_{name}"
    found = patch_sites(
        wide, few, sites=[f"embed-{x}" for x in LAST], method="eap-ig", groups=("all",)
    )
    total = sum(effects_of(x, suffix).sum([*x.patched.dims[:-1]]) for x in found.values())
    one = found["embed-q"]
    whole = one[f"clean{suffix}"] - one[f"corrupted{suffix}"]
    np.testing.assert_allclose(total, whole, atol=2e-2)
    assert float(abs(whole).max()) > 0.1


@pytest.mark.parametrize("method", METHODS)
def test_where_the_runs_are_alike_there_are_no_estimated_effects(wide, few, method):
    same = replace(few, corrupted=few.clean)
    for result in patch_sites(wide, same, sites=PATHS, method=method).values():
        assert float(abs(effects_of(result)).max()) == 0.0
    for path, result in patch_sites(wide, few, sites=PATHS, method=method).items():
        assert float(abs(effects_of(result).sel(role="bos")).max()) == 0.0
        assert (float(abs(effects_of(result)).max()) > 0.0) == (path != "embed-logits")


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_heads_that_write_nothing_have_no_estimated_effects(direction):
    """The circuit's last step is found as exact path patching does; heads 2 and 3 are decoys."""
    model, options = late_gate(), {"direction": direction, "n_neurons": 2}
    exact = patch(model, hand_made(), site="mlp_out-logits", **options)
    for method in METHODS:
        found = patch_sites(
            *(model, hand_made()), method=method, **options,
            sites=["mlp_out-logits", "mlp_post-logits", "embed-v", "z-mlp_out", "z-logits"],
        )  # fmt: skip
        mlp = effects_of(found["mlp_out-logits"])
        at = {"layer": 1, "role": "final"}
        # The answer's LayerNorm is all that is not linear.
        assert np.sign(mlp.sel(at)) == np.sign(effects_of(exact).sel(at))
        assert abs(mlp.sel(at)).item() > 0.5
        assert float(abs(mlp.sel(layer=0)).max()) == 0.0
        neurons = effects_of(found["mlp_post-logits"])
        assert float(abs(neurons.isel(neuron=slice(1, None))).max()) == 0.0
        for path, dim in (("embed-v", "head_1"), ("z-mlp_out", "head"), ("z-logits", "head")):
            decoys = effects_of(found[path]).sel({dim: [2, 3]})
            assert float(abs(decoys).max()) == 0.0


@pytest.mark.parametrize("method", METHODS)
def test_facts_estimated_in_pieces_are_those_estimated_together(wide, few, method, monkeypatch):
    paths = ["z-q", "mlp_out-logits"]
    together = patch_sites(wide, few, sites=paths, method=method)
    monkeypatch.setattr(GradientEstimates, "rows_at_once", lambda *_: 3)
    apart = patch_sites(wide, few, sites=paths, method=method)
    for path in paths:
        np.testing.assert_allclose(apart[path].patched, together[path].patched, atol=2e-6)


def test_sites_and_paths_are_estimated_together(wide, few):
    both = patch_sites(wide, few, sites=["z", "z-v"], method="relp")
    for site, result in both.items():
        np.testing.assert_array_equal(
            result.patched, patch(wide, few, site=site, method="relp").patched
        )


def test_estimates_in_bf16_are_near_those_in_fp32(suite, few):
    model = suite.load(suite.steps[-1])
    full = effects_of(patch(model, few, site="z-mlp_out", method="eap"))
    rough = effects_of(patch(model.bfloat16(), few, site="z-mlp_out", method="eap"))
    there = np.isfinite(full.values)
    assert np.corrcoef(full.values[there], rough.values[there])[0, 1] > 0.99


def test_estimates_that_are_not_finite_are_refused(wide, few, monkeypatch):
    def infinite(*args, **options):
        return {site: x / 0 for site, x in found(*args, **options).items()}

    found = edge_estimates.input_gradients
    monkeypatch.setattr(edge_estimates, "input_gradients", infinite)
    with pytest.raises(ValueError, match="estimates of 'z-q' from layer 0 are not finite; patch"):
        patch(wide, few, site="z-q", method="eap")


def test_a_plan_of_estimated_paths_counts_passes_and_products(suite, few):
    cfg, sites = suite.shape, ["z-q", "embed-logits"]
    tokens = int((few.lengths + (few.answers >= 0).sum(1) - 1).sum())
    n_roles = len(patch(suite.load(0), few, site="embed-logits", method="eap").role)
    for method, n_points in (("eap", 1), ("relp", 1), ("eap-ig", 5)):
        z_q, direct = plan(cfg, few, sites=sites, method=method)
        # Two runs; at each point a forward pass, and by metric (3) a backward pass, as long as two.
        passes = (2 + n_points * (1 + 2 * 3)) * len(few) * direct.flops_of_forward
        pairs = (cfg.n_layers * cfg.n_heads) ** 2
        square = cfg.n_layers * cfg.d_model**2
        products = square + 3 * (n_points * square + pairs * (cfg.d_model + n_roles))
        assert z_q.flops == pytest.approx(passes + 2 * tokens * products)
        assert direct.flops == pytest.approx(passes + 2 * tokens * 3 * (cfg.d_model + n_roles))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "atp", "site": "z-q"}, "atp estimates no paths; use eap, relp or eap-ig for"),
        ({"method": "atp-star", "site": "z-q"}, "atp-star estimates no paths; use eap, relp or"),
        ({"method": "eap", "site": "z"}, "eap estimates paths of two stops; use atp for the site"),
        (
            {"method": "relp", "site": "z-q-logits"},
            "relp estimates paths of two stops; use method exact for 'z-q-logits'",
        ),
    ],
)
def test_what_a_method_does_not_estimate_is_refused(wide, few, options, message):
    with pytest.raises(ValueError, match=message):
        patch(wide, few, **options)
    with pytest.raises(ValueError, match=message):
        plan(wide.cfg, few, sites=[options["site"]], method=options["method"])


def test_a_bridge_is_refused(wide, few, tmp_path):
    write_checkpoint(wide, tmp_path / "step", dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "step", dtype=torch.float32)
    with pytest.raises(ValueError, match="path 'z-q' needs a HookedDecoder, got a Transformer"):
        patch(bridge_around(theirs), few, site="z-q", method="eap")


def test_hooks_of_first_stops_are_known():
    assert set(FIRST) <= set(HOOKS) and len(PATHS) == 25
