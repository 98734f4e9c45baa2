import json
import re
from html import unescape

import numpy as np
import pandas as pd
import pytest
from builders import one_result, sweep
from plotly.offline import get_plotlyjs
from xarray import DataTree

from interp.report.page import Bullets, Entry, Paragraph, Prose, Section, Table
from interp.report.page import page as page_of
from interp.report.patching_page import build_report

SHARES = np.array([[0.0, 0.3, 0.9], [0.1, 0.2, 0.7]])
HEADS = np.stack((SHARES, SHARES + np.array([0.1, 0.3, -0.3])), 1)
EVIL = "<script>alert(1)</script>"
RUN = {"no_knowledge_baseline": {"major": 2.0, "company": 6.0}, "command": "interp-train --x '<b>'"}


def swept(gaps, **options):
    return {
        "attn_out": sweep(SHARES, gaps, **options),
        "z": sweep(HEADS, gaps, site="z", **options),
    }


def metrics(losses):
    """Of a run with these training losses, whose held-out people are never learnt."""
    rows = [
        [100 * i, split, "average", of_split, accuracy]
        for i, loss in enumerate(losses)
        for split, of_split, accuracy in (("train", loss, 0.25), ("held-out", 9.0, 0.01))
    ]
    return pd.DataFrame(rows, columns=["step", "split", "attribute", "loss", "accuracy"])


def without_plotly(page):
    return page.replace(get_plotlyjs(), "")


def headings(page):
    return re.findall("<h2 id='.*?'>(.*?)</h2>", page)


@pytest.fixture(scope="module")
def page():
    return build_report(
        swept({0: 0, 100: 6, 200: 6}), run=RUN, metrics=metrics([9.0, 4.1, 1.0]), title="a < b"
    )


def test_the_page_needs_nothing_from_elsewhere(page):
    own = without_plotly(page)
    assert not re.search(r"""(src|href)\s*=|@import|url\(""", own)
    assert page.count(get_plotlyjs()) == 1


def test_the_same_input_gives_the_same_bytes(page):
    again = build_report(
        swept({0: 0, 100: 6, 200: 6}), run=RUN, metrics=metrics([9.0, 4.1, 1.0]), title="a < b"
    )
    assert page == again


def test_a_page_has_its_figures_under_names_that_stay(page):
    assert re.findall('id="(figure-[a-z-]+)"', page) == [
        "figure-training", "figure-layers", "figure-heads", "figure-over-training",
    ]  # fmt: skip
    assert headings(page) == [
        "Training curves", "Where: layer by token role", "Which heads", "When",
        "The facts", "What was run",
    ]  # fmt: skip


def test_title_and_recorded_commands_are_escaped(page):
    assert "<h1>a &lt; b</h1>" in page and "<title>a &lt; b</title>" in page
    assert "interp-train --x &#39;&lt;b&gt;&#39;" in page


def test_text_from_the_data_cannot_run():
    results = swept({0: 6, 100: 6}, prompt=EVIL)
    for result in results.values():
        result.answer[0] = result.attribute[0] = EVIL
        result.attrs["made_by"] = json.dumps({"command": EVIL, "hardware": {"gpu": EVIL}})
        result.attrs["request"] = json.dumps({"corruption": EVIL, "versions": {"torch": EVIL}})
    run = RUN | {"command": EVIL}
    page = build_report(results, run=run, metrics=metrics([9.0, 1.0]), title=EVIL)
    assert EVIL not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 9


def lead(page):
    """First sentence of the page, and the strongest cells by label of the component."""
    told, rest = page.split("<p class='lead'>")[1].split("</p>", 1)
    rows = re.findall(
        "<tr><th>([^<]+)</th><td>(.*?)</td><td>(.*?)</td></tr>", rest.split("</table>")[0]
    )
    return told, {component: cells for component, *cells in rows}


def test_the_lead_names_the_strongest_cells_at_names_and_at_the_end(page):
    told, cells = lead(page)
    assert "step 200" in told and "n = 40 facts, denoising" in told
    assert list(cells) == ["attention output", "attention heads (z)"]
    number = r"-?0\.\d\d"
    for found, label, share in zip(
        [*cells["attention output"], *cells["attention heads (z)"]],
        ["L0 attn_out at name_last", "L0 attn_out at final", "L0H1 at name_last", "L0H0 at final"],
        [0.3, 0.9, 0.6, 0.9],
        strict=True,
    ):
        pattern = rf"<b>{label}</b>: ({number}) \[({number}), ({number})\]"
        estimate, low, high = map(float, re.fullmatch(pattern, found).groups())
        assert estimate == pytest.approx(share, abs=0.02)
        assert low <= estimate <= high


def test_the_lead_tells_of_residual_streams_only_if_nothing_else_was_patched():
    residual = {"resid_pre": sweep(SHARES, {100: 6}, site="resid_pre")}
    alone = lead(build_report(residual, title="t"))[1]
    together = lead(build_report(residual | swept({100: 6}), title="t"))[1]
    assert list(alone) == ["residual stream before the block"]
    assert list(together) == ["attention output", "attention heads (z)"]


def test_the_plateau_is_told_in_words_with_its_steps(page):
    words = " ".join(page.split())
    assert "by step 100 its loss is within 5 %" in words
    assert "until step 200, the first" in words
    assert "At the end of training, step 200, accuracy is 0.250." in words


def test_a_run_that_is_still_on_its_plateau_is_not_said_to_have_left_it():
    page = build_report(swept({0: 6}), run=RUN, metrics=metrics([9.0, 4.1]), title="t")
    assert "This run shows no complete plateau." in page
    assert "until step" not in page


def test_two_facts_of_each_attribute_are_shown_and_all_counted():
    page = build_report(swept({0: 6}, n=10), title="t")
    assert "Two of each attribute, of n = 10 (major 5, company 5)." in page
    assert re.findall(r"Ann Lee was born on (\d+)", page) == ["0", "1", "2", "3"]


def test_what_was_run_is_told():
    results = swept({0: 6, 100: 6})
    request = {"step": 0, "site": "z", "checkpoint": "ab", "seed": 7, "versions": {"torch": "2.13"}}
    made_by = {"command": "interp-patch --ckpt demo", "date": "2026-01-02", "git_commit": "c0ffee"}
    results["attn_out"].attrs |= {
        "request": json.dumps(request), "made_by": json.dumps(made_by),
    }  # fmt: skip
    rows = dict(
        re.findall(
            r"<tr><th>([^<]*)</th><td><code>([^<]*)</code>",
            unescape(without_plotly(build_report(results, title="t"))),
        )
    )
    assert rows == {
        "command": "interp-patch --ckpt demo", "training command": "unknown",
        "checkpoints": "steps 0, 100", "sites": "attn_out, z",
        "options": "{\"seed\": 7}", "versions": "{\"torch\": \"2.13\"}",
        "hardware": "{}", "git commit": "c0ffee", "date": "2026-01-02",
    }  # fmt: skip


@pytest.mark.parametrize(
    "given", [{}, {"run": RUN}, {"metrics": metrics([9.0, 1.0])}], ids=["neither", "run", "metrics"]
)
def test_without_run_or_metrics_there_are_no_training_curves(given):
    page = build_report(swept({0: 6, 100: 6}), title="t", **given)
    assert headings(page)[0] == "Where: layer by token role"


def test_a_single_checkpoint_is_shown_without_its_course_over_training():
    page = build_report(swept({100: 6}), title="t")
    assert headings(page) == [
        "Where: layer by token role",
        "Which heads",
        "The facts",
        "What was run",
    ]


@pytest.mark.parametrize(
    "site, heading", [("attn_out", "Where: layer by token role"), ("z", "Which heads")]
)
def test_a_single_site_is_shown_alone(site, heading):
    page = build_report({site: swept({100: 6})[site]}, title="t")
    assert headings(page) == [heading, "The facts", "What was run"]


def test_the_lead_of_noising_names_the_cell_that_takes_most_away():
    result = sweep(1 - SHARES, {100: 6}, direction="noising")
    at_the_end = lead(build_report({"attn_out": result}, title="t"))[1]["attention output"][1]
    assert at_the_end.startswith("<b>L0 attn_out at final</b>")


def test_the_lead_of_a_run_that_knows_nothing_yet_names_no_cell():
    cells = lead(build_report(swept({0: 0}), title="t"))[1]
    assert "<b>" not in str(cells)


def test_a_data_tree_gives_the_page_of_its_sites():
    results = swept({0: 0, 100: 6})
    assert build_report(DataTree.from_dict(results), title="t") == build_report(results, title="t")


def test_a_plateau_that_ends_where_it_starts_is_none():
    page = build_report(swept({0: 0, 100: 6}), run=RUN, metrics=metrics([9.0, 0.1]), title="t")
    assert "no complete plateau" in page


def test_a_single_fact_gets_no_interval():
    one = {"attn_out": one_result([[[1.0], [2.0], [3.0]]], [4.0], [1.0]).expand_dims(step=[100])}
    cells = lead(build_report(one, title="t"))[1]["attention output"]
    assert cells[1] == "<b>L0 attn_out at final</b>: 0.67"


def test_both_directions_stand_side_by_side_with_what_is_enough_and_what_is_needed():
    denoised = {"attn_out": sweep(SHARES, {0: 0, 100: 6})}
    noised = {"attn_out": sweep(1 - SHARES / 2, {0: 0, 100: 6}, direction="noising")}
    page = build_report(denoised, other=noised, title="t")
    assert "Sufficient, or necessary" in headings(page)
    assert "(attn_out), denoising" in page and "(attn_out), noising" in page
    assert "Sufficient, or necessary" not in headings(build_report(denoised, title="t"))


def table_heads(page):
    return re.findall("<th>([^<]*)</th>", page.split("<p class='lead'>")[1].split("</tr>")[0])[1:]


def test_the_lead_gives_both_directions_where_there_are_two():
    other = {
        site: sweep(1 - shares / 2, {100: 6}, site=site, direction="noising")
        for site, shares in (("attn_out", SHARES), ("z", HEADS))
    }
    page = build_report(swept({100: 6}), other=other, title="t")
    assert "denoising and noising" in page
    assert table_heads(page) == [
        "at name tokens, recovered", "at name tokens, lost", "at final, recovered",
        "at final, lost",
    ]  # fmt: skip
    row = re.search("<tr><th>attention output</th>(.*?)</tr>", page)[1]
    said = re.findall(r"<b>L0 attn_out at final</b>: (\S+) ", row)
    assert [float(x) for x in said] == pytest.approx([0.9, 0.45], abs=0.02)


def test_the_lead_names_edges_at_their_destination():
    edge = sweep(HEADS, {100: 6}, site="z").rename(role="dest").expand_dims(src=["bos"])
    edge = edge.transpose("step", "layer", "head", "dest", "src", "fact").assign_attrs(site="edge")
    page = build_report({"edge": edge}, title="t")
    assert "<b>L0H0 edge final ← bos</b>: 0.9" in page


def test_positions_are_not_called_roles():
    result = sweep(SHARES, {100: 6}).rename(role="pos").assign_coords(pos=[0, 1, 2])
    page = build_report({"attn_out": result.assign_attrs(by="pos")}, title="t")
    assert "Where: layer by position" in page and "token role" not in page
    assert table_heads(page) == ["at any position, recovered"]


def test_a_site_without_any_cell_is_passed_over():
    empty = sweep(SHARES, {100: 6}, site="mlp_out")
    empty = empty.assign(patched=empty.patched * np.nan)
    page = build_report({"mlp_out": empty} | swept({100: 6}), title="t")
    assert "MLP output" not in page
    with pytest.raises(ValueError, match="no fact has any of the patched positions"):
        build_report({"mlp_out": empty}, title="t")


def test_the_lead_names_no_cell_where_none_moves_anything():
    still = one_result(np.full((2, 3, 40), -3.0), np.full(40, 6.0), np.full(40, -3.0))
    page = build_report({"attn_out": still.expand_dims(step=[100])}, title="t")
    assert lead(page)[1] == {"attention output": ["–", "–"]}


def test_a_short_row_spans_the_table_and_cells_are_escaped():
    rows = [["a & b", "1", [Entry("<i>", ": 2"), Entry("x", "")]], ["c", "none <at> all"]]
    html = page_of("t", [Table(["", "one", "two"], rows)], [])
    assert "<tr><th>a &amp; b</th><td>1</td><td><b>&lt;i&gt;</b>: 2; <b>x</b></td></tr>" in html
    assert "<tr><th>c</th><td colspan='2'>none &lt;at&gt; all</td></tr>" in html


def test_every_block_of_a_page_escapes_its_text():
    lists = [Paragraph(EVIL, "note"), Bullets([EVIL], "warning", EVIL), Table([EVIL], [[EVIL]])]
    links = Prose("table_links.html.j2", {"names": [EVIL]})
    html = page_of(EVIL, [*lists, links], [Section(EVIL, lists)])
    assert EVIL not in html and html.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 15
