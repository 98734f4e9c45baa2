"""The localization of a run, on one that has learnt nothing, and its page."""

import json
import re
import shutil
import sys
from dataclasses import replace
from functools import wraps

import jaxtyping
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from oracle import random_model

import interp
from analyses import interp_analyse as cli
from analyses.localization import LocalizationConfig, in_depth, questions, sections, tables
from analyses.localization.localize_run import report, run
from interp.data.facts import PROMPT_ROLES
from interp.data.sentences import numbers_of, training_sentences, write_sentences
from interp.localization.attention_to_names import attention
from interp.localization.checkpoint_answers import QUESTIONS, checkpoint_answers
from interp.localization.component_ablation import needs
from interp.localization.formation import borderline_components, find, leaders, named_components
from interp.localization.logit_attribution import copying, direct_attribution
from interp.localization.neurons import written
from interp.localization.probes import last_of_roles, probe, read_off, stream
from interp.results import localize as localized


@pytest.fixture(scope="module")
def copy(suite, tmp_path_factory):
    return shutil.copytree(suite.path, tmp_path_factory.mktemp("localized") / "run")


@pytest.fixture(scope="module")
def asked(copy):
    return LocalizationConfig(str(copy), facts=16, people=40, workers=1, device="cpu")


@pytest.fixture(scope="module")
def found(asked):
    with pytest.MonkeyPatch.context() as smaller:
        smaller.setattr(in_depth, "N_IN_DEPTH", 24)
        return run(asked)


def test_every_checkpoint_is_asked_every_question_and_once(asked, found, copy, monkeypatch):
    suite, result = found
    for question in QUESTIONS:
        assert result.answers[question].step.values.tolist() == suite.steps
    files = sorted((copy / "results" / "localization").glob("*.nc"))
    assert len(files) == len(QUESTIONS) * len(suite.steps) + len(result.depth)
    for module, name in ((localized, "_of_step"), (in_depth, "answer")):

        @wraps(getattr(module, name))
        def again(*_, **__):
            pytest.fail("computed again")

        monkeypatch.setattr(module, name, again)
    same = run(asked)[1]
    pd.testing.assert_frame_equal(same.mechanisms, result.mechanisms)
    xr.testing.assert_equal(same.depth["value"], result.depth["value"])


def test_a_run_that_has_learnt_nothing_implements_nothing_and_has_no_times(found):
    _, result = found
    assert not result.mechanisms.named.any() and leaders(result.mechanisms).empty
    attributes, last = {*result.answers["needs"].attribute.values}, result.steps[-1]
    for step, of_step in result.mechanisms.groupby("step"):
        assert {*of_step.attribute} == ({"all"} | attributes if step == last else {"all"})
    assert result.curves.curve.values.tolist() == ["gap"]
    assert set(result.depth) == {
        "severed",
        "parts",
        "copying",
        "value",
    }  # no memory and no extraction head
    often = find(over_and_over(result.answers), np.nan)
    assert not often.formed.emerged.any() and often.orders == {}


def over_and_over(answers):
    """The same four checkpoints three times."""
    whole = {}
    for name, answer in answers.items():
        answer = xr.concat([answer] * 3, "step").assign_coords(step=np.arange(12) * 10)
        whole[name] = answer.assign_attrs(answers[name].attrs)
    return whole


@pytest.fixture(scope="module")
def planted(found):
    """L1H2 extracts, needed for half of the gap from the start; the MLP of layer 2 is a memory at
    final, needed for 0.8 of it from step 60 on. Nobody else does anything but noise.
    """
    answers = over_and_over(found[1].answers)
    needed, rng = answers["needs"], np.random.default_rng(0)
    for name in ("effect", "control", "clean"):
        needed[name] = needed[name] * 0 + rng.normal(0, 0.1, needed[name].shape)
    needed["corrupted"] = needed.corrupted * 0
    needed["clean"] = needed.clean + 4
    late = xr.DataArray(np.arange(12) > 5, dims="step")
    who = dict(zip(("component", "role", "place", "kind"), (needed[x].values for x in (
        "component", "role", "place", "kind"))))  # fmt: skip
    extraction = (who["role"] == "extraction") & np.isin(who["component"], ("L1H2", "all heads"))
    memory = (who["role"] == "memory") & np.isin(who["component"], ("L2 MLP", "all MLPs"))
    memory &= who["place"] == "final"
    needed["effect"] = (
        needed.effect
        + 2 * xr.DataArray(extraction, dims="cell")
        + 3.2 * xr.DataArray(memory, dims="cell") * late
    ).transpose("step", "cell", "fact")
    gain = answers["readings"].gain * 0
    gain.loc[{"layer": 2, "role": "final"}] = late.astype(float)
    answers["readings"]["gain"] = gain
    return answers


def test_planted_components_have_their_mechanisms_curves_and_times(planted):
    result = find(planted, 52.0)
    led = leaders(result.mechanisms)
    assert led.component.to_dict() == {"memory": "L2 MLP", "extraction": "L1H2"}
    curves = result.curves.mean("fact")
    assert curves.curve.values.tolist() == [
        "gap", "memory: needed", "memory: in place", "extraction: needed", "extraction: in place",
    ]  # fmt: skip
    np.testing.assert_allclose(curves.sel(curve="gap"), 4, atol=0.05)
    risen = np.where(np.arange(12) > 5, 0.8, 0.0)
    np.testing.assert_allclose(curves.sel(curve="memory: needed"), risen, atol=0.02)
    np.testing.assert_allclose(curves.sel(curve="extraction: needed"), 0.5, atol=0.02)
    pattern = planted["attention"].pattern.sel(edge="final ← names").isel(layer=1, head=2)
    mine = curves.sel(curve="extraction: in place")
    np.testing.assert_allclose(mine, pattern.mean("fact"), atol=1e-6)
    formed = result.formed.sel(curve="memory: needed")
    assert bool(formed.emerged) and float(formed.midpoint) == pytest.approx(55, abs=1)
    assert not bool(result.formed.emerged.sel(curve="extraction: needed"))  # from the start
    assert "needed" not in result.orders  # of one alone there is none
    lag = result.lags.sel(curve="memory: needed")
    assert float(lag.lag) == pytest.approx(3, abs=1) and not bool(lag.resolved)  # 50 to 60
    assert find(planted, np.nan).lags is None


def test_a_localization_is_a_table_of_components_and_of_times(planted):
    result = find(planted, 52.0)
    table = result.to_dataframe()
    assert table.mechanism.tolist() == ["memory", "extraction"]
    assert table.component.tolist() == ["L2 MLP", "L1H2"] and table.since.tolist() == [60, 0]
    np.testing.assert_allclose(table.share, [0.8, 0.5], atol=0.02)
    assert ((table.low < table.share) & (table.share < table.high)).all()
    html, n = result._repr_html_(), result.curves.sizes["fact"]
    assert f"12 checkpoints, steps 0 to 110, {n} facts. Components" in html
    row = table.iloc[0]
    cells = ["memory", "L2 MLP", "final", f"{row.share:.2f} [{row.low:.2f}, {row.high:.2f}]", "60"]
    assert cells in [re.findall("<t[hd] [^>]*>(.*?)<", x) for x in html.split("<tr>")]
    midpoint = float(result.formed.midpoint.sel(curve="memory: needed"))
    assert f">{midpoint:.0f} [" in html and "no step: " in html
    assert repr(result) == (
        f"Localization(12 checkpoints, steps 0 to 110, {n} facts; memory: L2 MLP; extraction: L1H2)"
    )
    formed = result.formed.to_dataframe()
    assert formed.loc["memory: needed", "midpoint"] == midpoint


def test_a_component_is_there_since_the_last_checkpoint_at_which_it_was_not_named():
    steps = [0, 10, 20, 30, 40]
    named = {"A": [1, 1, 0, 1, 1], "B": [0, 0, 0, 0, 1], "C": [1, 1, 1, 1, 0], "D": [1] * 5}
    rows = [
        {"step": step, "attribute": of, "component": x, "mechanism": "memory", "place": "final",
         "named": bool(is_named), "share": ord(x), "low": 0, "high": 1, "control": 0, "p": 0,
         "stability": 1, "borderline": x == "C" and not is_named}
        for x, all_named in named.items()
        for step, is_named in zip(steps, all_named)
        for of in ("all", "major")
    ]  # fmt: skip
    table = named_components(pd.DataFrame(rows).sample(frac=1, random_state=0))
    assert table.set_index("component").since.to_dict() == {"D": 0, "B": 40, "A": 30}
    assert table.component.tolist() == ["D", "B", "A"]  # the largest share first
    assert borderline_components(pd.DataFrame(rows)).component.tolist() == ["C"]


def test_the_command_prints_who_has_which_role_and_what_is_borderline(found, planted):
    result = find(planted, 52.0)
    table = result.mechanisms.copy()
    last = (table.step == table.step.max()) & (table.attribute == "all")
    chosen = last & (table.component == "L1H2") & (table.mechanism == "extraction")
    assert chosen.sum() == 1 and table[chosen].named.all()
    said = tables.roles_text(result)
    heads, *rows = said.splitlines()
    assert heads.split() == [
        "mechanism", "component", "place", "share", "low", "high", "stability", "since"
    ]  # fmt: skip
    (row,) = [x for x in rows if " L1H2 " in x and "extraction" in x]
    assert " 0.5 " in f"{row} " or " 0.50 " in f"{row} "
    assert "Borderline" not in said
    table.loc[chosen, ["named", "borderline", "share", "stability"]] = [False, True, 0.05, 0.584]
    said = tables.roles_text(replace(result, mechanisms=table))
    begins = "\nBorderline, with a threshold inside an interval: L1H2 at final ← names (extraction)"
    assert f"{begins} 0.05 " in said and "readable" not in said
    assert said.endswith("in 58% of resamples.")
    lead = tables.lead(replace(result, mechanisms=table))[0].text
    assert "in 58% of resamples" in lead
    memory = last & (table.component == "L2 MLP") & (table.mechanism == "memory") & table.named
    assert memory.sum() == 1
    gains = ["gain", "gain_low", "gain_high"]
    table.loc[memory, ["named", "borderline", *gains]] = [False, True, 0.07, 0.04, 0.1]
    said = tables.roles_text(replace(result, mechanisms=table))
    assert "(readable gain 0.07 [0.04, 0.10]), in " in said
    assert tables.roles_text(found[1]) == "no component"


def test_few_checkpoints_and_no_components_are_said(found):
    _, result = found
    assert "Fewer than 8 checkpoints: too few to say when" in result._repr_html_()
    assert "<th>no component</th>" in result._repr_html_().replace(' style="text-align: left"', "")
    assert repr(result).endswith("facts; no component)") and result.to_dataframe().empty


def test_a_mechanism_whose_tokens_no_prompt_has_is_said_and_not_drawn(found):
    _, result = found
    table = result.mechanisms
    without = replace(result, mechanisms=table[table.mechanism != "name attention"])
    (block,) = sections.needs(without, "name attention")
    assert block.text.endswith("No prompt here has a name of several tokens.")
    assert [block.text for block in sections.needs(result, "memory")[1:]] == [
        "No component is named at any step."  # of a run that has learnt nothing
    ]


def test_localize_needs_a_suite_alone_and_shares_results_with_the_analysis(
    asked, found, copy, monkeypatch
):
    suite, result = found
    with monkeypatch.context() as fewer:
        fewer.setattr(localized, "N_FACTS", 16)
        fewer.setattr(localized, "N_PEOPLE", 6)
        alone = interp.localize(suite, steps=[0, 30], out=copy / "alone")
    assert alone.steps == [0, 30] and alone.curves.sizes["fact"] == 16 * 6
    assert alone.depth == {} and len(list((copy / "alone").glob("*.nc"))) == 2 * len(QUESTIONS)

    @wraps(localized._of_step)
    def again(*_, **__):
        pytest.fail("computed again")

    monkeypatch.setattr(localized, "_of_step", again)
    facts, people = (suite.facts(n * 6, seed=0) for n in (16, 40))
    done = []
    same = interp.localize(suite, facts, people=people, on_step=done.append)
    pd.testing.assert_frame_equal(same.mechanisms, result.mechanisms)
    assert done == [len(suite.steps)]
    with pytest.raises(ValueError, match="steps is empty; choose some of 0, 10, 20, 30"):
        interp.localize(suite, facts, steps=[])
    with pytest.raises(ValueError, match="the facts are of another vocabulary than"):
        interp.localize(suite, facts, people=replace(people, vocabulary="another"))


def test_shares_of_a_gap_that_is_hardly_there_are_not_followed(planted):
    few = {name: answer.copy(deep=True) for name, answer in planted.items()}
    few["needs"]["clean"][:3] -= 3.98  # of 96 facts, 2 standard errors
    curves = find(few, np.nan).curves
    there = curves.sel(curve="memory: needed").notnull().all("fact")
    assert there.values.tolist() == [False] * 3 + [True] * 9


def test_answers_are_those_of_single_checkpoints(found, asked):
    suite, result = found
    facts = suite.facts(16 * 6)
    alone = checkpoint_answers(suite.load(20), facts, facts, questions=["needs", "attention"])
    mine = result.answers["needs"].sel(step=20)
    np.testing.assert_allclose(mine.effect, alone["needs"].effect, atol=1e-5)
    np.testing.assert_allclose(
        result.answers["attention"].pattern.sel(step=20), alone["attention"].pattern, atol=1e-6
    )
    with pytest.raises(ValueError, match="no question 'nonsense'; there are needs, readings"):
        checkpoint_answers(suite.load(20), facts, facts, questions=["nonsense"])


def test_the_page_leads_with_the_components_and_says_what_it_cannot(found):
    suite, result = found
    html = report(suite, result, "interp-analyse localization --x <y>")
    assert html == report(suite, result, "interp-analyse localization --x <y>")
    assert html.count("<td>no component</td>") == 4 and "there is nothing to time" in html
    assert "no extraction head" in html and "No MLP is a memory" in html
    assert "--x &lt;y&gt;" in html and "<y>" not in html.split("</script>", 1)[1]
    for name in ("readable", "direct", "parts"):
        assert f'id="figure-{name}"' in html
    assert html.count("No component is named at any step.") == 4  # in place of empty figures
    assert 'id="figure-mechanisms-' not in html and 'id="figure-attributes-' not in html


def test_the_page_of_a_run_that_knows_facts_times_mechanisms_and_shows_the_evidence(found, planted):
    suite, untrained = found
    result = find(planted, 52.0)
    leading = leaders(result.mechanisms)[["component", "place"]].to_dict("index")
    asked = {x.name: x for x in questions.asked_in_depth(leading, has_people=True)}
    assert list(asked) == [x.name for x in questions.QUESTIONS if x.compute]
    with pytest.MonkeyPatch.context() as smaller:
        smaller.setattr(in_depth, "N_EDITED", 6)
        smaller.setattr(in_depth, "N_IN_DEPTH", 24)
        options = {"facts": suite.facts(96), "leading": leading, "seed": 0, "max_memory": 1.0}
        new = {}
        for name in ("neurons", "edits", "feeds"):
            how = options | {"compute": asked[name].compute, "device": "cpu"}
            new |= in_depth.answer(suite, 30, [name], **how)
    assert new["edits"].edited.values.tolist() == ["L2 MLP at final", "L0 MLP at name_middle"]
    assert new["neurons"].effect.dims == ("layer", "neuron", "fact")
    assert new["neurons"].effect.sizes["layer"] == 3
    whole = replace(result, depth=untrained.depth | new)
    html = report(suite, whole, "")
    assert 'id="figure-timeline"' in html and "<td>+3 [" in html
    assert "between the same checkpoints" in html  # 52 and 55, of 50 and 60
    assert "<b>L1H2</b> at final ← names: 0.50 [" in html
    assert 'id="figure-mechanisms-memory"' in html and 'id="figure-attributes-memory"' in html
    assert "Which MLPs feed L1H2" in html and "L2 MLP at final, random key" in html


ASKED = {
    "needs": needs,
    "read_off": read_off,
    "probe": probe,
    "checkpoint_answers": lambda model, facts: checkpoint_answers(model, facts, facts),
    "attention": attention,
    "direct_attribution": direct_attribution,
    "copying": copying,
    "written": lambda model, facts: written(model, facts, layer=0),
}
ABOUT_NAMES = ("needs", "read_off", "probe", "checkpoint_answers")


@pytest.mark.parametrize("name", ASKED)
def test_parallel_blocks_can_be_asked_every_question(suite, name):
    parallel, facts = random_model(suite, parallel=True).float(), suite.facts(96, seed=3)
    answer = ASKED[name](parallel, facts)
    if name == "direct_attribution":
        parts = answer.embed + answer["head"].sum(("layer", "head")) + answer.constant
        parts = parts + (answer.attn_bias + answer.mlp).sum("layer")
        np.testing.assert_allclose(parts, answer.logit_diff, atol=1e-3)


def test_the_middle_of_a_parallel_block_is_all_but_what_its_mlp_adds(suite, facts):
    model = random_model(suite, parallel=True)
    whole, at = stream(model, facts), last_of_roles(facts)[-1]
    with torch.no_grad():
        _, cache = model.run_with_cache(facts.clean)
    for layer in range(3):
        added = cache[f"blocks.{layer}.hook_mlp_out"][torch.arange(len(facts)), at]
        np.testing.assert_allclose(whole[layer, 2, -1] - whole[layer, 1, -1], added, atol=1e-12)
        assert np.abs(whole[layer, 1, -1] - whole[layer, 0, -1]).max() > 0.1


@pytest.mark.parametrize("name", ASKED)
def test_what_is_no_hooked_decoder_is_refused(facts, name, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as without tests
    with pytest.raises(ValueError, match="got a Linear; its weights can be read only of a Hooked"):
        ASKED[name](torch.nn.Linear(2, 2), facts)


@pytest.mark.parametrize("name", ASKED)
def test_facts_that_a_question_cannot_use_are_refused(model, facts, name):
    without_names = facts.roles.clone()
    without_names[facts.roles.ge(2) & facts.roles.le(4)] = 5
    refused = {
        "there are no facts": facts[:0],
        "have no corrupted twins": replace(facts, corrupted=None, corrupted_answers=None),
        "have the roles bos, cue, final": replace(facts, roles=without_names),
        "of the facts are on '.*' and have one value": facts[:1],
        "has token id 99999 among its clean": replace(
            facts, clean=torch.where(facts.clean > 0, 99999, 0)
        ),
    }
    needs_them = {
        "have no corrupted twins": ("needs", "checkpoint_answers", "direct_attribution", "written"),
        "have the roles bos, cue, final": (*ABOUT_NAMES, "attention"),
        "of the facts are on '.*' and have one value": ("read_off", "probe"),
    }
    for message, given in refused.items():
        if name in needs_them.get(message, ASKED):
            with pytest.raises(ValueError, match=message) as error:
                ASKED[name](model, given)
            assert "\n" not in str(error.value)


def test_a_probe_is_fitted_where_two_facts_have_the_part_of_a_name(model, suite):
    facts = suite.facts(6, attribute="major")
    roles = facts.roles.clone()
    middle = PROMPT_ROLES.index("name_middle")
    roles[1:][roles[1:] == middle] = PROMPT_ROLES.index("cue")  # one fact alone keeps its own
    whole, found = (probe(model, replace(facts, roles=x)).correct for x in (facts.roles, roles))
    others = ["name_first", "name_last", "final"]
    xr.testing.assert_equal(found.sel(role=others), whole.sel(role=others))
    assert found.sel(role="name_middle").isnull().all() and whole.notnull().all()
    roles[3:][roles[3:] == PROMPT_ROLES.index("name_first")] = PROMPT_ROLES.index("cue")
    fewer = probe(model, replace(facts, roles=roles)).correct.sel(role="name_first", drop=True)
    alone = probe(model, facts[:3]).correct.sel(role="name_first", drop=True)
    assert fewer[..., 3:].isnull().all()
    np.testing.assert_array_equal(fewer.sel(labels="real")[..., :3], alone.sel(labels="real"))


@pytest.mark.parametrize(
    ("people", "attributes", "templates", "message"),
    [
        ([-1], [0], [0], "person -1 is not one of the 60; give 0 to 59"),
        ([0], [6], [0], "attribute 6 is not one of the 6"),
        ([0], [0], [25], "template 25 is not one of the 25"),
        ([], [], [], "got 0 persons, 0 attributes, 0 templates; give one of each"),
    ],
)
def test_sentences_of_nobody_are_refused(suite, people, attributes, templates, message):
    given = (np.array(x, int) for x in (people, attributes, templates))
    with pytest.raises(ValueError, match=message):
        write_sentences(suite.texts, *given)


def test_more_sentences_than_people_are_trained_in_are_refused(suite):
    with pytest.raises(ValueError, match="asked for 21 training sentences a fact; there are at"):
        training_sentences(suite.texts, np.array([0]), np.array([0]), 21)
    with pytest.raises(ValueError, match="no attribute 'shoe size'; there are birth_date"):
        numbers_of(suite.texts, pd.Series(["major", "shoe size"]))


@pytest.mark.parametrize("name", ["run.json", "population.parquet", "results/localization/new.nc"])
def test_the_report_is_not_written_over_a_file_of_the_run(copy, name, monkeypatch, capsys):
    before = (copy / "run.json").read_bytes()
    words = ["localization", "--ckpt", str(copy), "--report", f"{copy}/./{name}"]
    monkeypatch.setattr(sys, "argv", ["interp-analyse", *words])
    with pytest.raises(SystemExit):
        cli.analyse()
    said = capsys.readouterr().err
    assert "is no HTML file; name one, such as" in said and said.count("\n") == 1
    assert (copy / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"facts": 1}, "facts is 1; it must be at least 2"),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"attributes": ("major", "major")}, "attributes is major major; name some of"),
        ({"max_memory": 0.0}, "max_memory is 0.0; it must be positive"),
    ],
)
def test_what_cannot_be_asked_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        LocalizationConfig("x", **changes)


def test_a_run_whose_record_says_parallel_is_refused_and_one_without_metrics_is_not(
    copy, tmp_path, asked
):
    run_folder = shutil.copytree(copy, tmp_path / "run")
    (run_folder / "metrics.parquet").unlink()
    suite, result = run(replace(asked, ckpt=str(run_folder)))  # nothing is computed again
    assert "What was run" in report(suite, result, "")
    record = (run_folder / "run.json").read_text()
    record = json.loads(record.replace('"parallel": false', '"parallel": true'))
    del record["digests"]  # of the configuration as it was
    (run_folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"has parallel False, run\.json says True"):
        run(replace(asked, ckpt=str(run_folder)))


def test_the_command_writes_the_page_and_help_is_short(asked, found, monkeypatch, capsys, copy):
    monkeypatch.setattr(cli, "guarded", lambda name, command: command(sys.argv[1:]))
    words = ["localization", "--ckpt", str(copy), "--facts", "16", "--people", "40"]
    monkeypatch.setattr(sys, "argv", ["interp-analyse", *words, "--workers", "1"])
    cli.analyse()
    assert (copy / "localization.html").stat().st_size > 1e6
    monkeypatch.setattr(sys, "argv", ["interp-analyse", "--help"])
    cli.analyse()
    assert "interp-analyse localization --ckpt checkpoints/demo" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["interp-analyse", "nonsense"])
    with pytest.raises(ValueError, match="no analysis 'nonsense'; there are associative-mem"):
        cli.analyse()


def test_every_question_that_checkpoints_are_asked_is_shown():
    shown = [x.name for x in questions.QUESTIONS if not x.compute]
    assert sorted(shown) == sorted(QUESTIONS)
