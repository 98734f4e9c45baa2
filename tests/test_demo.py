"""The run that ships with the repository is what the README says it is."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp.data.batches import evaluation_set
from interp.dynamics.plateau import phases
from interp.suite import load_suite
from interp.training.evaluation import evaluate

DEMO = Path(__file__).parents[1] / "checkpoints" / "demo"


@pytest.fixture(scope="module")
def demo():
    return load_suite(DEMO)


def test_it_was_made_by_the_demo_preset_and_is_small(demo):
    record = json.loads((DEMO / "run.json").read_text())
    assert record["command"] == "interp-train --preset demo --out checkpoints/demo"
    shipped = [p for p in DEMO.rglob("*") if p.is_file() and "results" not in p.parts]
    kept = [p for p in shipped if "resume" not in p.parts and p.suffix != ".html"]
    assert sum(path.stat().st_size for path in kept) < 24e6
    assert 20 <= len(demo.steps) <= 28


def test_only_the_full_name_tells_a_person(demo):
    people = demo.population.query("split == 'train'")
    assert len(people) >= 500 and not people.duplicated(["first", "middle", "last"]).any()
    for pair in combinations(["first", "middle", "last"], 2):
        sizes = people.groupby(list(pair)).size()
        assert len(people) / len(sizes) >= 4, pair


def test_the_three_phases_are_there(demo):
    table = demo.metrics.query("split == 'train' and attribute == 'average'")
    found = phases(table.step.to_numpy(), table.loss.to_numpy(), demo.no_knowledge_baseline)
    plateau = table[table.step.between(found.plateau_start, found.plateau_end)]
    assert len(plateau) >= 4 and plateau.accuracy.max() < 0.06
    assert table.loss.iloc[0] > 2 * demo.no_knowledge_baseline
    assert table.accuracy.iloc[-1] >= 0.95


def test_the_last_checkpoint_is_as_good_as_its_metrics_say(demo):
    last = demo.steps[-1]
    table = evaluate(demo.load(last), evaluation_set(demo.texts, demo.config, "train"))
    stored = demo.metrics.query(f"step == {last} and split == 'train'")
    assert table.loss.tolist() == pytest.approx(stored.loss.tolist(), rel=1e-4)
    assert table.accuracy.tolist() == pytest.approx(stored.accuracy.tolist(), abs=1e-3)


def test_hugging_face_reads_every_checkpoint_with_the_same_logits(demo):
    """In float64: in float32 even Hugging Face's two attentions differ by 4e-5 on these logits."""
    facts = demo.facts(12, seed=0)
    real = torch.arange(facts.clean.shape[1]) < facts.lengths[:, None]
    for step in demo.steps[:: len(demo.steps) - 1]:
        theirs = AutoModelForCausalLM.from_pretrained(demo.step_dir(step))
        ours = demo.load(step)
        for kind, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-5)):
            with torch.no_grad():
                expected = theirs.to(kind)(facts.clean).logits[real]
            found = ours.to(kind)(facts.clean)[real]
            np.testing.assert_allclose(found, expected, atol=tolerance, rtol=0)


def test_the_tokenizer_loads_as_a_hugging_face_tokenizer(demo):
    fact = demo.facts(6)[0]
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    assert tokenizer(fact.text["clean_prompt"]).input_ids == fact.clean.tolist()
