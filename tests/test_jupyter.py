"""What notebooks show of objects, progress bars, and stopping."""

import io
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import wraps
from types import ModuleType

import pytest
import xarray as xr

import interp
from interp.data.facts import from_tokens
from interp.jupyter import html_table
from interp.patching import Intervention
from interp.patching.cost import plan
from interp.results import sweep
from interp.results.sweep import patch_suite


def cells_of(html):
    return re.findall(r"<t[hd](?: [^>]*)?>(.*?)</t[hd]>", html)


def test_every_text_of_a_table_is_escaped():
    html = html_table("a & <b>", [("<i>", 'x"y')], heads=("<u>",))
    assert "a &amp; &lt;b&gt;" in html
    assert cells_of(html) == ["&lt;u&gt;", "&lt;i&gt;", "x&quot;y"]
    assert not re.search("<[biu]>", html)


def test_a_suite_is_shown_as_path_checkpoints_people_shape_and_vocabulary(suite):
    html = suite._repr_html_()
    assert f"Run {suite.path}" in html
    rows = dict(zip(*[iter(cells_of(html))] * 2))
    assert rows == {
        "checkpoints": "4 checkpoints, steps 0 to 30",
        "people": "40 people trained on, 20 held out",
        "attributes": "birth_date, birth_place, university, major, company, location",
        "model": "3 layers, 4 heads, d_model 32, d_mlp 64",
        "vocabulary": f"{suite.tokenizer.get_vocab_size()} tokens",
    }
    assert repr(suite) == (
        f"Suite('{suite.path}': 4 checkpoints, steps 0 to 30; 40 people trained on, 20 held out)"
    )
    alone = replace(suite, folders={20: suite.folders[20]})
    assert "1 checkpoint, at step 20" in repr(alone)


def test_facts_are_shown_as_counts_and_the_first_prompts_with_their_twins(facts):
    cells = cells_of(facts._repr_html_())
    assert len(cells) == 5 * (1 + 5)
    for i in range(5):
        text = facts.texts.iloc[i]
        assert cells[5 * i + 5 : 5 * i + 10] == [
            *(text.attribute, text.clean_prompt, text.answer),
            *(text.corrupted_prompt, text.corrupted_answer),
        ]
    lengths = facts.lengths.tolist()
    assert repr(facts) == (
        "FactSet(12 facts: birth_date 2, birth_place 2, university 2, major 2, company 2, "
        f"location 2; prompts of {min(lengths)} to {max(lengths)} tokens)"
    )
    text = facts[3].text
    assert repr(facts[3]) == (
        f"Fact({text['clean_prompt']!r} → {text['answer']!r}; corrupted "
        f"{text['corrupted_prompt']!r} → {text['corrupted_answer']!r})"
    )
    assert f"prompt of {len(facts[3].clean)} tokens" in facts[3]._repr_html_()
    assert repr(facts[:0]) == "FactSet(0 facts)" and "0 facts." in facts[:0]._repr_html_()


def test_facts_without_twins_hostile_texts_and_long_prompts_are_shown(facts):
    own = from_tokens([[1, 2, 3]], answers=[4])
    assert repr(own) == "FactSet(1 fact; prompt of 3 tokens)"
    assert cells_of(own._repr_html_())[5:] == ["–", "1 2 3", "4", "–", "–"]
    assert repr(own[0]) == "Fact('1 2 3' → '4')"
    texts = facts.texts.assign(clean_prompt="<script>" + "x" * 200 + "end", answer="<b>")
    html = replace(facts, texts=texts)._repr_html_()
    assert "<script>" not in html and "<b>" not in html and "&lt;b&gt;" in html
    assert cells_of(html)[6] == "…" + "x" * 117 + "end"


def test_an_intervention_shows_what_is_not_the_default():
    how = Intervention(direction="noising", groups=("all",), window=3)
    assert repr(how) == "Intervention(groups=('all',), direction='noising', window=3)"
    assert eval(repr(how)) == how and repr(Intervention()) == "Intervention()"
    html = how._repr_html_()
    assert "clean run ← corrupted activation, 3 layers together" in html
    assert cells_of(html)[-2:] == ["window", "3"]
    assert cells_of(Intervention()._repr_html_()) == []


def test_cost_estimates_are_a_table(suite, facts):
    plans = plan(suite.shape, facts, sites=["z", "mlp_out"])
    table = plans.to_dataframe().set_index("site")
    assert table.cells.to_dict() == {"z": 3 * 4 * 6, "mlp_out": 3 * 6}
    assert table.tflop["z"] == plans[0].flops / 1e12 and table.pairs["z"] == plans[0].n_items
    assert table.megabytes["z"] == plans[0].megabytes and (table.facts == 12).all()
    cells = cells_of(plans._repr_html_())
    assert len(cells) == 7 * 3 and cells[7:9] == ["z", "72"] and cells[14] == "mlp_out"
    assert cells_of(plans[0]._repr_html_()) == cells[:14]
    assert repr(plans[0]) == f"Plan({plans[0]})"


def test_what_is_shown_is_short_and_holds_no_tensors(suite, facts):
    shown = [suite, facts, facts[0], Intervention(), plan(suite.shape, facts, sites=["z"])]
    for x in shown:
        assert len(repr(x)) < 300 and "\n" not in repr(x) and "tensor" not in repr(x)
        assert len(x._repr_html_()) < 5000 and "tensor" not in x._repr_html_()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_progress_bar(suite, facts, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    patch_suite(suite, facts[:2], sites=["mlp_out"], steps=[0, 30])
    assert "patching mlp_out" in sys.stderr.getvalue() and "2/2" in sys.stderr.getvalue()


def test_a_caller_that_shows_progress_itself_gets_no_second_bar(suite, facts, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    done = []
    patch_suite(suite, facts[:2], sites=["mlp_out"], steps=[0, 30], on_step=done.append)
    assert done == [1, 2] and sys.stderr.getvalue() == ""


def test_a_log_file_gets_no_bar_and_a_notebook_one_as_text(suite, facts, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    patch_suite(suite, facts[:2], sites=["mlp_out"], steps=[0, 30])
    assert sys.stderr.getvalue() == ""
    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", ModuleType("zmqshell"))
    patch_suite(suite, facts[:2], sites=["mlp_out"], steps=[0, 30])
    assert "2/2" in sys.stderr.getvalue()


KERNEL = """
import sys, types
shell = types.ModuleType("IPython")
shell.get_ipython = lambda: None
sys.modules |= {"IPython": shell, "ipykernel.zmqshell": types.ModuleType("zmqshell")}
sys.modules |= {"ipywidgets": None, "IPython.html.widgets": None}  # not installed
"""


@pytest.mark.parametrize(("first", "warns"), [("import interp", False), ("", True)])
def test_a_notebook_without_ipywidgets_gets_no_warning_from_importing_interp(first, warns):
    code = f"{KERNEL}\n{first}\nimport tqdm.auto"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ("IProgress not found" in done.stderr) is warns
    assert done.stderr == "" or warns


def stopping_at(monkeypatch, stop):
    """Patching that is interrupted at a step; returns the steps that were patched."""
    patched, original = [], sweep._patch_one

    @wraps(original)
    def until(suite, step, sites, **options):
        if step == stop and stop not in patched:
            patched.append(stop)
            raise KeyboardInterrupt
        patched.append(step)
        return original(suite, step, sites, **options)

    monkeypatch.setattr(sweep, "_patch_one", until)
    return patched


def test_an_interrupt_keeps_what_is_finished_and_says_how_to_go_on(
    suite, facts, tmp_path, monkeypatch
):
    patched = stopping_at(monkeypatch, 20)
    with pytest.raises(KeyboardInterrupt) as stopped:
        patch_suite(suite, facts[:2], sites=["z"], out=tmp_path)
    assert str(stopped.value) == (
        f"stopped with 2 of 4 checkpoints done, they are in {tmp_path}; run the same again to go on"
    )
    assert len(list(tmp_path.glob("step-*.nc"))) == 2
    tree = patch_suite(suite, facts[:2], sites=["z"], out=tmp_path)
    assert tree["z"].step.values.tolist() == suite.steps
    assert patched == [0, 10, 20, 20, 30]  # what was finished is not computed again


def test_an_interrupt_without_a_folder_says_that_nothing_is_kept(suite, facts, monkeypatch):
    stopping_at(monkeypatch, 10)
    with pytest.raises(KeyboardInterrupt, match=r"1 of 4 .* not kept; give out=FOLDER to keep"):
        patch_suite(suite, facts[:2], sites=["z"])


def test_results_can_be_selected_and_become_tables(suite, facts):
    tree = interp.patch_suite(suite, facts, sites=["z"], steps=[0, 30])
    at_last = tree["z"].sel(step=30, layer=1, role="final")
    assert at_last.patched.dims == ("head", "fact")
    table = interp.interval(tree["z"]).to_dataframe()
    assert list(table.columns)[-3:] == ["estimate", "low", "high"]
    place = {"step": 30, "layer": 1, "head": 2, "role": "final"}
    mine = table.estimate.xs(tuple(place.values()), level=list(place)).item()
    assert mine == pytest.approx(float(interp.recovered(tree["z"]).sel(place)), nan_ok=True)
    effects = interp.effect(tree["z"]).to_dataframe()
    assert len(effects) == 2 * 3 * 4 * 6 * 12 and "attribute" in effects
    assert isinstance(tree, xr.DataTree)


def test_localization_lists_functions_not_modules():
    module = interp.localization
    assert dir(module) == module.__all__ == sorted(module.__all__)
    for name in module.__all__:
        assert callable(getattr(module, name)) and getattr(module, name).__doc__
    for name in ("needs", "mechanisms", "attention", "direct_attribution", "probe"):
        assert name in module.__all__ and name in module.__doc__.replace("``", " ").split()


def test_waiting_threads_spin_briefly_unless_the_user_says_otherwise():
    code = "import interp, os; print(os.environ['GOMP_SPINCOUNT'])"
    for given, expected in (({}, "5000"), ({"GOMP_SPINCOUNT": "7"}, "7")):
        own = {name: x for name, x in os.environ.items() if name != "GOMP_SPINCOUNT"} | given
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=own)
        assert done.stdout.strip() == expected
