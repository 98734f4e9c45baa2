"""Integrated gradients of attention patterns: completeness, central differences, controls."""

import copy

import numpy as np
import pytest
import torch
from oracle import random_model

from interp.attribution import pattern_attribution
from interp.attribution.edges import logit_diff
from interp.patching import patch
from interp.patching.activations import prompts


@pytest.fixture(scope="module", params=[False, True], ids=["sequential", "parallel"])
def wide(request, suite):
    return random_model(suite, n_layers=2, parallel=request.param).requires_grad_(False)


@pytest.fixture(scope="module")
def few(suite):
    return suite.facts(6, seed=3)


def first_order_at_the_end(model):
    """The last layer has no MLP, and its attention writes so little that the final norm's scale
    hardly moves: a thousandth.
    """
    model = copy.deepcopy(model)
    model.blocks[-1].attn.out.weight.data *= 3e-3
    model.blocks[-1].mlp.down.weight.data.zero_()
    return model


def test_attributions_of_a_layer_add_up_to_what_its_attention_makes(wide, few):
    """The midpoint rule's error falls as 1 / points²: a quarter with twice the points."""
    errors = []
    for n_points in (32, 64, 128):
        found = pattern_attribution(wide, few, n_points=n_points)
        total = found.attribution.sum(("head", "dest", "src"))
        errors.append(np.abs(total - (found.clean - found.without)).values)
    assert np.abs(found.clean - found.without).min() > 1e-3
    assert errors[2].max() < 1e-3 * np.abs(found.clean - found.without).values.max()
    ratio = errors[1].sum() / errors[2].sum()
    assert ratio == pytest.approx(4, rel=0.1)


@torch.no_grad()
def test_a_gradient_is_a_central_difference_along_the_edge(wide, few):
    """With one midpoint: A times the derivative at half of all patterns of the layer."""
    found = pattern_attribution(wide, few, n_points=1)
    given, _ = prompts(few, "cpu")
    layer, head, step = 1, 2, 1e-4
    name = f"blocks.{layer}.attn.hook_pattern"
    _, cache = wide.run_with_cache(given.tokens, names_filter=[name])
    for dest, src in (("final", "name_last"), ("name_last", "name_first"), ("cue", "cue")):
        edge = torch.zeros_like(cache[name])
        for i, fact in enumerate(few):
            for d in (j for j, role in enumerate(fact.roles) if role == dest):
                for s in (j for j, role in enumerate(fact.roles) if role == src):
                    edge[i, head, d, s] = cache[name][i, head, d, s]

        def score(at, edge=edge):
            pattern = 0.5 * cache[name] + at * edge
            logits = wide.run_with_hooks(given.tokens, fwd_hooks=[(name, lambda x, hook: pattern)])
            return logit_diff(logits, given).numpy()

        theirs = (score(step) - score(-step)) / (2 * step)
        ours = found.attribution.sel(layer=layer, head=head, dest=dest, src=src)
        np.testing.assert_allclose(ours, theirs, atol=1e-7)


def test_in_the_last_layer_only_edges_from_the_answer_position_count(wide, few):
    found = pattern_attribution(wide, few, n_points=2)
    last = found.attribution.isel(layer=-1)
    others = last.sel(dest=[role for role in last.dest.values if role != "final"])
    assert float(np.abs(others).max()) == 0
    assert float(np.abs(last.sel(dest="final")).max()) > 0
    future = found.attribution.sel(dest="name_first", src="final")
    assert float(np.abs(future).max()) == 0


def test_where_the_rest_is_linear_an_edge_is_what_setting_it_to_0_costs(wide, few):
    """There attribution and the edge patched by zero agree."""
    model = first_order_at_the_end(wide)
    found = pattern_attribution(model, few, n_points=2)
    options = dict(replacement="zero", direction="noising", whole_value=False)
    zeroed = patch(model, few, site="edge", groups=("final",), sources=("name_last",), **options)
    theirs = (zeroed.clean - zeroed.patched).sel(dest="final", src="name_last").isel(layer=-1)
    ours = found.attribution.sel(dest="final", src="name_last").isel(layer=-1)
    np.testing.assert_allclose(ours, theirs.transpose(*ours.dims), rtol=1e-2, atol=5e-7)
    assert float(np.abs(ours).max()) > 1e-4
