"""An edit maps its key to its value, is the smallest that does, and is what new weights do."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import random_model

from interp.data.batches import training_batch
from interp.data.facts import PROMPT_ROLES
from interp.data.sentences import (
    numbers_of,
    rows_of,
    training_sentences,
    write_sentences,
)
from interp.localization.rome import (
    ENOUGH,
    N_BATCHES,
    RIDGE,
    edited,
    find_edits,
    lefts_of,
    mean_keys,
    run_on,
    run_to,
    second_moment,
)
from interp.suite import load_suite

N = 3
DEMO = Path(__file__).parents[1] / "checkpoints" / "demo"


@pytest.fixture(scope="module")
def demo():
    return load_suite(DEMO)


@pytest.fixture(scope="module")
def double(suite):
    return random_model(suite)


@pytest.fixture(scope="module")
def edits(double, suite, facts):
    return find_edits(double, suite, facts[:4], layer=1, role="final", n_sentences=N)


def sentences_of(suite, facts, n=N):
    person = rows_of(suite.population, facts.texts.person)
    attribute = numbers_of(suite.texts, facts.texts.attribute)
    return training_sentences(suite.texts, person, attribute, n)


def unpadded(sentences):
    """Each sentence as a batch of one, with its roles."""
    for tokens, roles, n in zip(sentences.tokens, sentences.roles, sentences.lengths):
        yield tokens[None, :n], roles[:n]


def test_a_left_vector_by_hand():
    second = torch.diag(torch.tensor([1.0, 4.0]))
    # C⁻¹ k = (1, 1/2), kᵀ C⁻¹ k = 2
    torch.testing.assert_close(
        lefts_of(torch.tensor([[1.0, 2.0]]), second), torch.tensor([[0.5, 0.25]])
    )


def test_the_edited_mlp_maps_the_key_to_the_new_value_exactly(double, edits):
    for i in range(len(edits.keys)):
        old, new = (x.blocks[1].mlp.down(edits.keys[i]) for x in (double, edited(double, edits, i)))
        torch.testing.assert_close(new, old + edits.right[i], atol=1e-10, rtol=0)
        assert edits.right[i].norm() > 0.1


def test_every_other_change_that_does_so_is_larger_in_the_metric_of_ordinary_keys(edits):
    generator = torch.Generator().manual_seed(0)

    def size(change):
        return torch.trace(change @ edits.second_moment @ change.T)

    for key, right, left in zip(edits.keys, edits.right, edits.left):
        change = right[:, None] * left
        for scale in (1e-3, 1.0):
            other = torch.randn(change.shape, generator=generator, dtype=torch.double) * scale
            other -= (other @ key)[:, None] * key / (key @ key)  # nothing at the key
            torch.testing.assert_close((change + other) @ key, right)
            assert size(change + other) > size(change)
        plain = right[:, None] * key / (key @ key)  # smallest by Frobenius' norm
        assert plain.norm() < change.norm() and size(plain) > size(change)


def test_a_key_is_the_mean_over_sentences_and_tokens_of_the_role(double, suite, facts):
    role = "cue"  # several tokens a sentence, and not as many in each
    index = PROMPT_ROLES.index(role)
    given = sentences_of(suite, facts[:2])
    keys = mean_keys(run_to(double, given, 2), role, 2)
    rows = []
    for tokens, roles in unpadded(given):
        _, cache = double.run_with_cache(tokens)
        rows.append(cache["blocks.2.mlp.hook_post"][0, roles == index])
    assert len({len(row) for row in rows}) > 1
    for i in range(2):
        expected = torch.cat(rows[i * N : (i + 1) * N]).mean(0)
        torch.testing.assert_close(keys[i], expected, atol=1e-10, rtol=0)


def test_ordinary_keys_are_those_of_every_token_of_training_biographies(double, suite):
    moment, n_tokens = torch.zeros(32, 32, dtype=torch.double), 0
    for step in range(N_BATCHES):
        batch = training_batch(suite.texts, suite.config, step)
        for row in np.split(batch.tokens, np.cumsum(batch.lengths)[:-1]):
            _, cache = double.run_with_cache(torch.from_numpy(row)[None])
            keys = cache["blocks.0.mlp.hook_post"][0].detach()
            moment += keys.T @ keys
            n_tokens += len(row)
    moment /= n_tokens
    with_ridge = moment + RIDGE * moment.trace() / 32 * torch.eye(32)
    torch.testing.assert_close(second_moment(double, suite, layer=0), with_ridge)


def added_by_hook(model, edits, i, given, role):
    """Logits at ``final`` of one fact's sentences, ``right`` added to the MLP's output."""
    name = f"blocks.{edits.layer}.hook_mlp_out"
    for tokens, roles in unpadded(given):
        added = edits.right[i] * (roles == PROMPT_ROLES.index(role))[:, None]
        hooks = [(name, lambda x, hook, added=added: x + added)]
        yield model.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1]


@pytest.mark.parametrize(("layer", "role"), [(3, "final"), (2, "final"), (0, "name_last")])
def test_the_new_value_makes_the_target_likely_and_no_more_than_enough(demo, layer, role):
    """On the demo run, which knows its facts."""
    model, facts = demo.load(6500), demo.facts(4, seed=1)
    edits = find_edits(model, demo, facts, layer=layer, role=role, n_sentences=N)
    targets = facts.corrupted_answers[:, 0]
    for i in range(len(facts)):
        given = sentences_of(demo, facts[[i]])
        logits = torch.stack(list(added_by_hook(model, edits, i, given, role)))
        hits = (logits.argmax(-1) == targets[i]).float()
        torch.testing.assert_close(edits.reached[i], hits.mean())
        loss = -logits.log_softmax(-1)[:, targets[i]].mean()
        assert ENOUGH / 10 < loss <= ENOUGH + 1e-4


def test_running_on_from_a_changed_mlp_is_running_the_edited_model(double, suite, edits):
    zero = np.zeros(4, int)
    given = write_sentences(suite.texts, np.arange(4), np.arange(4), zero)
    run = run_to(double, given, 1)
    for i in (0, 3):
        added = (run.keys @ edits.left[i])[..., None] * edits.right[i]
        changed = edited(double, edits, i)
        for row, (tokens, _) in enumerate(unpadded(given)):
            plain, new = double(tokens)[0, -1], changed(tokens)[0, -1]
            here = run.take(np.array([row]))
            torch.testing.assert_close(run_on(double, here, 0 * added[[row]])[0], plain)
            torch.testing.assert_close(run_on(double, here, added[[row]])[0], new)
            assert (plain - new).abs().max() > 1e-3


def test_the_model_stays_as_it_is(double, suite, facts):
    before = {name: weight.clone() for name, weight in double.state_dict().items()}
    edits = find_edits(double, suite, facts[:2], layer=0, role="name_first", n_sentences=1)
    changed = edited(double, edits, 0)
    for name, weight in double.named_parameters():
        assert torch.equal(weight, before[name]) and weight.grad is None, name
        same = torch.equal(changed.state_dict()[name], weight)
        assert same == (name != "blocks.0.mlp.down.weight"), name
    assert not any(hook.has_hooks() for hook in double.hook_points())


def test_each_fact_is_edited_as_if_it_were_alone(double, suite, facts, edits):
    alone = find_edits(double, suite, facts[[2]], layer=1, role="final", n_sentences=N)
    torch.testing.assert_close(alone.right[0], edits.right[2])
    torch.testing.assert_close(alone.left[0], edits.left[2])


def test_where_nothing_is_read_nothing_is_changed(double, suite, facts):
    edits = find_edits(double, suite, facts[:2], layer=2, role="name_last", n_sentences=1)
    assert torch.equal(edits.right, torch.zeros_like(edits.right))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 3}, "no layer 3; the model has layers 0 to 2"),
        ({"role": "name"}, "no role 'name' in these sentences; there are bos, name_first"),
        ({"role": "context"}, "no role 'context'"),
        ({"n_sentences": 21}, "n_sentences is 21; .* ask for 1 to 20"),
        ({"n_sentences": 0}, "n_sentences is 0"),
    ],
)
def test_what_cannot_be_edited_is_refused(double, suite, facts, options, message):
    with pytest.raises(ValueError, match=message):
        find_edits(double, suite, facts[:1], **{"layer": 0, "role": "final"} | options)


def test_a_model_in_bfloat16_is_not_edited(double, suite, facts):
    narrow = deepcopy(double).to(torch.bfloat16)
    with pytest.raises(
        ValueError, match=r"the model is in torch.bfloat16, .*; give model.float\(\)"
    ):
        find_edits(narrow, suite, facts[:1], layer=0, role="final")
    find_edits(narrow.float(), suite, facts[:1], layer=0, role="final", n_sentences=1)
