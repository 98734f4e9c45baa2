"""Statistics of neurons as computed by hand; what neurons write adds up to the logits."""

from itertools import combinations

import numpy as np
import pytest
import torch
import xarray as xr
from oracle import random_model

from interp.localization.logit_attribution import direct_attribution
from interp.localization.neurons import (
    effective_number,
    gini,
    sharing,
    top_neurons,
    written,
)
from interp.patching import patch
from interp.results.metrics import effect


def effects(values, **coords):
    """Effects (neuron, fact) of as many neurons as there are rows."""
    values = np.asarray(values, float)
    coords = {name: ("fact", np.array(labels, object)) for name, labels in coords.items()}
    if "person" in coords:
        coords["person"] = ("fact", coords["person"][1].astype(int))
    return xr.DataArray(values, {"neuron": np.arange(len(values))} | coords, ("neuron", "fact"))


def by_layer(values, **coords):
    """The same as (layer, neuron, role, fact), as patching gives them: three neurons a layer."""
    flat = effects(values, **coords)
    labels = {name: x for name, x in flat.coords.items() if name != "neuron"}
    return xr.DataArray(
        flat.values.reshape(-1, 3, 1, flat.shape[1]),
        {"neuron": np.arange(3), "role": ["final"]} | labels,
        ("layer", "neuron", "role", "fact"),
    ).assign_coords(layer=range(len(values) // 3))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 0, 1], 2 / 3),
        ([0, -1, 3], 0.5),  # (0·1 + 2·3) ÷ (3 · 4)
        ([2, 2, -2], 0.0),
        ([1, 2, 3, 4], 0.25),
        ([0, 0, 0], np.nan),
    ],
)
def test_gini_by_hand(values, expected):
    values = np.array(values, float)[:, None]
    np.testing.assert_allclose(gini(effects(values)), [expected])
    np.testing.assert_allclose(gini(effects(-7 * values[::-1])), [expected])


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 0, 1], 1.0), ([1, -3, 0], 1.6), ([2, 2, -2], 3.0), ([0, 0, 0], np.nan)],
)
def test_effective_number_by_hand(values, expected):
    values = np.array(values, float)[:, None]
    np.testing.assert_allclose(effective_number(effects(values)), [expected])
    np.testing.assert_allclose(effective_number(effects(-7 * values[::-1])), [expected])


def test_gini_is_the_mean_difference_between_two_neurons():
    x = np.random.default_rng(0).standard_normal((30, 4))
    size = np.abs(x)
    expected = np.abs(size[:, None] - size[None]).mean((0, 1)) / (2 * size.mean(0))
    np.testing.assert_allclose(gini(effects(x)), expected)


def test_all_dims_but_fact_name_a_neuron():
    x = np.random.default_rng(1).standard_normal((12, 5))
    for statistic in (gini, effective_number):
        np.testing.assert_array_equal(statistic(by_layer(x)), statistic(effects(x)))
        turned = by_layer(x).transpose("fact", "role", "neuron", "layer")
        np.testing.assert_allclose(statistic(turned), statistic(effects(x)))
    assert gini(by_layer(x, answer=list("abcde"))).answer.values.tolist() == list("abcde")


def test_top_neurons_are_named_by_their_labels_largest_first():
    values = np.zeros((6, 2))
    values[4, 0], values[0, 0], values[5, 0] = -3, 2, 1
    values[2, 1], values[3, 1] = 1, 5
    top = top_neurons(by_layer(values, answer=["Rome", "Oslo"]), k=2)
    assert top.sizes == {"rank": 2, "fact": 2} and top["rank"].values.tolist() == [1, 2]
    np.testing.assert_array_equal(top.layer, [[1, 1], [0, 0]])
    np.testing.assert_array_equal(top.neuron, [[1, 0], [0, 2]])
    np.testing.assert_array_equal(top.effect, [[-3, 5], [2, 1]])
    assert top.role.values.tolist() == [["final"] * 2] * 2
    assert top.answer.values.tolist() == ["Rome", "Oslo"]


def four_facts():
    """Of six neurons the top two: {0, 1}, {1, 2}, {0, 1}, {4, 5}."""
    values = np.zeros((6, 4))
    for fact, top in enumerate(([0, 1], [1, 2], [0, 1], [4, 5])):
        values[top, fact] = (-2, 1)
    return values


def test_sharing_by_hand():
    result = sharing(
        by_layer(
            four_facts(),
            person=[7, 7, 8, 9],
            attribute=["company", "major", "company", "location"],
            answer=["3M", "Law", "AT&T", "Law"],
        ),
        k=2,
    )
    found = {name: float(x) for name, x in zip(result.relation.values, result.overlap.values)}
    # pairs 01 ½ (person), 02 1 (attribute), 03 0, 12 ½, 13 0 (value), 23 0
    assert found == pytest.approx(
        {"any": 2 / 6, "same_value": 0, "same_attribute": 1, "same_person": 0.5, "none": 0.5 / 3}
    )
    assert result.n_pairs.values.tolist() == [6, 1, 1, 1, 3]
    assert float(result.chance) == pytest.approx(2 / 6)
    np.testing.assert_array_equal(result.n_facts[..., 0], [[2, 3, 1], [0, 1, 1]])
    np.testing.assert_allclose(result.low[0], 2 / 6)
    np.testing.assert_allclose(result.high[0], 2 / 6)


def test_a_pair_is_of_one_relation_the_closest():
    labels = {"person": [1, 1, 2, 1], "attribute": list("ccbm"), "answer": list("3335")}
    result = sharing(effects(four_facts(), **labels), k=2)
    assert result.n_pairs.values.tolist() == [6, 3, 0, 2, 1]
    assert result.n_pairs[1:].sum() == result.n_pairs[0]


def test_a_relation_without_pairs_is_missing_and_nobody_is_the_same_person_as_nobody():
    result = sharing(
        effects(four_facts(), person=[-1] * 4, attribute=list("aabc"), answer=list("wxyz")), k=2
    )
    assert result.n_pairs.sel(relation="same_person") == 0
    for name in ("overlap", "low", "high"):
        assert np.isnan(result[name].sel(relation="same_person"))


def many_facts(values):
    """Ten people, four attributes, values in pairs."""
    person, attribute = (x.ravel() for x in np.indices((10, 4)))
    answers = [f"{a} {p // 2}" for p, a in zip(person, attribute)]
    return effects(values, person=person, attribute=[f"a{a}" for a in attribute], answer=answers)


def test_random_effects_are_shared_by_chance_alone():
    """The control: no relation is outside what relabelled facts give."""
    x = np.random.default_rng(2).standard_normal((400, 40))
    result = sharing(many_facts(x), k=40, n_draws=400)
    assert float(result.chance) == 0.1
    assert float(result.overlap.sel(relation="any")) == pytest.approx(0.1, abs=0.01)
    related = result.sel(relation=["same_value", "same_attribute", "same_person", "none"])
    assert (related.overlap >= related.low).all() and (related.overlap <= related.high).all()


def test_neurons_that_facts_of_an_attribute_share_show_in_that_relation_only():
    x = np.random.default_rng(3).standard_normal((400, 40))
    for fact in range(40):
        attribute = fact % 4
        x[attribute * 20 : attribute * 20 + 20, fact] += 9
    result = sharing(many_facts(x), k=40)
    assert float(result.overlap.sel(relation="same_attribute")) > 0.5
    outside = (result.overlap > result.high).sel(relation=["same_attribute", "same_person"])
    assert outside.values.tolist() == [True, False]


def test_sharing_is_the_naive_loop_over_pairs_and_the_same_again(model, suite):
    facts = suite.facts(12, seed=3)
    given = effect(
        patch(
            model, facts, site="mlp_post", n_neurons=1, groups=("final",), direction="noising",
            whole_value=False,
        )
    )  # fmt: skip
    result = sharing(given, k=7, seed=1)
    xr.testing.assert_identical(result, sharing(given, k=7, seed=1))
    top = top_neurons(given, k=7)
    sets = [set(zip(top.layer.values[:, i], top.neuron.values[:, i])) for i in range(12)]
    overlaps = [len(a & b) / 7 for a, b in combinations(sets, 2)]
    assert float(result.overlap.sel(relation="any")) == pytest.approx(np.mean(overlaps))
    same = [a == b for a, b in combinations(facts.texts.attribute, 2)]
    same_value = [a == b for a, b in combinations(facts.texts.answer, 2)]
    of = np.array(same) & ~np.array(same_value)
    expected = np.array(overlaps)[of].mean()
    assert float(result.overlap.sel(relation="same_attribute")) == pytest.approx(expected)
    for (layer, neuron), n in {(p, sum(p in s for s in sets)) for s in sets for p in s}:
        assert int(result.n_facts.sel(layer=layer, neuron=neuron).item()) == n


@pytest.fixture(scope="module")
def double(suite):
    return random_model(suite)


@torch.no_grad()
def read_at_final(model, fact):
    """The clean run's cache, and the logit difference of one thing written at ``final``."""
    logits, cache = model.run_with_cache(fact.clean[None])
    scale = cache["ln_final.hook_scale"][0, -1]
    right, wrong = int(fact.answer[0]), int(fact.corrupted_answer[0])
    difference = model.unembed.weight[right] - model.unembed.weight[wrong]

    def read(part):
        return float(((part - part.mean()) / scale * model.ln_final.weight) @ difference)

    bias = float(model.ln_final.bias @ difference)
    return cache, read, bias, float(logits[0, -1, right] - logits[0, -1, wrong])


@torch.no_grad()
def test_embedding_attention_neurons_and_biases_add_up_to_the_logit_difference(double, facts):
    neurons = [written(double, facts, layer=layer) for layer in range(3)]
    for i, fact in enumerate(facts):
        cache, read, total, logit_diff = read_at_final(double, fact)
        total += read(cache["hook_embed"][0, -1])
        for layer, block in enumerate(double.blocks):
            total += read(cache[f"blocks.{layer}.hook_attn_out"][0, -1])
            total += float(neurons[layer][:, i].sum()) + read(block.mlp.down.bias)
        assert total == pytest.approx(logit_diff, abs=1e-5)


@torch.no_grad()
def test_one_neuron_writes_what_is_lost_of_it_under_the_same_scale(double, facts):
    found = written(double, facts, layer=1)
    for i, fact in list(enumerate(facts))[:3]:
        cache, read, _, _ = read_at_final(double, fact)
        for neuron in (0, 13, 31):
            activation = cache["blocks.1.mlp.hook_post"][0, -1, neuron]
            part = activation * double.blocks[1].mlp.down.weight[:, neuron]
            assert float(found[neuron, i]) == pytest.approx(read(part), abs=1e-10)


@torch.no_grad()
def test_the_neurons_of_a_layer_add_up_to_its_mlp_without_the_bias(double, facts):
    mlp = direct_attribution(double, facts).mlp
    for layer, block in enumerate(double.blocks):
        neurons = written(double, facts, layer=layer)
        bias = [read_at_final(double, fact)[1](block.mlp.down.bias.detach()) for fact in facts]
        np.testing.assert_allclose(neurons.sum("neuron") + bias, mlp[layer], atol=1e-9)


def test_what_is_written_can_be_asked_for_its_statistics(double, facts):
    found = written(double, facts, layer=2)
    assert found.dims == ("neuron", "fact") and found.attrs["units"] == "nats"
    assert int(found.layer) == 2
    assert 1 < float(effective_number(found).min()) < float(effective_number(found).max()) < 32
    assert sharing(found, k=3).n_facts.sum() == 3 * len(facts)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda x: top_neurons(x, k=7), "k is 7; ask for 1 to 6"),
        (lambda x: sharing(x, k=0), "k is 0"),
        (lambda x: sharing(x.drop_vars("answer"), k=2), "no answer; keep the coordinates"),
        (lambda x: sharing(x[:, :1], k=2), "got 1 fact"),
        (lambda x: gini(x.where(x != 0)), "16 of the effects are NaN or infinite; select one role"),
        (lambda x: gini(x[0]), "the effects have dims fact; give effects"),
        (lambda x: gini(x.rename(fact="step")), "the effects have dims neuron, step"),
    ],
)
def test_what_cannot_be_answered_is_refused(ask, message):
    given = effects(four_facts(), person=range(4), attribute=list("aabc"), answer=list("wxyz"))
    with pytest.raises(ValueError, match=message):
        ask(given)


def test_a_layer_that_is_not_there_is_refused(double, facts):
    with pytest.raises(ValueError, match="no layer 3; the model has layers 0 to 2"):
        written(double, facts, layer=3)
