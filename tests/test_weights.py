"""A model's weights, asked for by layer, head and neuron, make what the model makes; a bfloat16
model is read in fp32.
"""

from copy import deepcopy

import numpy as np
import pytest
import torch
from oracle import random_model

from interp.data.batches import evaluation_set
from interp.localization.attention_statistics import attention_statistics
from interp.localization.attention_to_names import attention
from interp.localization.logit_attribution import copying, direct_attribution
from interp.localization.neurons import written
from interp.localization.probes import probe, read_off, stream
from interp.model.weights import Weights, add_to_neuron_outputs, widened


@pytest.fixture(scope="module", params=[torch.float64, torch.float32])
def given(suite, request):
    return random_model(suite).to(request.param).requires_grad_(False)


def test_what_heads_and_neurons_write_adds_up_to_what_the_model_makes(given, facts):
    _, cache = given.run_with_cache(facts.clean)
    weights = Weights(given)
    for layer in range(3):
        at = f"blocks.{layer}."
        read = weights.attention_input(layer, cache[at + "hook_resid_pre"])
        v = torch.einsum("bpm,hdm->bphd", read, weights.head_inputs(layer, "v"))
        v = v + weights.head_input_biases(layer, "v")
        torch.testing.assert_close(v, cache[at + "attn.hook_v"])
        z, neurons = cache[at + "attn.hook_z"], cache[at + "mlp.hook_post"]
        out = torch.einsum("bphd,hmd->bpm", z, weights.head_outputs(layer))
        out = out + weights.attention_bias(layer)
        torch.testing.assert_close(out, cache[at + "hook_attn_out"], atol=1e-5, rtol=1e-5)
        out = neurons @ weights.neuron_outputs(layer) + given.blocks[layer].mlp.down.bias
        torch.testing.assert_close(out, cache[at + "hook_mlp_out"], atol=1e-5, rtol=1e-5)
    logits = weights.final_norm(cache["blocks.2.hook_resid_post"]) @ weights.unembedding().mT
    torch.testing.assert_close(logits, given(facts.clean), atol=1e-5, rtol=1e-5)


def test_a_change_of_what_neurons_write_is_in_the_model(given, facts):
    changed, plain = deepcopy(given), Weights(given).neuron_outputs(1)
    change = torch.zeros_like(plain)
    change[5, 2] = 0.5
    add_to_neuron_outputs(changed, 1, change)
    torch.testing.assert_close(Weights(changed).neuron_outputs(1), plain + change)
    assert not torch.equal(changed(facts.clean), given(facts.clean))


def test_only_types_of_fewer_digits_than_fp32_are_widened():
    for dtype, read in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        x = torch.ones(2, dtype=dtype)
        assert widened(x).dtype == read
    assert widened(x) is x


@pytest.fixture(scope="module")
def narrow_and_exact(suite):
    """The same weights, computed with in bfloat16 and in float64."""
    narrow = random_model(suite).to(torch.bfloat16)
    return narrow, deepcopy(narrow).double()


READ_OUTS = {
    "stream": lambda model, suite, facts: [stream(model, facts)],
    "logit lens": lambda model, suite, facts: [read_off(model, facts).logit],
    "direct attribution": lambda model, suite, facts: direct_attribution(model, facts).values(),
    "neurons": lambda model, suite, facts: [written(model, facts, layer=1)],
    "attention to names": lambda model, suite, facts: attention(model, facts).values(),
    "attention statistics": lambda model, suite, facts: attention_statistics(
        model, evaluation_set(suite.texts, suite.config, "held-out")
    ).values(),
}


@pytest.mark.parametrize("name", READ_OUTS)
def test_a_read_out_of_a_bfloat16_model_is_that_of_its_weights_to_rounding(
    narrow_and_exact, suite, name
):
    """To 8 units of 2⁻⁸, bfloat16's rounding, of the largest value: 3%. Every product of the
    model rounds once, the read-out does not.
    """
    facts = suite.facts(12, attribute=["company", "major"], seed=1)
    mine, theirs = (list(READ_OUTS[name](model, suite, facts)) for model in narrow_and_exact)
    for x, y in zip(mine, theirs, strict=True):
        x, y = np.asarray(x, float), np.asarray(y, float)
        np.testing.assert_array_equal(np.isnan(x), np.isnan(y))
        np.testing.assert_allclose(x, y, rtol=0, atol=np.nanmax(np.abs(y)) * 8 / 256)


def test_probes_of_a_bfloat16_model_answer_as_those_of_its_weights(narrow_and_exact, suite):
    facts = suite.facts(24, attribute="company", seed=1)
    mine, theirs = (probe(model, facts).correct for model in narrow_and_exact)
    assert float((mine == theirs).mean()) > 0.9
    mine, theirs = (copying(model, facts) for model in narrow_and_exact)
    assert float(abs(mine - theirs).max()) < 0.1
