import hashlib
from dataclasses import asdict, replace

import numpy as np
import pytest
from builders import sentence, tokens_by_row
from scipy.stats import chisquare

from interp.config import ATTRIBUTES, preset
from interp.data.batches import evaluation_set, sampling_weights, training_batch
from interp.data.biographies import lay_out, tokenizer_for
from interp.data.population import draw_population
from interp.data.tokenizer import encode

CONFIG = preset("tiny", n_people=10, n_held_out=6, n_evaluated=4, batch_size=8, n_train_templates=4)
PEOPLE = draw_population(10, 6, CONFIG, seed=0)
TOKENIZER = tokenizer_for(PEOPLE)


@pytest.fixture(scope="module")
def texts():
    return lay_out(PEOPLE, TOKENIZER, seed=0)


def templates_used(texts, biographies):
    """Ranks in the person's own order of templates, found by writing out every candidate."""
    ranks = []
    for person, table in zip(biographies.people, tokens_by_row(biographies)):
        assert sorted(table.attribute[1:].unique()) == sorted(ATTRIBUTES)
        for attribute, tokens in table[1:].groupby("attribute").token:
            candidates = [sentence(PEOPLE.loc[person], attribute, t) for t in range(25)]
            template = encode(TOKENIZER, candidates).index(tokens.tolist())
            order = texts.template_order[person, ATTRIBUTES.index(attribute)]
            ranks.append(order.tolist().index(template))
    return ranks


def test_a_training_batch_tells_each_attribute_once_in_the_persons_training_templates(texts):
    batch = training_batch(texts, CONFIG, 3)
    assert len(batch.people) == 8
    assert set(templates_used(texts, batch)) == {0, 1, 2, 3}


def test_an_evaluation_set_tells_each_attribute_once_in_the_persons_evaluation_templates(texts):
    ranks = templates_used(texts, evaluation_set(texts, CONFIG, "train"))
    assert set(ranks) == {20, 21, 22, 23, 24}


def test_the_full_name_is_in_every_sentence(texts):
    batch = training_batch(texts, CONFIG, 0)
    for person, table in zip(batch.people, tokens_by_row(batch)):
        full_name = encode(TOKENIZER, [" ".join(PEOPLE.loc[person, ["first", "middle", "last"]])])
        names = table[table.role.str.startswith("name")].groupby("attribute").token
        assert names.apply(list).tolist() == full_name * 6


def test_a_batch_depends_on_configuration_seed_and_step_only(texts):
    first = asdict(training_batch(texts, CONFIG, 7))
    evaluation_set(texts, CONFIG, "train")
    for step in (8, 2):
        training_batch(texts, CONFIG, step)
    np.random.seed(5)
    again = asdict(training_batch(texts, CONFIG, 7))
    for name, values in first.items():
        np.testing.assert_array_equal(again[name], values)


@pytest.mark.parametrize("changes, step", [({}, 8), ({"seed": 1}, 7)])
def test_another_step_or_seed_gives_another_batch(texts, changes, step):
    batch = training_batch(texts, CONFIG, 7)
    other = training_batch(texts, preset("tiny", **asdict(CONFIG) | changes), step)
    assert other.people.tolist() != batch.people.tolist()
    assert other.attributes.tolist() != batch.attributes.tolist()


def test_every_attribute_comes_first_and_last_as_often_as_any_other(texts):
    batches = [training_batch(texts, CONFIG, step) for step in range(75)]
    rows = [table for batch in batches for table in tokens_by_row(batch)]
    for place in (1, -1):
        counts = [sum(table.attribute.iloc[place] == a for table in rows) for a in ATTRIBUTES]
        assert chisquare(counts).pvalue > 1e-4


def weights(step=0, **changes):
    return sampling_weights(preset("tiny", n_people=4, **changes), step)


def test_sampling_weights_are_uniform_or_an_inverse_power_of_the_persons_rank():
    np.testing.assert_allclose(weights(), [1 / 4] * 4)
    np.testing.assert_allclose(weights(power_law=1.0), [12 / 25, 6 / 25, 4 / 25, 3 / 25])
    np.testing.assert_allclose(weights(power_law=0.5)[0] / weights(power_law=0.5)[3], 2)


def test_during_the_warm_up_only_the_first_people_are_drawn():
    warm_up = {"warmup_people": 2, "warmup_steps": 5}
    np.testing.assert_allclose(weights(4, **warm_up), [1 / 2, 1 / 2, 0, 0])
    np.testing.assert_allclose(weights(4, power_law=1.0, **warm_up), [2 / 3, 1 / 3, 0, 0])
    np.testing.assert_allclose(weights(5, **warm_up), [1 / 4] * 4)


def test_sampling_weights_add_up_to_one():
    config = preset("tiny", n_people=5000, power_law=0.7, warmup_people=33, warmup_steps=1)
    assert [sampling_weights(config, step).sum() for step in (0, 1)] == pytest.approx([1, 1])


@pytest.mark.parametrize(
    "changes", [{}, {"power_law": 0.8}, {"power_law": 0.8, "warmup_people": 3, "warmup_steps": 99}]
)
def test_people_are_drawn_as_often_as_their_weights_say(texts, changes):
    config = preset("tiny", **asdict(CONFIG) | {"batch_size": 500} | changes)
    people = np.concatenate([training_batch(texts, config, step).people for step in range(4)])
    expected = 2000 * sampling_weights(config, 0)
    counts = np.bincount(people, minlength=10)
    assert (counts > 0).tolist() == (expected > 0).tolist()
    assert chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 1e-4


def test_an_evaluation_set_is_spread_evenly_over_its_split(texts):
    assert evaluation_set(texts, CONFIG, "train").people.tolist() == [0, 2, 5, 7]
    assert evaluation_set(texts, CONFIG, "held-out").people.tolist() == [10, 11, 13, 14]
    everyone = preset("tiny", **asdict(CONFIG) | {"n_evaluated": 99})
    assert evaluation_set(texts, everyone, "train").people.tolist() == list(range(10))
    assert evaluation_set(texts, everyone, "held-out").people.tolist() == list(range(10, 16))


def test_celebrities_are_drawn_so_many_times_as_often(config):
    weights = sampling_weights(replace(config, celebrities=10, celebrity_weight=4.0), 0)
    np.testing.assert_allclose(weights[[0, 9, 10, 39]], [4 / 70, 4 / 70, 1 / 70, 1 / 70])


def test_a_schedule_goes_through_its_stages_and_then_on_as_without(config):
    staged = replace(config, power_law=1.0, schedule=("5:1,0", "3:0,1,0,3"))
    first, second, after = (sampling_weights(staged, step) for step in (4, 5, 8))
    np.testing.assert_allclose(first, [1 / 20] * 20 + [0] * 20)
    np.testing.assert_allclose(second, [0] * 10 + [1 / 40] * 10 + [0] * 10 + [3 / 40] * 10)
    np.testing.assert_array_equal(sampling_weights(staged, 0), first)
    np.testing.assert_array_equal(sampling_weights(staged, 7), second)
    np.testing.assert_array_equal(after, sampling_weights(replace(config, power_law=1.0), 0))


@pytest.mark.parametrize("text", ["x:1", "5", "0:1", "5:0,0", "5:1,-1", "5:a"])
def test_a_stage_that_cannot_be_read_is_quoted(config, text):
    with pytest.raises(ValueError, match=f"schedule has '{text}'; write STEPS:WEIGHTS"):
        replace(config, schedule=(text,))


def test_more_groups_or_celebrities_than_people_are_refused(config):
    with pytest.raises(ValueError, match="schedule has 41 groups for 40 people"):
        replace(config, schedule=("5:" + ",".join(["1"] * 41),))
    with pytest.raises(ValueError, match="celebrities is 41, more than n_people, 40"):
        replace(config, celebrities=41)
    with pytest.raises(ValueError, match=r"celebrity_weight is 0\.0; it must be at least 1e-09"):
        replace(config, celebrities=40, celebrity_weight=0.0)


def test_sentences_are_in_one_order_where_they_are_not_shuffled(suite, config):
    orders = {}
    for shuffled in (True, False):
        batch = training_batch(suite.texts, replace(config, shuffled=shuffled), 3)
        first = np.cumsum(batch.lengths) - batch.lengths
        rows = [batch.attributes[a : a + n] for a, n in zip(first, batch.lengths)]
        orders[shuffled] = {tuple(dict.fromkeys(row[row >= 0].tolist())) for row in rows}
    assert orders[False] == {(0, 1, 2, 3, 4, 5)} and len(orders[True]) > 10


@pytest.mark.parametrize(
    ("flag", "partner"),
    [
        ({"celebrities": 4}, "celebrity_weight"),
        ({"warmup_people": 4}, "warmup_steps"),
        ({"warmup_steps": 4}, "warmup_people"),
        ({"reference_step": 4}, "reference"),
        ({"start_step": 4}, "reference"),
    ],
)
def test_a_flag_that_does_nothing_alone_is_refused(config, flag, partner):
    (name,) = flag
    with pytest.raises(ValueError, match=f"{name} is 4, which does nothing without {partner}; "):
        replace(config, **flag)


def test_synthetic_people_tokens_and_batches_stay_what_they_were():
    """Runs from before people of one's own could be trained on are resumed and compared with new
    ones, so that their data must not change in a bit; digests of version 0.2.0.
    """
    tiny = preset("tiny")
    people = draw_population(tiny.n_people, tiny.n_held_out, tiny, seed=0)
    tokenizer = tokenizer_for(people)
    texts = lay_out(people, tokenizer, seed=0)
    told = replace(tiny, unknown_people=8, unknown_share=0.3, attributes=("major", "birth_date"))
    sha = hashlib.sha256(people.to_csv().encode() + tokenizer.to_str().encode())
    assert sha.hexdigest()[:16] == "890cca0c505eb4ad"
    sha.update(texts.template_order.tobytes())
    batches = [training_batch(texts, tiny, step) for step in range(3)]
    batches += [training_batch(texts, told, 1)]
    batches += [evaluation_set(texts, tiny, split) for split in ("train", "held-out")]
    for batch in batches:
        for x in (batch.tokens, batch.roles, batch.attributes, batch.lengths, batch.people):
            sha.update(str(x.dtype).encode() + x.tobytes())
    assert sha.hexdigest()[:16] == "4c9bfaf01a4b89c6"
