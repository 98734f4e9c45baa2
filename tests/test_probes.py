"""Probes against refits, and read-outs against the model's own logits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from oracle import random_model

from interp.data.facts import PROMPT_ROLES
from interp.localization import probes as memory
from interp.localization.probes import PLACES, RIDGE, probe, read_off, stream
from interp.model.attention import split_qkv


@pytest.fixture(scope="module")
def wide(suite):
    return random_model(suite)


def test_left_out_predictions_are_those_of_refits_without_the_fact():
    rng = np.random.default_rng(0)
    values = rng.integers(4, size=30)
    features = rng.normal(size=(30, 5)) + np.eye(4)[values] @ rng.normal(size=(4, 5))
    mine = memory._left_out(features[None], values[None])[0, 0]
    x = (features - features.mean(0)) / features.std(0, ddof=1)
    x = np.concatenate((x, np.ones((30, 1))), 1)
    penalty = np.diag([RIDGE] * 5 + [0])
    theirs = []
    for i in range(30):
        kept = np.arange(30) != i
        targets = np.eye(4)[values[kept]]
        weight = np.linalg.solve(x[kept].T @ x[kept] + penalty, x[kept].T @ targets)
        theirs.append((x[i] @ weight).argmax() == values[i])
    np.testing.assert_array_equal(mine, theirs)
    assert 0.3 < mine.mean() < 1


def test_a_probe_reads_what_is_written_for_everybody_and_no_noise(wide, suite, monkeypatch):
    facts = suite.facts(40, attribute="company", seed=0)
    classes, y = np.unique(facts.answers[:, 0].numpy(), return_inverse=True)
    rng = np.random.default_rng(1)
    written = rng.normal(size=(len(classes), 8))[y] + 0.3 * rng.normal(size=(40, 8))
    features = rng.normal(size=(3, 3, 4, 40, 8))
    features[1, 2, 3] = written
    monkeypatch.setattr(memory, "stream", lambda model, facts: features)
    correct = probe(wide, facts).correct.mean("fact")
    assert float(correct.sel(labels="real", layer=1, site="resid_post", role="final")) > 0.8
    assert float(correct.sel(labels="shuffled", layer=1, site="resid_post", role="final")) < 0.45
    others = correct.sel(labels="real", layer=[0, 2])
    assert float(others.mean()) < 0.3
    twice = facts[[0, 0, 1]]
    with pytest.raises(ValueError, match="asked for the same attribute twice"):
        probe(wide, twice)


def test_the_stream_is_that_of_the_last_token_of_each_role(wide, suite, monkeypatch):
    facts = suite.facts(5, seed=3)
    monkeypatch.setattr(memory, "FACTS_AT_ONCE", 2)
    streams = stream(wide, facts)
    for i, fact in enumerate(facts):
        _, cache = wide.run_with_cache(fact.clean[None])
        for r, role in enumerate(PLACES):
            at = max(p for p, x in enumerate(fact.roles) if x == role)
            there = cache["blocks.1.hook_resid_mid"][0, at].detach().numpy()
            np.testing.assert_allclose(streams[1, 1, r, i], there, atol=1e-9)


def test_the_unembedding_reads_at_the_end_what_the_model_answers(wide, suite):
    facts = suite.facts(24, attribute=["company", "major"], seed=1)
    read = read_off(wide, facts)
    last = read.correct.sel(labels="real", reader="unembed", site="resid_post", role="final")
    logits = torch.stack([wide(fact.clean[None])[0, -1] for fact in facts])
    for name in ("company", "major"):
        at = np.flatnonzero(read.attribute == name)
        candidates = facts.answers[at, 0].unique()
        best = candidates[logits[at][:, candidates].argmax(-1)]
        mine = last.isel(layer=-1, fact=at)
        np.testing.assert_array_equal(mine, (best == facts.answers[at, 0]).float())
    logit = read.logit.sel(reader="unembed", site="resid_post", role="final").isel(layer=-1)
    at = np.flatnonzero(read.attribute == "major")
    candidates = facts.answers[at, 0].unique()
    own = logits[at, facts.answers[at, 0]] - logits[at][:, candidates].mean(-1)
    np.testing.assert_allclose(logit[at], own.detach(), atol=1e-5)
    rank = read["rank"].sel(reader="unembed", site="resid_post", role="final").isel(layer=-1)
    for i in at:
        falling = candidates[logits[i, candidates].argsort(descending=True)].tolist()
        assert int(rank[i]) == 1 + falling.index(int(facts.answers[i, 0]))
    assert len(set(rank.values[at])) > 3


def test_a_head_reads_what_it_would_write_if_it_looked_there_alone(wide, suite):
    facts = suite.facts(12, attribute="company", seed=1)
    read = read_off(wide, facts).logit.sel(reader="L1H2", site="resid_mid", role="name_last")
    i, fact = 3, facts[3]
    _, cache = wide.run_with_cache(fact.clean[None])
    at = max(p for p, role in enumerate(fact.roles) if role == "name_last")
    block = wide.blocks[1]
    normed = block.ln1(cache["blocks.0.hook_resid_mid"][0, at])
    _, _, values = split_qkv(block.attn.qkv(normed), wide.cfg.n_heads, wide.cfg.n_heads)
    written = block.attn.out.weight[:, 8:12] @ values[2]
    scale = cache["blocks.2.hook_resid_post"][0, -1].var(unbiased=False).add(1e-5).sqrt()
    logits = wide.unembed.weight @ ((written - written.mean()) / scale * wide.ln_final.weight)
    candidates = facts.answers[:, 0].unique()
    own = float(logits[fact.answer[0]] - logits[candidates].mean())
    assert float(read.isel(layer=0, fact=i)) == pytest.approx(own, abs=1e-5)
    assert read.isel(layer=[1, 2]).isnull().all()  # the head is before these


def test_a_head_reads_at_the_scale_of_the_answer_position_whatever_its_role(wide, suite):
    facts = suite.facts(12, attribute="company", seed=1)
    roles = facts.roles.clone()
    roles[torch.arange(len(facts)), facts.lengths - 1] = PROMPT_ROLES.index("cue")
    roles[:, 1] = PROMPT_ROLES.index("final")
    here, elsewhere = (
        read_off(wide, x).logit.sel(reader="L1H2", role="name_last", layer=0)
        for x in (facts, replace(facts, roles=roles))
    )
    np.testing.assert_array_equal(here, elsewhere)


def test_shuffled_values_are_others_of_the_same_attribute(wide, suite):
    facts = suite.facts(40, attribute="company", seed=1)
    read = read_off(wide, facts, seed=3).correct
    assert not read.sel(labels="real").equals(read.sel(labels="shuffled"))
    other = next(answer for answer in facts.answers if answer[0] != facts.answers[0, 0])
    of_one, of_other = (x.expand(len(facts), -1) for x in (facts.answers[:1], other[None]))
    one = replace(facts, answers=of_one, corrupted_answers=of_other)
    with pytest.raises(ValueError, match="40 of the facts are on 'company' and have one value"):
        read_off(wide, one, seed=3)
