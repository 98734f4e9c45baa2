"""The analysis of attention scores: its summary, its agreement with patching, its page."""

import sys

import numpy as np
import pytest
import xarray as xr

from analyses import interp_analyse
from analyses.attention_attribution.scores import agreement, leading, said, summary
from interp.attribution.attention_scores import score_attribution
from interp.results.store import join_steps
from interp.statistics import margin


@pytest.fixture(scope="module")
def scores(model, facts):
    return score_attribution(model, facts)


def test_the_summary_holds_means_and_intervals_over_facts(scores):
    found = summary(scores)
    terms = scores.terms.isel(layer=1, head=2, contrast=2).sel(query_part="embed", key_part="L0H0")
    at = found.isel(layer=1, head=2, contrast=2).sel(query_part="embed", key_part="L0H0")
    assert float(at.terms) == pytest.approx(float(terms.mean()), rel=1e-5)
    assert float(at.terms_margin) == pytest.approx(float(margin(terms.values)), rel=1e-5)
    total = found.terms.sum(("query_part", "key_part"))
    np.testing.assert_allclose(total, found.score, atol=1e-4)


def test_agreement_is_1_with_itself_minus_1_with_its_negative_and_0_with_noise(scores):
    def of(estimated):
        return agreement(scores.assign(estimated=(scores.patched.dims, estimated)))

    patched, rng = scores.patched.values, np.random.default_rng(0)
    np.testing.assert_allclose(of(patched).agreement, 1)
    opposite = of(-3 * patched).agreement
    np.testing.assert_allclose(opposite.sel(measure=["pearson", "spearman"]), -1)
    np.testing.assert_allclose(opposite.sel(measure="same_sign"), 0)
    noise = of(np.where(np.isnan(patched), np.nan, rng.normal(size=patched.shape)))
    final = noise.sel(contrast="final: names − cue", side="key")
    for measure, nothing in (("pearson", 0), ("spearman", 0), ("same_sign", 0.5)):
        at = final.sel(measure=measure)
        assert float(at.agreement_low) < nothing < float(at.agreement_high)


def test_agreement_by_hand():
    """Four parts of one head: differences of ranks 0, 1, 1, 0, one sign in four differs."""
    dims = ("side", "contrast", "layer", "head", "part", "fact")
    mean = {"estimated": [4.0, 2.0, 1.0, -1.0], "patched": [3.0, 1.0, 2.0, 1e-3]}
    values = {
        name: (dims, np.tile(np.array(x)[None, None, None, None, :, None], (2, 1, 1, 1, 1, 2)))
        for name, x in mean.items()
    }
    coords = {"side": ["query", "key"], "contrast": ["c"], "part": list("abcd")}
    found = agreement(xr.Dataset(values, coords)).agreement.sel(contrast="c", side="key")
    assert float(found.sel(measure="spearman")) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert float(found.sel(measure="same_sign")) == 0.75
    assert float(found.sel(measure="pearson")) == pytest.approx(np.corrcoef(*mean.values())[0, 1])


def test_the_leading_head_is_the_one_with_the_largest_score(scores):
    found = join_steps({step: summary(scores) for step in (0, 30)})
    heads = leading(found)
    for head, text in zip(heads, said(found), strict=True):
        of_contrast = scores.score.sel(contrast=head.contrast).mean("fact")
        assert float(of_contrast[head.layer, head.head]) == float(of_contrast.max())
        assert text.startswith(f"{head.contrast}: {head.label}, score +")


def test_the_command_writes_results_and_a_page(suite, tmp_path, monkeypatch, capsys):
    words = ["attention-attribution", "--ckpt", suite.path, "--facts", "12", "--workers", "1"]
    words += ["--out", tmp_path / "out", "--report", tmp_path / "page.html"]
    monkeypatch.setattr(sys, "argv", ["interp-analyse", *map(str, words)])
    interp_analyse.analyse()
    text = capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert "final: names − cue: L" in text and "page.html" in text
    assert page.count("plotly-graph-div") == 8 and "too few checkpoints (4)" in page
    assert len(list((tmp_path / "out").glob("*.nc"))) == 4
    monkeypatch.setattr("analyses.attention_attribution.scores.score_attribution", None)
    interp_analyse.analyse()  # from the stored results
    assert capsys.readouterr().out == text and (tmp_path / "page.html").read_text() == page
