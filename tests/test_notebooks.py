"""The notebooks run from top to bottom on the demo run, and show what they say."""

import ast
import re
import shutil
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.py"))
CELL = re.compile(r"^# %%(?P<kind> \[markdown\])?\n", re.M)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder with the demo run beside an empty docs/notebooks."""
    root = tmp_path_factory.mktemp("checkout")
    (root / "docs" / "notebooks").mkdir(parents=True)
    leave = shutil.ignore_patterns("results", "resume", "*.html", ".lock")
    shutil.copytree(ROOT / "checkpoints" / "demo", root / "checkpoints" / "demo", ignore=leave)
    return root


def cells(path):
    """Of each cell of a notebook in the percent format, whether it is text, and its source."""
    _, *parts = CELL.split(path.read_text())
    return list(zip(map(bool, parts[::2]), parts[1::2]))


def run(path):
    """The names that a notebook defines, and what each cell of code shows, as Jupyter would."""
    names, shown = {}, []
    for is_text, source in cells(path):
        if is_text:
            continue
        body = ast.parse(source).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), path.name, "exec"), names)
        if last is not None:
            shown.append(eval(compile(ast.Expression(last.value), path.name, "eval"), names))
    return names, shown


@pytest.fixture(scope="module")
def first_look(checkout):
    return ran("first_look.py", checkout)


@pytest.fixture(scope="module")
def one_fact(checkout):
    return ran("one_fact.py", checkout)


def ran(name, checkout):
    with pytest.MonkeyPatch.context() as there:
        there.chdir(checkout / "docs" / "notebooks")
        return run(ROOT / "docs" / "notebooks" / name)


def test_the_first_look_has_ten_cells_and_shows_tables_and_a_figure(first_look):
    names, shown = first_look
    assert len(cells(ROOT / "docs" / "notebooks" / "first_look.py")) == 10
    suite, facts, learnt, plans, figure, shares, found, table = shown
    for rich in (suite, facts, plans, found):
        assert rich._repr_html_().startswith("<table>")
    assert isinstance(figure, go.Figure)
    assert "22 checkpoints, steps 0 to 6500" in suite._repr_html_()
    assert len(facts) == 48 and facts.texts.attribute.nunique() == 6
    assert learnt.train[0] < 0.01 and learnt.train[6500] > 0.95 and learnt["held-out"].max() < 0.1
    assert shares.estimate[3] > 0.5 > shares.estimate[0] and (shares.low < shares.high).all()
    pd.testing.assert_frame_equal(table, names["found"].to_dataframe().round(3))


def test_the_first_look_names_the_components_of_the_full_localization(first_look):
    """Those of docs/localization.md with the largest shares, from 768 facts."""
    names, _ = first_look
    named = names["found"].to_dataframe().groupby("mechanism").component.agg(set)
    assert {"L0H1", "L0H2"} <= named["name attention"] and "L3 MLP" in named["memory"]
    assert {"L1H3", "L1H2"} <= named["extraction"] and "L0H3" in named["relation"]
    assert names["found"].to_dataframe().since.isin([4000, 6500]).all()


def test_the_first_look_keeps_its_results_where_it_says(first_look, checkout):
    kept = checkout / "checkpoints" / "demo" / "results" / "first-look"
    assert len(list(kept.glob("step-*.nc"))) == 5 * len(first_look[0]["found"].steps) == 15


def test_one_fact_is_asked_in_a_sentence_that_differs_in_the_name_only(one_fact):
    names, _ = one_fact
    assert names["template"].startswith("{name} ") and names["template"].endswith(" {value}")
    assert names["name"] in names["fact"].text["clean_prompt"]
    tokens = names["tokens"]
    differs = tokens.clean != tokens.corrupted
    assert differs[tokens.role.str.startswith("name")].any()
    assert not differs[~tokens.role.str.startswith("name")].any()
    assert tokens.role.iloc[0] == "bos" and tokens.role.iloc[-1] == "final"


def test_one_fact_is_learnt_and_moves_from_the_name_to_the_last_token(one_fact):
    names, shown = one_fact
    said = names["said"]
    assert said.right[0] < 0.01 and said.right[6500] > 0.5 > said["the other person's"].max() * 2
    stream = names["stream"].values
    assert abs(stream[:, 0]).max() == 0  # nothing differs at <bos>
    assert abs(stream[0, names["tokens"].role == "cue"]).max() == 0
    assert stream[0, -1] == 0 and stream[3, -1] > 0.9 > 0.1 > abs(stream[3, 1:4]).max()
    assert sum(isinstance(x, go.Figure) for x in shown) == 4


def test_the_parts_of_one_fact_add_up_and_its_neurons_are_its_own(one_fact):
    names, _ = one_fact
    assert names["direct"].sum() == pytest.approx(float(names["parts"].logit_diff), abs=1e-3)
    assert names["memory"] == 3 and names["effects"]["this fact"].idxmin() == "L3 MLP at final"
    own = abs(names["neurons"].isel(fact=names["at"])).to_series()
    assert own.nlargest(10).index.tolist() == names["strongest"].neuron.tolist()
    history = names["history"]
    assert history["logit difference"][6500] == pytest.approx(float(names["parts"].logit_diff))
    assert history.cosine[6500] == pytest.approx(1, abs=1e-6) and abs(history.cosine[0]) < 0.3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_in_the_percent_format(path):
    header, *_ = CELL.split(path.read_text())
    assert "format_name: percent" in header and header.count("# ---\n") == 2
    assert cells(path)[0][0]  # it begins with its title
    for is_text, source in cells(path):
        lines = [line for line in source.splitlines() if line]
        assert lines and (not is_text or all(line.startswith("#") for line in lines))
