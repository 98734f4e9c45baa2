"""Unknown people: who is met with drawn values, how these are distributed, and that everything else
stays as it was.
"""

import hashlib
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from builders import tokens_by_row
from scipy.stats import chi2_contingency, chisquare

from interp.config import ATTRIBUTES, preset, train_config
from interp.data.batches import UNKNOWN, evaluation_set, people_of, training_batch
from interp.data.biographies import lay_out, tokenizer_for
from interp.data.drawn_values import prior_confidence
from interp.data.population import draw_population, no_knowledge_baseline
from interp.data.tokenizer import encode
from interp.training.finetune import finetune_config
from interp.training.loop import train
from interp.training.metrics_table import read_metrics

PLAIN = preset("tiny", n_people=10, n_held_out=6, n_evaluated=4, batch_size=8, n_train_templates=4)
CONFIG = replace(PLAIN, unknown_people=3, unknown_share=0.4)
PEOPLE = draw_population(10, 6, CONFIG, seed=0)
TOKENIZER = tokenizer_for(PEOPLE)
N_STEPS = 150


@pytest.fixture(scope="module")
def texts():
    return lay_out(PEOPLE, TOKENIZER, seed=0)


@pytest.fixture(scope="module")
def told(texts):
    """(person, {attribute: value}) of every biography of many batches."""
    found = []
    for step in range(N_STEPS):
        batch = training_batch(texts, CONFIG, step)
        for person, table in zip(batch.people, tokens_by_row(batch)):
            values = table[table.role == "value"].groupby("attribute").token
            found.append((int(person), {name: TOKENIZER.decode(list(x)) for name, x in values}))
    return found


def value_of(person, attribute):
    return TOKENIZER.decode(encode(TOKENIZER, [PEOPLE[attribute][person]])[0])


def test_batches_and_evaluation_sets_without_unknown_people_are_what_they_were(texts):
    digest = hashlib.sha256()
    for step in range(5):
        batch = training_batch(texts, PLAIN, step)
        digest.update(batch.tokens.astype(np.int64).tobytes())
        digest.update(batch.people.astype(np.int64).tobytes())
    for split in ("train", "held-out"):
        digest.update(evaluation_set(texts, PLAIN, split).tokens.astype(np.int64).tobytes())
    assert digest.hexdigest().startswith("c1c4851ff16e7471")  # before there were unknown people


def test_unknown_people_are_the_last_held_out_and_no_split_overlaps():
    given = replace(CONFIG, from_run="x", new_people=2)
    splits = [people_of(given, name) for name in ("train", "new", "held-out", UNKNOWN)]
    assert splits == [(0, 10), (10, 2), (12, 1), (13, 3)]


def test_all_other_biographies_stay_as_they_are_without_unknown_people(texts):
    n_same = 0
    for step in range(30):
        ours, theirs = (training_batch(texts, config, step) for config in (CONFIG, PLAIN))
        for who, one, other in zip(ours.people, tokens_by_row(ours), tokens_by_row(theirs)):
            if who < 10:
                assert one.token.tolist() == other.token.tolist()
                n_same += 1
    assert 30 * 8 * 0.4 < n_same < 30 * 8 * 0.8


def test_a_share_of_the_biographies_is_of_unknown_people_and_none_of_held_out_ones(told):
    people = np.array([person for person, _ in told])
    share = (people >= 10).mean()
    assert abs(share - 0.4) < 4 * (0.4 * 0.6 / len(people)) ** 0.5
    assert set(people) == {*range(10), 13, 14, 15}
    assert chisquare(np.bincount(people[people >= 13])[13:]).pvalue > 1e-3


def test_known_people_keep_their_values_and_unknown_ones_get_others_every_time(told):
    changed = {}
    for person, values in told:
        for attribute in ATTRIBUTES:
            if person < 10:
                assert values[attribute] == value_of(person, attribute)
            else:
                changed.setdefault((person, attribute), set()).add(values[attribute])
    for (_, attribute), values in changed.items():
        of_known = {value_of(i, attribute) for i in range(10)}
        if attribute == "birth_date":
            assert len(values) > 50
        else:
            assert values == of_known


def test_drawn_values_are_as_frequent_as_among_training_people_and_independent(told):
    drawn = [values for person, values in told if person >= 10]
    for attribute in ATTRIBUTES[1:]:
        known = Counter(value_of(i, attribute) for i in range(10))
        counts = Counter(values[attribute] for values in drawn)
        expected = [known[name] / 10 * len(drawn) for name in known]
        assert chisquare([counts[name] for name in known], expected).pvalue > 1e-3, attribute
    parts = [{value_of(i, "birth_date").split()[k] for i in range(10)} for k in range(3)]
    dates = {values["birth_date"] for values in drawn}
    for k in range(3):
        assert {date.split()[k] for date in dates} == parts[k]
    assert len(dates) > len({value_of(i, "birth_date") for i in range(10)})
    for one, other in (("major", "company"), ("birth_place", "location")):
        counts = pd.crosstab(*(np.array([x[name] for x in drawn]) for name in (one, other)))
        assert chi2_contingency(counts).pvalue > 1e-3, (one, other)


def test_the_best_answer_to_an_unknown_name_has_the_no_knowledge_baseline_as_its_loss(told):
    """−ln of the frequency of each drawn value, of a date's parts together; five standard errors of
    the mean over biographies.
    """
    drawn = [values for person, values in told if person >= 10]
    for attribute, baseline in no_knowledge_baseline(PEOPLE).items():
        words = [value_of(i, attribute) for i in range(10)]
        split = str.split if attribute == "birth_date" else lambda x: [x]
        counts = [Counter(part) for part in zip(*map(split, words))]
        losses = [
            -sum(np.log(c[part] / 10) for c, part in zip(counts, split(values[attribute])))
            for values in drawn
        ]
        error = np.std(losses) / len(losses) ** 0.5
        assert np.mean(losses) == pytest.approx(baseline, abs=5 * error + 1e-12), attribute


def test_a_batch_with_unknown_people_depends_on_configuration_seed_and_step_only(texts):
    first = asdict(training_batch(texts, CONFIG, 7))
    for step in (8, 2):
        training_batch(texts, CONFIG, step)
    again = asdict(training_batch(texts, CONFIG, 7))
    other = asdict(training_batch(texts, replace(CONFIG, seed=1), 7))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["people"], other["people"])


def test_the_priors_confidence_by_hand():
    """Majors 3 of 4 alike; universities all alike; cities of two tokens, New York twice and New
    Haven once: 4 first tokens (3 of 4 New) and 3 second ones (2 of 3 York); companies all
    different; days 2 of 4 alike, one month, four years.
    """
    four = PEOPLE[:5].assign(
        major=["Law", "Law", "Law", "Art", "Art"],
        university="Yale University",
        birth_place=["New York", "New York", "New Haven", "Paris", "Paris"],
        location=["New York", "New York", "New Haven", "Paris", "Paris"],
        company=["A", "B", "C", "D", "D"],
        birth_date=["1 May 1900", "1 May 1901", "2 May 1902", "3 May 1903", "3 May 1903"],
    )  # fmt: skip
    texts = lay_out(four, tokenizer_for(four), seed=0)
    city, date = (4 * 3 / 4 + 3 * 2 / 3) / 7, (1 / 2 + 1 + 1 / 4) / 3
    expected = (3 / 4 + 1 + 2 * city + 1 / 4 + date) / 6
    assert prior_confidence(texts, 4) == pytest.approx(expected, abs=1e-12)


def test_unknown_people_are_refused_where_they_mean_nothing():
    for name, value in (("unknown_people", 2), ("unknown_share", 0.5)):
        with pytest.raises(ValueError, match=rf"{name} is .*, which does nothing without unknown_"):
            replace(PLAIN, **{name: value})
    with pytest.raises(ValueError, match="new_people is 0 and unknown_people 6, and there are 6"):
        replace(CONFIG, unknown_people=6)
    with pytest.raises(ValueError, match=r"unknown_share is 1\.0; it must be below 1"):
        replace(CONFIG, unknown_share=1.0)
    older = {k: v for k, v in asdict(PLAIN).items() if not k.startswith("unknown")}
    assert train_config(older) == PLAIN


def test_old_people_are_fine_tuned_on_beside_unknown_ones(suite, tmp_path):
    given = finetune_config(
        suite.config, suite.path, suite.steps[-1], new_people=0, unknown_people=5,
        unknown_share=0.5, n_steps=2, dense_every=2, dense_until=2, checkpoint_every=2,
        precision="fp32",
    )  # fmt: skip
    table = read_metrics(train(given, tmp_path / "run") / "metrics.parquet")
    assert set(table.split) == {"train", "held-out", "unknown"} and set(table.step) == {0, 2}
    drawn = np.concatenate([training_batch(suite.texts, given, s).people for s in range(2)])
    n, held_out = suite.config.n_people, suite.config.n_held_out
    assert (drawn < n).any() and (drawn >= n + held_out - 5).any()
    assert not ((drawn >= n) & (drawn < n + held_out - 5)).any()
    again = finetune_config(given, tmp_path / "run", 2, new_people=3)
    assert (again.unknown_people, again.unknown_share, again.replay) == (0, 0.0, 0.0)
