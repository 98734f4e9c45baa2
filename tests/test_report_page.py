"""The page of a run in a real browser, and what it is made from."""

import csv
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from playwright.sync_api import sync_playwright

from analyses.report import ReportPageConfig, one_page
from analyses.report.one_page import run_and_report
from analyses.report.quick_localization import ASKED, localization_of
from analyses.report.stored_results import stored
from interp.report import patch_maps
from interp.results.metrics import recovered
from interp.results.store import read_folder
from interp.results.sweep import patch_suite
from interp.suite import load_suite

BROWSER = os.environ.get("REPORT_BROWSER") or shutil.which("chromium")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
WIDTHS = (390, 1024, 1440, 1920)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no chromium here; CI installs it and requires it"
)


class NoBar:
    def add_task(self, *_, **__) -> int:
        return 0

    def update(self, *_, **__) -> None:
        pass


@pytest.fixture(scope="module")
def made(suite, tmp_path_factory):
    """A run folder with two patched sites and its page. The model has learnt nothing: as if it had,
    its clean and corrupted runs are taken for different, and L1H1 for an extraction head.
    """
    path = shutil.copytree(suite.path, tmp_path_factory.mktemp("page") / "run")
    mine = load_suite(path)
    out = path / "results" / "patching"
    patch_suite(mine, mine.facts(24, seed=0), sites=["attn_out", "z"], out=out)
    config = ReportPageConfig(str(path), facts=16, workers=1, device="cpu")

    def localized(*arguments, **options):
        found, quick = localization_of(*arguments, **options)
        table = found.mechanisms
        named = (table.component == "L1H1") & (table.mechanism == "extraction") & (table.step > 0)
        return replace(found, mechanisms=table.assign(named=named, told_apart=True)), quick

    with pytest.MonkeyPatch.context() as learnt:
        learnt.setattr(patch_maps, "distinguishable", lambda *_: xr.DataArray(True))
        learnt.setattr(one_page, "localization_of", localized)
        run_and_report(config, command="interp-analyse report --ckpt run", bar=NoBar())
    return path


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=shutil.which(BROWSER), args=QUIET)
        yield opened
        opened.close()


@pytest.fixture
def tab(made, browser):
    """Opens the page; afterwards nothing was logged as an error and nothing was requested."""
    wrong, contexts = [], []

    def open_page(fragment="", width=1440, **options):
        viewport = {"width": width, "height": 900}
        context = browser.new_context(offline=True, viewport=viewport, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.on("request", lambda asked: wrong.append(asked.url) if _is_foreign(asked.url) else 0)
        page.goto(f"file://{made / 'report.html'}{fragment}")
        page.evaluate("all().forEach(show)")
        page.wait_for_function("document.querySelectorAll('.main-svg').length > 4")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def _is_foreign(url: str) -> bool:
    return not url.startswith(("file:", "data:", "blob:"))


def shown(page, panel, what="z"):
    """A trace of a panel's first figure, as drawn."""
    place = f"document.querySelector('[data-panel={panel}] .js-plotly-plot').data[0].{what}"
    return page.evaluate(f"JSON.stringify({place})")


def test_the_page_has_every_section_and_is_small(made):
    html = (made / "report.html").read_text()
    assert len(html.encode()) < 8e6
    for heading in ("When and where", "Training", "Patching maps", "Heads and MLPs over time",
                    "Attention over tokens", "Attribution and circuits", "Hallucination",
                    "Fine-tuning", "What was run"):  # fmt: skip
        assert f">{heading}</h2>" in html
    assert f"interp-analyse circuits --ckpt {made}" in html
    assert "quick localization with n = 96 facts" in html
    assert "Extraction: head L1H1 (names → answer: " in html


def test_a_full_localization_replaces_the_quick_one(made, tmp_path):
    quick = made / "results" / "localization-quick"
    mine = load_suite(made)
    assert set(stored(mine, quick, ASKED)) == set(ASKED) and stored(mine, tmp_path, ASKED) is None
    copy = shutil.copytree(made, tmp_path / "run")
    (copy / "results" / "localization-quick").rename(copy / "results" / "localization")
    config = ReportPageConfig(str(copy), workers=1, device="cpu")
    run_and_report(config, command="", bar=NoBar())
    html = (copy / "report.html").read_text()
    assert "quick localization" not in html and "n = 96 facts" in html
    assert not (copy / "results" / "localization-quick").exists()
    victim = next((copy / "results" / "localization").glob("step-000030.needs.*.nc"))
    victim.unlink()
    there = copy / "results" / "localization"
    assert stored(load_suite(copy), there, ASKED) is None, "an unfinished one is not shown"


def test_results_of_other_weights_are_not_this_runs(made, tmp_path):
    copy = shutil.copytree(made, tmp_path / "run")
    quick = copy / "results" / "localization-quick"
    assert stored(load_suite(copy), quick, ASKED) is not None
    shutil.copytree(copy / "step-000010", copy / "step-000030", dirs_exist_ok=True)
    changed = load_suite(copy)
    assert stored(changed, quick, ASKED) is None
    assert one_page._patching(changed)[0]["attn_out"].step.values.tolist() == [0, 10, 20]


@needs_browser
def test_the_slider_moves_every_panel_and_the_address_keeps_the_view(tab):
    page = tab()
    moving = ("timeline", "maps", "components", "attention", "edges", "loss")
    whats = {"maps": "text", "attention": "hovertemplate"}
    here = "layout.shapes"

    def state():
        drawn = "document.querySelector('[data-panel={}] .js-plotly-plot').{}"
        return [
            page.evaluate(
                f"JSON.stringify({drawn.format(x, f'data[0].{whats[x]}' if x in whats else here)})"
            )
            for x in moving
        ] + [page.get_attribute("svg.model", "aria-label")]

    last = state()
    assert "step=30" in page.url and page.inner_text("#at") == "step 30"
    page.locator("#step").focus()
    page.keyboard.press("ArrowLeft")
    assert "step=20" in page.url
    assert all(a != b for a, b in zip(last, state()))
    page.keyboard.press("Home")
    assert page.inner_text("#at") == "step 0"
    assert page.get_attribute("#step", "aria-valuetext") == "step 0"
    page.keyboard.press("End")
    assert state() == last

    again = tab("#step=10&head=L1H1&attribute=major&site=z")
    assert again.inner_text("#at") == "step 10"
    assert again.locator("select[data-choice=head]").input_value() == "L1H1"
    assert again.locator("[data-panel=maps] [data-site]").count() == 1
    assert "L1H1, step 10" in shown(again, "attention", "hovertemplate")
    again.locator("nav a").nth(2).click()
    assert again.inner_text("#at") == "step 10", "a link to a section keeps the view"
    first = tab("#step=30&head=L0H0")
    assert first.locator("select[data-choice=head]").input_value() == "L0H0"
    first.select_option("select[data-choice=head]", "L1H1")
    first.select_option("select[data-choice=head]", "L0H0")
    assert "head=L0H0" in first.url, "it is not the head that the page begins with"
    odd = tab("#step=11&head=L9H9&attribute=%3Cimg%3E")
    assert odd.inner_text("#at") == "step 30"
    assert odd.locator("select[data-choice=attribute]").input_value() == "all"


@needs_browser
def test_space_plays_through_training_and_stops(tab):
    page = tab("#step=0")
    page.keyboard.press("Alt+ArrowRight")
    assert page.inner_text("#at") == "step 0", "the browser's own keys are left alone"
    page.keyboard.press(" ")
    page.wait_for_function("document.getElementById('at').textContent === 'step 30'", timeout=9000)
    page.wait_for_function("document.getElementById('play').textContent === '▶'", timeout=3000)


@needs_browser
def test_selectors_change_what_is_shown(tab):
    page = tab()
    whole = shown(page, "maps")
    page.select_option("select[data-choice=attribute]", "major")
    assert shown(page, "maps") != whole and "attribute=major" in page.url
    page.select_option("select[data-choice=attribute]", "all")
    assert shown(page, "maps") == whole
    page.select_option("select[data-choice=metric]", "first_logprob")
    assert shown(page, "maps") != whole
    page.locator(".heads button").nth(5).click()
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    assert page.locator("select[data-choice=head]").input_value() == "L1H1"
    assert page.locator(".model [data-component]").count() == 1
    page.select_option("select[data-choice=prompt]", index=1)
    assert "prompt=2" in page.url


@needs_browser
def test_the_downloaded_map_is_the_stored_result(tab, made, tmp_path):
    page = tab()
    with page.expect_download() as waited:
        page.locator("[data-panel=maps] .csv").click()
    waited.value.save_as(tmp_path / "maps.csv")
    with open(tmp_path / "maps.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert waited.value.suggested_filename == "run-maps.csv"
    result = read_folder(made / "results" / "patching")["attn_out"]
    expected = recovered(result)
    mine = [x for x in rows if x["site"] == "attn_out"]
    assert len(mine) == expected.size and {x["n_facts"] for x in mine} == {"24"}
    for x in mine:
        layer = int(x["component"].split()[1])
        cell = float(expected.sel(step=int(x["step"]), layer=layer, role=x["position"]))
        assert float(x["recovered"]) == pytest.approx(cell, rel=1e-3)  # four digits are kept


@needs_browser
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_screen_and_no_text_is_tiny(tab, width):
    page = tab(width=width)
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    small = page.evaluate(
        "[...document.querySelectorAll('main text, main p, main td, figcaption, label, svg text')]"
        ".filter(x => x.textContent.trim() && parseFloat(getComputedStyle(x).fontSize) < 12)"
        ".map(x => x.textContent)"
    )
    assert small == []


@needs_browser
def test_dark_and_light_follow_the_system(tab):
    page = tab(color_scheme="dark")
    colors = "[getComputedStyle(document.body).backgroundColor, document.querySelector("
    colors += "'[data-panel=loss] .js-plotly-plot').layout.font.color]"
    dark = page.evaluate(colors)
    page.emulate_media(color_scheme="light")
    page.wait_for_timeout(100)
    light = page.evaluate(colors)
    assert dark[0] != light[0] and dark[1] != light[1]


@needs_browser
def test_it_prints_with_every_figure_and_without_controls(tab):
    page = tab()
    page.emulate_media(media="print")
    assert (
        not page.locator("#bar").is_visible() and not page.locator("button.csv").first.is_visible()
    )
    assert page.locator("[data-panel=attention]").is_visible()
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    sizes = page.evaluate("[...plots()].map(x => x.querySelector('.main-svg').width.baseVal.value)")
    assert sizes and max(sizes) <= 690
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert len(page.pdf()) > 50_000


@needs_browser
def test_figures_are_drawn_when_they_come_into_view_and_before_printing(made, browser):
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto(f"file://{made / 'report.html'}")
    page.wait_for_selector("[data-panel=timeline] .main-svg")
    assert page.locator("[data-panel=confidence] .main-svg").count() == 0
    page.locator("[data-panel=confidence]").scroll_into_view_if_needed()
    page.wait_for_selector("[data-panel=confidence] .main-svg")
    page.reload()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("[data-panel=confidence] .main-svg").count() > 0
    page.close()


@needs_browser
def test_hostile_names_stay_text(made, browser, tmp_path):
    html = (made / "report.html").read_text()
    stored_data = html.split("id='data'>")[1].split("</script>")[0]
    data = json.loads(stored_data)
    bad = "<img src=x onerror=\"document.title='run'\">"
    data["attention"]["prompts"][0]["tokens"][1] = bad
    data["attention"]["prompts"][0]["answer"] = bad
    data["mechanisms"]["short"] = {x: bad for x in data["mechanisms"]["names"]}
    text = json.dumps(data).replace("<", "\\u003c")
    (tmp_path / "page.html").write_text(html.replace(stored_data, text))
    page = browser.new_page()
    page.goto(f"file://{tmp_path / 'page.html'}")
    page.evaluate("all().forEach(show)")
    page.wait_for_timeout(500)
    assert page.title() != "run" and page.locator("main img").count() == 0
    assert bad in page.locator(".tokens").inner_text()
    page.close()


def test_attention_on_the_page_is_the_models(made):
    """255 levels: a share is off by at most 1 ÷ 510."""
    import base64

    html = (made / "report.html").read_text()
    data = json.loads(html.split("id='data'>")[1].split("</script>")[0])
    prompt, steps = data["attention"]["prompts"][0], data["attention"]["steps"]
    mine = load_suite(made)
    fact = mine.facts(len(mine.config.attributes), seed=0, fewer=True)[0]
    _, cache = mine.load(steps[-1]).run_with_cache(fact.clean[None])
    expected = cache["blocks.1.attn.hook_pattern"][0].numpy()
    n = len(fact.clean)
    shape = (len(steps), data["attention"]["layers"], data["attention"]["heads"], n, n)
    found = np.frombuffer(base64.b64decode(prompt["patterns"]), np.uint8).reshape(shape) / 255
    np.testing.assert_allclose(found[-1, 1], expected, atol=1 / 510 + 1e-6)
