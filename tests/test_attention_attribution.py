"""The analysis of attention scores: its summary, its agreement with patching, its page."""

import sys

import numpy as np
import pytest
import xarray as xr

from analyses import interp_analyse
from analyses.attention_attribution.attention_page import said
from analyses.attention_attribution.scores import agreement, needs, of_model
from analyses.checkpoints import halves
from analyses.report.stored_results import stored_lines
from interp.attribution import pattern_attribution, score_attribution, value_attribution
from interp.attribution.attention_scores import CONTRASTS
from interp.results.store import join_steps
from interp.statistics import margin

HEADS = ("L0H1", "L1H2", "L2H0", "L0H0", "L1H3")
MEASURES = {"pearson": 0, "spearman": 0, "same_sign": 0.5}


@pytest.fixture(scope="module")
def scores(model, facts):
    return score_attribution(model, facts)


@pytest.fixture(scope="module")
def found(model, facts):
    return of_model(model, facts, HEADS)


def test_the_results_are_means_and_intervals_over_facts(found, scores):
    at = {"layer": 1, "head": 2, "contrast": 2}
    terms, names = scores.terms.isel(at), {"query_part": "embed", "key_part": "L0H0"}
    clean, other = (terms.sel(prompt=x, **names) for x in ("clean", "corrupted"))
    ours = found.isel(at).sel(names)
    assert float(ours.terms) == pytest.approx(float(clean.mean()), rel=1e-5)
    assert float(ours.terms_margin) == pytest.approx(float(margin(clean.values)), rel=1e-5)
    assert float(ours.changed_terms) == pytest.approx(float(np.abs(clean - other).mean()), rel=1e-5)
    total = found.terms.sum(("query_part", "key_part"))
    np.testing.assert_allclose(total, found.score, atol=1e-4)


def test_terms_of_each_fact_are_kept_of_the_heads_that_were_asked_for(found, scores):
    for i, head in enumerate(HEADS):
        terms = scores.terms.isel(contrast=i, layer=int(head[1]), head=int(head[3])).sel(
            prompt="clean"
        )
        np.testing.assert_allclose(found.terms_of_fact.isel(contrast=i), terms, rtol=1e-5)
        assert found.leading.values[i] == head


def test_what_heads_move_adds_up_for_all_facts_and_by_attribute(found, model, facts):
    moved = value_attribution(model, facts).moved.sum(("role", "part"))
    np.testing.assert_allclose(found.wrote, moved.mean("fact"), atol=1e-5)
    some = found.moved_by_attribute.sum(("role", "part")).sel(asked="major")
    theirs = moved.isel(fact=facts.texts.attribute.to_numpy() == "major")
    np.testing.assert_allclose(some, theirs.mean("fact"), atol=1e-5)
    half = found.wrote_by_attribute_margin.sel(asked="major")
    np.testing.assert_allclose(half, margin(theirs.values), rtol=1e-4)


def test_a_head_is_needed_as_much_as_cutting_its_attention_by_a_hook_costs(model, facts):
    """And zeroing the pattern, on one fact and every head of layer 1."""
    found, fact = needs(model, facts).isel(fact=4), facts[4]
    dest, first, _ = CONTRASTS["final: names − cue"]
    rows = [i for i, role in enumerate(fact.roles) if role == dest]
    columns = [i for i, role in enumerate(fact.roles) if role in first]
    pair = int(fact.answer[0]), int(fact.corrupted_answer[0])

    def logit_diff(hooks):
        logits = model.run_with_hooks(fact.clean[None], fwd_hooks=hooks)[0, -1]
        return float(logits[pair[0]] - logits[pair[1]])

    for head in range(4):
        for name, kind, value in (("attn_scores", "needed", -np.inf), ("pattern", "zeroed", 0.0)):

            def put(x, hook, head=head, value=value):
                x = x.clone()
                for row in rows:
                    x[0, head, row, columns] = value
                return x

            lost = logit_diff([]) - logit_diff([(f"blocks.1.attn.hook_{name}", put)])
            ours = found[kind].sel(contrast="final: names − cue", layer=1, head=head)
            assert float(ours) == pytest.approx(lost, abs=2e-4)


def test_agreement_is_1_with_itself_minus_1_with_its_negative_and_0_with_noise(scores):
    patched, rng = scores.patched, np.random.default_rng(0)
    noise = patched.copy(data=np.where(patched.isnull(), np.nan, rng.normal(size=patched.shape)))
    found = agreement({"same": [patched, patched], "opposite": [-3 * patched, patched],
                       "noise": [noise, patched]})  # fmt: skip
    np.testing.assert_allclose(found.agreement.sel(pair="same"), 1)
    opposite = found.agreement.sel(pair="opposite")
    np.testing.assert_allclose(opposite.sel(measure=["pearson", "spearman"]), -1)
    np.testing.assert_allclose(opposite.sel(measure="same_sign"), 0)
    for measure, nothing in MEASURES.items():
        at = found.sel(pair="noise", contrast="final: names − cue", measure=measure)
        assert float(at.agreement_low) < nothing < float(at.agreement_high)


def test_agreement_by_hand():
    """Four parts of one head: differences of ranks 0, 1, 1, 0, one sign in four differs."""
    mean = [[4.0, 2.0, 1.0, -1.0], [3.0, 1.0, 2.0, 1e-3]]
    pair = [
        xr.DataArray(
            np.tile(np.array(x)[None, :, None], (len(CONTRASTS), 1, 2)),
            dims=("contrast", "part", "fact"),
            coords={"contrast": list(CONTRASTS), "part": list("abcd")},
        )
        for x in mean
    ]
    found = agreement({"of parts": pair}).agreement.isel(pair=0, contrast=2)
    assert float(found.sel(measure="spearman")) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert float(found.sel(measure="same_sign")) == 0.75
    assert float(found.sel(measure="pearson")) == pytest.approx(np.corrcoef(*mean)[0, 1])


def test_integrated_gradients_are_held_against_zeroed_attention(found, model, facts):
    """Summed over a contrast's first sources, by hand for one of them."""
    integrated = pattern_attribution(model, facts).attribution.sel(dest="final")
    names = integrated.sel(src=["name_first", "name_middle", "name_last"]).sum("src")
    zeroed = needs(model, facts).zeroed.sel(contrast="final: names − cue")
    pearson = np.corrcoef(names.values.ravel(), zeroed.transpose(*names.dims).values.ravel())[0, 1]
    ours = found.agreement.sel(pair="attention", contrast="final: names − cue", measure="pearson")
    assert float(ours) == pytest.approx(pearson, abs=1e-4)


def test_the_words_say_what_the_numbers_are(found):
    results = join_steps({0: found, 30: found})
    lines = said(results)
    assert len(lines) == len(CONTRASTS) + 3
    for line, contrast, head in zip(lines, CONTRASTS, HEADS):
        needed = results.needed.isel(step=-1).sel(contrast=contrast, layer=int(head[1]))
        cost = needed.isel(head=int(head[3])).values[halves(results.attribute.values)[1]]
        sure = cost.mean() > margin(cost)
        start = f"{head} is needed most (" if sure else "no head is shown to be needed; first is "
        assert line.startswith(f"{contrast}: {start}")
        assert f"{cost.mean():+.2f} ± {float(margin(cost)):.2f} nats" in line
        assert "too few checkpoints to say since when (2)" in line
    assert lines[len(CONTRASTS)].startswith("L2H0 writes ")  # the head of the third contrast


def test_the_command_writes_results_and_a_page(suite, tmp_path, monkeypatch, capsys):
    words = ["attention-attribution", "--ckpt", suite.path, "--facts", "12", "--workers", "1"]
    words += [
        "--out",
        tmp_path / "results/attention-attribution",
        "--report",
        tmp_path / "page.html",
    ]
    monkeypatch.setattr(sys, "argv", ["interp-analyse", *map(str, words)])
    interp_analyse.analyse()
    text = capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert "final: names − cue: " in text and " writes " in text and "page.html" in text
    assert (
        page.count("plotly-graph-div") == 18 and "too few checkpoints to say since when (4)" in page
    )
    assert len(list((tmp_path / "results/attention-attribution").glob("*.nc"))) == 4
    monkeypatch.setattr("analyses.attention_attribution.scores.score_attribution", None)
    interp_analyse.analyse()  # from the stored results
    assert capsys.readouterr().out == text and (tmp_path / "page.html").read_text() == page
    panel = stored_lines(suite, tmp_path / "results")["attention-attribution"]
    assert [line["name"].split(", from ")[1] for line in panel.lines] == list(CONTRASTS)
    for line in panel.lines:  # as the sentences have it, with two digits
        head = line["name"].partition(",")[0]
        assert f"{head} is needed" in text or f"first is {head}, " in text
        assert f"Its score, {line['mean'][-1]:+.2f} ± " in text
        assert (line["low"] <= line["mean"]).all() and (line["mean"] <= line["high"]).all()
