"""A suite that interp did not train, with its own tokenizer, and facts of one's own."""

import re
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from own_tokenizers import ROWS, trained, write_rows

import interp
from analyses.interp_analyse import analyse
from analyses.localization import LocalizationConfig
from analyses.report import ReportPageConfig
from analyses.report.one_page import run_and_report
from interp.cli import interp_patch
from interp.data.facts import from_tokens
from interp.localization.component_ablation import needs
from interp.results.localize import localizable
from interp.results.store import read_folder

SHAPES = {
    "gpt2": lambda n: transformers.GPT2Config(
        vocab_size=n, n_positions=64, n_embd=32, n_layer=2, n_head=4
    ),
    "gpt_neox": lambda n: transformers.GPTNeoXConfig(
        vocab_size=n, max_position_embeddings=64, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=64, use_parallel_residual=False,
    ),
}  # fmt: skip
TOKENIZERS = {"gpt2": "byte-level", "gpt_neox": "byte-level with BOS"}


@pytest.fixture(scope="module", params=SHAPES)
def folder(request, tmp_path_factory):
    """Three checkpoints of random weights, as transformers saves them, and a file of facts."""
    folder = tmp_path_factory.mktemp("others") / request.param
    tokenizer = trained(TOKENIZERS[request.param])
    for step in (0, 100, 200):
        torch.manual_seed(step)
        config = SHAPES[request.param](tokenizer.get_vocab_size())
        config.initializer_range = 0.3
        model = transformers.AutoModelForCausalLM.from_config(config)
        model.save_pretrained(folder / f"step{step}")
        tokenizer.save(str(folder / f"step{step}" / "tokenizer.json"))
    write_rows(folder.parent / "mine.csv", ROWS)
    return folder


def run(main, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [*map(str, arguments)])
    main()


def test_own_facts_are_patched_on_a_suite_of_others(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = sorted(folder.rglob("*"))
    asked = ["--ckpt", folder, "--facts-csv", folder.parent / "mine.csv", "--sites", "z"]
    run(interp_patch.main, monkeypatch, "interp-patch", *asked, "--device", "cpu")
    said, noted = capsys.readouterr()
    assert "note: " in noted and "13 facts are taken; 3 of 16 rows can't be used: row 7" in noted
    bos = "<s> first" if folder.name == "gpt_neox" else "no special token first"
    assert "facts: capital 7, language 6; prompts of " in said and bos in said
    results = read_folder(tmp_path / "results" / folder.name / "patching")
    assert results["z"].sizes["step"] == 3 and results["z"].sizes["fact"] == 13
    page = (tmp_path / "results" / folder.name / "patching.html").read_text()
    assert f"Where and when {folder.name} recalls facts" in page
    assert sorted(folder.rglob("*")) == before


def test_a_patch_of_own_facts_is_that_of_naive_hooks(folder):
    suite = interp.load_suite(folder)
    with pytest.warns(UserWarning):
        facts = suite.read_facts(folder.parent / "mine.csv")
    model = suite.load(100)
    result = interp.patch(model, facts, site="resid_pre")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / "step100").eval()
    for i, fact in enumerate(facts):
        with torch.no_grad():
            logits = theirs(fact.clean[None]).logits[0, -1]
        difference = logits[fact.answer[0]] - logits[fact.corrupted_answer[0]]
        assert float(result.clean[i]) == pytest.approx(float(difference), abs=1e-4)
    whole = interp.patch(model, facts, site="resid_pre", groups=("all",))
    np.testing.assert_allclose(whole.patched[0, 0], whole.clean, atol=1e-4)


def test_own_facts_are_localized_and_the_page_says_what_is_missing(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    asked = ["--ckpt", folder, "--facts-csv", folder.parent / "mine.csv", "--workers", 1]
    run(analyse, monkeypatch, "interp-analyse", "localization", *asked, "--device", "cpu")
    assert re.search("FactSet.*(<s>|no special token) first.\n", capsys.readouterr().out)
    page = (tmp_path / "results" / folder.name / "localization.html").read_text()
    assert f"Which components recall facts in {folder.name}" in page
    for missing in ("No linear probes: these facts are from a file", "Which part of a name is wh"):
        assert missing in page
    assert re.search("Of the [0-9]+ prompts so many have a place: name_last ← other names ", page)
    stored = {x.name.split(".")[1] for x in (tmp_path / "results").rglob("*.nc")}
    assert {"needs", "readings", "attention", "direct", "copying", "severed", "value"} <= stored
    assert not stored & {"probes", "parts", "edits"}


@pytest.fixture(scope="module")
def facts(folder):
    with pytest.warns(UserWarning):
        facts = interp.load_suite(folder).read_facts(folder.parent / "mine.csv")
    return replace(facts, texts=facts.texts.assign(attribute=""))  # any is a control of any


def test_a_prompt_without_a_place_loses_nothing_there_and_the_others_what_they_lose_alone(
    folder, facts
):
    model = interp.load_suite(folder).load(200)
    of_all = needs(model, facts)
    first = np.array(["name_first" in fact.roles for fact in facts])
    assert 4 < first.sum() < len(facts)
    alone = needs(model, facts[np.flatnonzero(first)])
    names = [of_all[x].values.tolist() for x in ("component", "role", "place")]
    assert names == [alone[x].values.tolist() for x in ("component", "role", "place")]
    np.testing.assert_allclose(of_all.effect[:, first], alone.effect, atol=1e-5)
    lacking = np.isin(of_all.place.values, ["name_first", "name_last ← other names"])
    assert (of_all.effect.values[np.ix_(lacking, ~first)] == 0).all()
    assert (of_all.control.values[np.ix_(lacking, ~first)] == 0).all()
    assert (abs(of_all.effect.values[np.ix_(~lacking, ~first)]) > 1e-4).any()
    assert set(of_all.n.values[lacking]) == {first.sum()}
    assert set(of_all.n.values[~lacking]) == {len(facts)}


def test_subjects_of_one_token_have_three_mechanisms(folder, facts):
    model = interp.load_suite(folder).load(200)
    one = np.array(["name_first" not in fact.roles for fact in facts])
    cells = needs(model, facts[np.flatnonzero(one)])
    assert set(cells.place.values) == {"name_last", "final", "final ← names", "final ← cue"}
    assert set(cells.role.values) == {"memory", "extraction", "relation"}


def test_facts_without_a_control_in_their_relation_are_left_out():
    facts = from_tokens(
        [[1, i] for i in range(6)],
        [[1, i + 10] for i in range(6)],
        answers=[1, 3, 5, 7, 5, 1],
        corrupted_answers=[2, 4, 6, 8, 6, 9],
    )
    texts = facts.texts.assign(attribute=["a", "a", "b", "c", "b", "a"])
    with pytest.warns(UserWarning, match="3 of 6 facts are left out, on 'b', 'c': no other fact"):
        kept = localizable(replace(facts, texts=texts))
    assert kept.clean[:, 1].tolist() == [0, 1, 5]  # 0 and 5 have 1 in common, but not with 1
    with pytest.raises(
        ValueError, match="none of the 2 facts has another of its relation with oth"
    ):
        localizable(replace(facts, texts=texts)[[2, 4]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--corruption", "swap-first"], "corruption is 'swap-first', which is about names of a"),
        (
            ["--attributes", "major"],
            "has no fact of the relation 'major'; it has capital, language",
        ),
        (["--facts", "0"], "n is 0"),
    ],
)
def test_options_that_need_a_population_are_refused(
    folder, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    asked = ["--ckpt", folder, "--facts-csv", folder.parent / "mine.csv", *arguments]
    with pytest.raises(SystemExit):
        run(interp_patch.main, monkeypatch, "interp-patch", *asked)
    assert message in capsys.readouterr().err


def test_people_and_a_file_of_facts_do_not_go_together(folder):
    with pytest.raises(ValueError, match="people is 64, which does nothing with facts_csv"):
        LocalizationConfig(str(folder), facts_csv="mine.csv", people=64)


def test_facts_by_position_have_one_length(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = ["--ckpt", folder / "step200", "--facts-csv", folder.parent / "mine.csv"]
    asked += ["--by", "pos", "--sites", "resid_pre", "--attributes", "capital", "--facts", 5]
    run(interp_patch.main, monkeypatch, "interp-patch", *asked, "--device", "cpu")
    assert "by position: the " in capsys.readouterr().out
    (results,) = [read_folder(path.parent) for path in (tmp_path / "results").rglob("*.nc")]
    assert set(results["resid_pre"].attribute.values) == {"capital"}


def test_token_ids_need_no_tokenizer(folder, tmp_path):
    bare = shutil.copytree(folder, tmp_path / "bare", ignore=lambda *_: ["tokenizer.json"])
    suite = interp.load_suite(bare)
    own = from_tokens(
        [[1, 40, 50, 60], [1, 41, 51, 61]],
        [[1, 42, 50, 60], [1, 43, 51, 61]],
        answers=[70, 71],
        corrupted_answers=[72, 73],
        roles=["start", "who", "verb", "end"],
    )
    result = interp.patch(suite.load(0), own, site="resid_pre")
    np.testing.assert_allclose(result.patched.sel(layer=0, role="who"), result.clean, atol=1e-5)
    tree = interp.patch_suite(suite, own, sites=["z"], out=tmp_path / "out")
    assert tree["z"].sizes["step"] == 3
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        suite.read_facts(folder.parent / "mine.csv")


def test_the_page_of_a_run_is_of_runs_only(folder):
    with pytest.raises(ValueError, match="is not a run of interp-train, which this page is about"):
        run_and_report(ReportPageConfig(str(folder)), command="", bar=None)
