"""An edit's success and damage are what the edited weights do, and its controls do nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from builders import sentence
from oracle import random_model

from interp.config import ATTRIBUTES
from interp.data.facts import padded
from interp.data.tokenizer import BOS, encode
from interp.localization.fact_editing import EDITS, MEASURES, edit_facts
from interp.localization.rome import edited, find_edits
from interp.suite import load_suite

DEMO = Path(__file__).parents[1] / "checkpoints" / "demo"


@pytest.fixture(scope="module")
def double(suite):
    return random_model(suite)


def accuracy(model, suite, asked, target=None):
    """Share of (person, attribute, template) whose value's first token, or ``target``, is the
    argmax; from texts.
    """
    people, tokenizer, prompts, wanted = suite.population, suite.tokenizer, [], []
    for person, attribute, template in asked:
        value = people[ATTRIBUTES[attribute]][person]
        start, _ = sentence(people.iloc[person], ATTRIBUTES[attribute], template).rsplit(value, 1)
        prompts.append([tokenizer.token_to_id(BOS), *encode(tokenizer, [start])[0]])
        wanted.append(encode(tokenizer, [value])[0][0] if target is None else target)
    said = model(padded(prompts, 0)).argmax(-1)
    last = [int(row[len(prompt) - 1]) for row, prompt in zip(said, prompts)]
    return float(np.mean(np.array(last) == wanted))


def test_what_is_measured_is_what_the_edited_weights_do(double, suite, facts):
    some, options = facts[[1, 6]], {"layer": 1, "role": "final", "n_sentences": 3}
    n_people = suite.config.n_people  # everybody is watched, so no draw needs to be repeated
    result = edit_facts(double, suite, some, n_others=n_people, **options)
    edits, order = find_edits(double, suite, some, **options), suite.texts.template_order
    for i, fact in enumerate(some):
        target, p = int(fact.corrupted_answer[0]), fact.text["person"]
        a = ATTRIBUTES.index(fact.text["attribute"])
        rest = [b for b in range(6) if b != a]
        everybody = [q for q in range(n_people) if q != p]
        for edit, model in (("before", double), ("after", edited(double, edits, i))):
            expected = {
                "success": accuracy(model, suite, [(p, a, t) for t in order[p, a, :3]], target),
                "generalisation": accuracy(
                    model, suite, [(p, a, t) for t in order[p, a, 20:]], target
                ),
                "same_person": accuracy(
                    model, suite, [(p, b, t) for b in rest for t in order[p, b, 20:]]
                ),
                "others": accuracy(model, suite, [(q, a, order[q, a, 24]) for q in everybody]),
                "other_attributes": accuracy(
                    model, suite, [(q, b, order[q, b, 24]) for q in everybody for b in rest]
                ),
            }
            found = {name: float(result[name].sel(edit=edit)[i]) for name in MEASURES}
            assert found == pytest.approx(expected), (i, edit)


@pytest.fixture(scope="module")
def demo():
    """Six facts of the demo run, edited where they are located."""
    suite = load_suite(DEMO)
    return suite, suite.load(6500), suite.facts(6, seed=2)


def test_a_fact_is_overwritten_where_it_is_located_and_the_controls_leave_it(demo):
    suite, model, facts = demo
    result = edit_facts(model, suite, facts, layer=3, role="final", n_others=12)
    mean = result.mean("fact")
    before, after = mean.sel(edit="before"), mean.sel(edit="after")
    assert before.success < 0.05 and after.success > 0.95 and after.generalisation > 0.9
    for control in ("other_key", "random_key"):
        assert mean.success.sel(edit=control) < 0.1
        assert mean.generalisation.sel(edit=control) < 0.1
    assert before.others > 0.9 and abs(float(after.others - before.others)) < 0.1
    assert abs(float(after.other_attributes - before.other_attributes)) < 0.05
    assert float(result["size"].min()) > 0.1 and float(result["size"].max()) < 2


def test_a_name_token_is_edited_for_all_attributes_and_early_final_for_all_people(demo):
    """Success is 1 at places that are no fact's own; the damage tells them apart."""
    suite, model, facts = demo
    options = {"n_sentences": 5, "n_others": 12}
    name = edit_facts(model, suite, facts, layer=0, role="name_last", **options).mean("fact")
    final = edit_facts(model, suite, facts, layer=0, role="final", **options).mean("fact")
    for result in (name, final):
        assert result.success.sel(edit="after") > 0.9
    damage = {
        "name": name.sel(edit="before") - name.sel(edit="after"),
        "final": final.sel(edit="before") - final.sel(edit="after"),
    }
    assert damage["name"].same_person > damage["final"].same_person + 0.2
    assert damage["final"].others > damage["name"].others + 0.1


def test_where_the_answer_is_not_read_nothing_happens(double, suite, facts):
    result = edit_facts(
        double, suite, facts[:2], layer=2, role="name_first", n_sentences=2, n_others=5
    )
    for name in MEASURES:
        for edit in EDITS[1:]:
            xr.testing.assert_equal(
                result[name].sel(edit=edit, drop=True), result[name].sel(edit="before", drop=True)
            )
    np.testing.assert_array_equal(result["size"], 0)


def test_each_fact_is_measured_as_if_it_were_alone_and_again_alike(model, suite, facts):
    options = {"layer": 1, "role": "final", "n_sentences": 2, "n_others": 8, "seed": 4}
    together = edit_facts(model, suite, facts[[2, 7, 10]], **options)
    alone = edit_facts(model, suite, facts[[7]], **options)
    for name in MEASURES:
        np.testing.assert_array_equal(together[name][:, [1]], alone[name])
    xr.testing.assert_identical(together, edit_facts(model, suite, facts[[2, 7, 10]], **options))


def test_the_result_says_what_it_is_and_can_be_written(model, suite, facts):
    result = edit_facts(model, suite, facts[:2], layer=0, role="cue", n_sentences=1, n_others=2)
    assert result.sizes == {"edit": 4, "fact": 2} and list(result.edit.values) == list(EDITS)
    options = {"layer": 0, "role": "cue", "n_sentences": 1, "n_others": 2, "seed": 0}
    assert result.attrs == options
    assert result.success.attrs["units"] == "share"
    again = xr.load_dataset(bytes(result.to_netcdf(engine="scipy")), engine="scipy")
    np.testing.assert_array_equal(again.success, result.success)


def test_what_cannot_be_measured_is_refused(model, suite, facts):
    with pytest.raises(ValueError, match="n_others is 41; the run has 40 people"):
        edit_facts(model, suite, facts[:1], layer=0, role="final", n_others=41)
    strangers = replace(facts[:1], texts=facts[:1].texts.assign(person=-1))
    with pytest.raises(ValueError, match="person -1 is not in the run's population"):
        edit_facts(model, suite, strangers, layer=0, role="final")
