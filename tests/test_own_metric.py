"""A user's metric beside the others, by hand-made hooks and by what it must agree with."""

import numpy as np
import pytest
import torch
from oracle import HOOKS, random_model

from interp.patching import patch
from interp.results.metrics import effect, recovered


@pytest.fixture(scope="module")
def small(suite):
    return random_model(suite)


@pytest.fixture(scope="module")
def facts(suite):
    """Enough of two attributes that each has a control."""
    return suite.facts(24, attribute=("birth_place", "company"), seed=3)


def difference(facts):
    """``logit_diff`` written as a user would."""

    def metric(logits, fact):
        right, wrong = facts.answers[fact, 0], facts.corrupted_answers[fact, 0]
        row = torch.arange(len(fact))
        return logits[row, right] - logits[row, wrong]

    return metric


@pytest.mark.parametrize("site", ["resid_pre", "z", "mlp_out", "pattern", "z-logits", "knockout"])
@pytest.mark.parametrize("options", [{}, {"whole_value": False, "control": True}], ids=["", "less"])
def test_the_logit_difference_as_a_metric_of_ones_own_is_the_metric(small, facts, site, options):
    options = options | {"direction": "noising"}
    plain = patch(small, facts, site=site, **options)
    result = patch(small, facts, site=site, metric=difference(facts), max_memory=0.003, **options)
    for end in ("patched", "clean", "corrupted"):
        np.testing.assert_allclose(result[f"{end}_own_metric"], plain[end], atol=1e-4)
    kept = list(plain.data_vars)
    assert [name for name in result.data_vars if "own_metric" not in name] == kept
    assert set(result.data_vars) - set(kept) == {
        f"{end}_own_metric" for end in ("patched", "clean", "corrupted")
    }
    for name in kept:
        np.testing.assert_allclose(result[name], plain[name], atol=1e-4)


def test_any_function_of_the_logits_is_that_of_naive_hooks(small, facts):
    group = torch.tensor([5, 9, 11])

    def share(logits, fact):
        return logits.softmax(-1)[:, group].sum(-1) + fact

    result = patch(small, facts, site="attn_out", metric=share)
    for i, fact in enumerate(facts):
        clean = small.run_with_cache(fact.clean[None])
        for role in ("name_last", "final"):
            at = fact.roles.index(role)
            given = clean[1][HOOKS["attn_out"].format(1)][0, at]

            def hook(x, hook, at=at, given=given):
                x = x.clone()
                x[0, at] = given
                return x

            hooked = [(HOOKS["attn_out"].format(1), hook)]
            logits = small.run_with_hooks(fact.corrupted[None], fwd_hooks=hooked)[0, -1]
            wanted = float(logits.softmax(-1)[group].sum()) + i
            found = result.patched_own_metric.sel(layer=1, role=role, fact=i)
            assert float(found) == pytest.approx(wanted, abs=1e-5)
        whole = float(clean[0][0, -1].softmax(-1)[group].sum()) + i
        assert float(result.clean_own_metric[i]) == pytest.approx(whole, abs=1e-5)


def test_effects_and_shares_of_a_metric_of_ones_own(small, facts):
    result = patch(small, facts, site="resid_pre", metric=difference(facts), groups=("all",))
    np.testing.assert_allclose(recovered(result, "own_metric")[0], 1, atol=1e-4)
    change = effect(result, "own_metric")
    np.testing.assert_allclose(change, effect(result), atol=1e-4)
    assert change.units == "of the metric given" and effect(result).units == "nats"
    with pytest.raises(ValueError, match="no metric 'own_metric'; there are logit_diff"):
        effect(patch(small, facts, site="resid_pre"), "own_metric")


@pytest.mark.parametrize(
    ("metric", "options", "message"),
    [
        ("logit_diff", {}, "metric is 'logit_diff'; give a function of logits and facts"),
        (lambda logits, fact: logits[:, 0], {"method": "atp"}, "has no estimate by atp; use"),
        (lambda logits, fact: logits, {}, r"the metric gives \(\d+, \d+\) for logits of shape"),
        (lambda logits, fact: 1.0, {}, "the metric gives float for logits of shape"),
        (lambda logits, fact: logits[:, 0] * torch.nan, {}, "a number that is not finite"),
    ],
    ids=["name", "estimated", "table", "number", "NaN"],
)
def test_a_metric_that_cannot_be_used_is_refused(small, facts, metric, options, message):
    with pytest.raises(ValueError, match=message):
        patch(small, facts, site="z", metric=metric, **options)
