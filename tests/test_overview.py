"""The numbers and sentences of a run's page."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import sweep

from analyses.report.five_sentences import sentences
from analyses.report.kept_studies import kept_lines
from interp.config import TrainConfig
from interp.dynamics.plateau import Phases
from interp.localization.formation import Localization
from interp.report import overview
from interp.report.overview import LinePanel, Overview, PageSection, Panel, Remark
from interp.report.patch_maps import patching_of
from interp.results.metrics import interval

STEPS = (0, 100, 200, 300)
ENDS = {"final ← names": ("final", ("name_first", "name_last"))}
HOSTILE = "</script><img src=x onerror=document.title='run'>\"'&{{1}}"


def of_component(mechanism, component, place, kind, shares, named, attribute="all"):
    return pd.DataFrame({
        "step": STEPS, "attribute": attribute, "mechanism": mechanism, "component": component,
        "place": place, "kind": kind, "share": shares, "low": np.subtract(shares, 0.1),
        "high": np.add(shares, 0.1), "named": named,
        "told_apart": [False, True, True, True],
    })  # fmt: skip


@pytest.fixture
def table():
    """L1H3 extracts from step 200 on; L1H2 is never shown to; the MLP of layer 2 is a memory at
    the last step.
    """
    no, late, last = [False] * 4, [False, False, True, True], [False, False, False, True]
    edge = "final ← names"
    return pd.concat([
        of_component("extraction", "L1H3", edge, "head", [0.9, 0.0, 0.4, 0.5], late),
        of_component("extraction", "L1H2", edge, "head", [0.0, 0.0, 0.3, 0.3], no),
        of_component("extraction", "all heads", edge, "all", [0.0, 0.1, 0.6, 0.7], no),
        of_component("memory", "L2 MLP", "final", "mlp", [0.0, 0.0, 0.1, 0.25], last),
        of_component("memory", "all MLPs", "final", "all", [0.0, 0.2, 0.8, 0.9], no),
        of_component("memory", "L2 MLP", "final", "mlp", [1, 1, 1, 1], late, "major"),
    ], ignore_index=True)  # fmt: skip


@pytest.fixture
def curves():
    values = np.zeros((3, 4, 5))
    values[1] = np.array([0.1, 0.1, 0.8, 0.9])[:, None] + [-0.1, 0, 0.1, 0, 0]
    labels = ["gap", "extraction: in place", "memory: in place"]
    return xr.DataArray(
        values, dims=("curve", "step", "fact"), coords={"curve": labels, "step": list(STEPS)}
    )


@pytest.fixture
def formed():
    """Only extraction's attention has a time."""
    marks = ("onset", "midpoint", "midpoint_low", "midpoint_high", "completion")
    of = dict(zip(marks, (110.0, 150.0, 140.0, 171.0, 190.0))) | {"resolution_midpoint": 1.0}
    labels = ["gap", "extraction: in place", "memory: in place"]
    variables = {name: ("curve", [np.nan, x, np.nan]) for name, x in of.items()}
    variables |= {"emerged": ("curve", [False, True, False])}
    variables |= {"reason": ("curve", ["few", "", "it does not level off"])}
    return xr.Dataset(variables, {"curve": labels})


@pytest.fixture
def attention():
    pattern = np.zeros((4, 3, 4, 2, 5))
    pattern[3, 1, 3, 0] = [0.5, 0.6, 0.7, 0.6, 0.6]
    return xr.Dataset(
        {"pattern": (("step", "layer", "head", "edge", "fact"), pattern)},
        {"step": list(STEPS), "edge": ["final ← names", "final ← names of all sentences"]},
    )


def test_components_are_those_shown_to_matter_at_some_step(table, curves, formed, attention):
    data = overview.mechanisms_of(table, curves, formed, attention, ENDS)
    found = {x["component"]: x for x in data["components"]}
    assert list(found) == ["L2 MLP", "L1H3"]
    head = found["L1H3"]
    assert (head["layer"], head["dest"], head["src"]) == (1, "final", ["name_first", "name_last"])
    assert head["named"].tolist() == [False, False, True, True]
    np.testing.assert_array_equal(head["share"], [np.nan, 0.0, 0.4, 0.5])  # step 0: no gap
    assert found["L2 MLP"]["dest"] == "final" and found["L2 MLP"]["share"][3] == 0.25


def test_a_mechanisms_curve_is_the_loss_without_all_heads_at_its_place(
    table, curves, formed, attention
):
    data = overview.mechanisms_of(table, curves, formed, attention, ENDS)
    cause = data["curves"]["extraction"]["cause"]
    np.testing.assert_allclose(cause["mean"], [np.nan, 0.1, 0.6, 0.7])
    np.testing.assert_allclose(cause["low"], [np.nan, 0.0, 0.5, 0.6], atol=1e-12)
    score = data["curves"]["extraction"]["score"]
    # five facts with standard deviation 0.0707: t(4) × 0.0707 ÷ √5
    assert score["mean"][2] == pytest.approx(0.8)
    assert score["high"][2] - 0.8 == pytest.approx(2.776445 * 0.0707107 / 5**0.5, rel=1e-5)
    assert data["curves"]["name attention"] == {"cause": None, "score": None}
    assert data["times"]["extraction"] == {
        "score": {"onset": 110, "midpoint": 150, "completion": 190, "low": 140, "high": 171,
                  "spacing": 1}
    }  # fmt: skip
    assert data["attention"]["of"]["L1H3"]["final ← names"]["mean"][3] == pytest.approx(0.6)
    assert list(data["attention"]["of"]["L1H3"]) == ["final ← names"]


def test_the_sentences_name_who_does_what_since_when_and_how_sure(table, curves, formed, attention):
    found = Localization(
        {"attention": attention}, table, curves, formed,
        {"in place": SimpleNamespace(labels=("extraction: in place", "relation: in place"),
                                     share=0.83, significant=False)},
        None, pd.DataFrame(), {},
    )  # fmt: skip
    metrics = pd.DataFrame({
        "step": [0, 300, 0, 300], "split": ["train", "train", "held-out", "held-out"],
        "attribute": "average", "accuracy": [0.01, 0.925, 0.01, 0.04],
    })  # fmt: skip
    suite = SimpleNamespace(config=replace(TrainConfig(), n_people=1280, n_evaluated=300))
    knowledge, names, memory, extraction, sure = sentences(
        suite, metrics, Phases(50.0, 120.0), found
    )
    assert knowledge == (
        "Knowledge: at step 300 the model says 92.5% of the values of people it was trained on "
        "(n = 300), and 4.0% of those of people it never met (n = 300); on the plateau from step "
        "50 to 120 it knows only how frequent each value is."
    )
    assert names.startswith("Name attention: no head was shown to carry parts of a name")
    assert memory == (
        "Memory: the MLP of layer 2 (answer position: 25% [15%, 35%] lost without it) writes the "
        "value, which can't be read before; without all MLPs there 90% [80%, 100%] of recall is "
        "lost; for how well the value can be read there is no half-way step (it does not level "
        "off); the MLP of layer 2 passes the test at every checkpoint from step 300 on."
    )
    assert extraction == (
        "Extraction: head L1H3 (names → answer: 50% [40%, 60%] lost without it) carries what is "
        "known about the name to the position that answers; without all heads there 70% [60%, 80%] "
        "of recall is lost; the attention of head L1H3 was half-way at about step 150 [140, 171], "
        "between checkpoints 1 steps apart; head L1H3 passes the test at every checkpoint from "
        "step 200 on."
    )
    rare = replace(found, formed=formed.assign(resolution_midpoint=("curve", [100.0] * 3)))
    said = sentences(suite, metrics, Phases(50.0, 120.0), rare)[3]
    assert "half-way at about step 150, between checkpoints 100 steps apart" in said
    assert "n = 5 facts at 4 checkpoints" in sure and "not significant" in sure and "83%" in sure


def test_maps_are_the_shares_and_intervals_of_the_results():
    result = sweep(np.array([[0.2, 0.9, -0.3], [0.0, 1.2, 0.5]]), {0: 0.0, 5: 6.0})
    data = patching_of({"attn_out": result})
    expected = interval(result)
    of = data["values"]["denoising"]["logit_diff"]
    assert data["attributes"] == ["all", "major", "company"] and of["all"]["n"] == 40
    assert data["sites"]["attn_out"]["rows"] == ["layer 0", "layer 1"]
    for name, ours in (("estimate", "mean"), ("low", "low"), ("high", "high")):
        last = expected[name].sel(step=5).transpose("layer", "role").values
        # float32: isel may add the facts up in another order
        np.testing.assert_allclose(of["all"]["attn_out"][ours][1], last, rtol=1e-5)
    assert np.isnan(of["all"]["attn_out"]["mean"][0]).all(), "at step 0 the runs are alike"
    assert of["all"]["attn_out"]["apart"].tolist() == [False, True]
    half = interval(result.isel(fact=np.arange(0, 40, 2))).estimate.sel(step=5).values
    np.testing.assert_allclose(of["major"]["attn_out"]["mean"][1], half, rtol=1e-5)
    assert of["major"]["n"] == 20


def test_n_of_a_cell_is_that_of_the_facts_that_have_it():
    result = sweep(np.array([[0.2, 0.9, -0.3]]), {5: 6.0})
    result["patched"][:, :, 1, :28] = np.nan  # (step, layer, role, fact)
    found = patching_of({"attn_out": result})["values"]["denoising"]["logit_diff"]["all"]
    assert found["attn_out"]["n"].tolist() == [[40, 12, 40]] and found["n"] == 40


def test_an_attribute_without_corrupted_answers_is_left_out():
    result = sweep(np.array([[0.2, 0.9, -0.3]]), {5: 6.0})
    result["corrupted"][:, result.attribute.values == "major"] = np.nan
    data = patching_of({"attn_out": result})
    assert data["attributes"] == ["all"]
    assert list(data["values"]["denoising"]["logit_diff"]) == ["all", "company"]


def test_no_mechanism_crowds_out_another(curves, formed, attention, table):
    many = [
        of_component("extraction", f"L0H{i}", "final ← names", "head", [0.9] * 4, [True] * 4)
        for i in range(30)
    ]
    crowded = pd.concat([*many, table], ignore_index=True)
    data = overview.mechanisms_of(crowded, curves, formed, attention, ENDS)
    of = [x["mechanism"] for x in data["components"]]
    assert of.count("extraction") == overview.MOST_COMPONENTS and of.count("memory") == 1


def test_noising_beside_denoising_shows_what_is_lost():
    shares = np.array([[0.2, 0.9, -0.3], [0.0, 1.2, 0.5]])
    ways = {x: {"attn_out": sweep(shares, {5: 6.0}, direction=x)} for x in ("denoising", "noising")}
    data = patching_of(ways["denoising"], ways["noising"])
    lost = data["values"]["noising"]["logit_diff"]["all"]["attn_out"]["mean"][0]
    np.testing.assert_allclose(lost, 1 - shares, atol=0.02)  # noise of 0.02 ÷ √40 in each share


def test_training_curves_keep_missing_steps_missing():
    metrics = pd.DataFrame({
        "step": [0, 10, 0, 0, 10], "split": ["train", "train", "held-out", "train", "train"],
        "attribute": ["average"] * 3 + ["major"] * 2, "loss": [4.0, 1.0, 4.5, 3.0, 0.5],
        "accuracy": [0.0, 0.7, 0.1, 0.0, 0.8], "max_probability": 0.5,
    })  # fmt: skip
    data = overview.training_of(metrics, 3.5, Phases(2.0, 6.0), {"train": 40})
    np.testing.assert_array_equal(data["splits"]["held-out"]["loss"], [4.5, np.nan])
    assert data["splits"]["train"]["n"] == 40 and data["plateau"] == [2.0, 6.0]
    np.testing.assert_array_equal(data["attributes"]["major"], [0.0, 0.8])
    none = overview.training_of(metrics, 3.5, Phases(6.0, np.nan), {})
    assert none["plateau"] is None


def test_attention_is_kept_in_256_levels():
    pattern = np.array([[[[[1.0, 0.0], [0.25, 0.75]]]]])
    data = overview.attention_of({"1: major": pattern}, {"1: major": {"tokens": ["a", "b"]}}, [7])
    assert data["prompts"][0]["patterns"] == "/wBAvw=="  # 255, 0, 64, 191


def test_every_text_on_the_page_is_escaped_and_no_number_is_nan():
    chapters = [
        PageSection(HOSTILE, HOSTILE, [Panel("lines", HOSTILE, HOSTILE)], (HOSTILE,),
                [Remark(HOSTILE, HOSTILE, HOSTILE)], [(HOSTILE, HOSTILE)])
    ]  # fmt: skip
    lines = LinePanel(HOSTILE, HOSTILE, HOSTILE, [{"name": HOSTILE, "x": np.array([np.nan, 1.0])}])
    data = Overview(HOSTILE, [0], {HOSTILE: HOSTILE}, plain={HOSTILE: lines})
    html = overview.overview_page(HOSTILE, HOSTILE, [HOSTILE], chapters, data, warnings=[HOSTILE])
    assert "<img" not in html
    stored = re.search(r"id='data'>(.*?)</script>", html, re.DOTALL)[1]
    read = json.loads(stored)
    assert read["name"] == HOSTILE and read["plain"][HOSTILE]["lines"][0]["x"] == [None, 1.0]


def test_kept_studies_are_means_over_seeds():
    lines = kept_lines()["finetuned"]
    old = next(x for x in lines.lines if x["name"] == "old people")
    table = pd.read_csv("analyses/results/laptop/finetuning.csv")
    mine = table[
        (table.kind == "new people") & (table.share == 0.125) & (table.split == "train")
        & (table.step == 50)
    ]  # fmt: skip
    at = old["x"].tolist().index(50)
    assert old["mean"][at] == pytest.approx(mine.accuracy.mean()) and len(mine) == 3
    assert old["low"][at] < old["mean"][at] < old["high"][at] and lines.n == "n = 3 models"
