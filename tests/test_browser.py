"""The report in a real browser: it loads without errors, and its slider moves the heat maps."""

import os
import shutil

import pytest
from playwright.sync_api import sync_playwright

from interp.report.patching_page import build_report
from interp.results.sweep import patch_suite

BROWSER = os.environ.get("REPORT_BROWSER") or shutil.which("chromium")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.mark.skipif(BROWSER is None, reason="no chromium here; CI installs it and requires it")
def test_the_report_opens_offline_and_its_slider_moves_through_training(suite, facts, tmp_path):
    tree = patch_suite(suite, facts)
    results = {site: tree[site].to_dataset() for site in tree.children}
    for result in results.values():  # so that no step is blank
        result["clean"] = result.corrupted + 1 + result.step / 10
    page = build_report(results, run=suite.run, metrics=suite.metrics, title="short")
    (tmp_path / "report.html").write_text(page)
    errors = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which(BROWSER), args=QUIET)
        context = browser.new_context(offline=True)
        tab = context.new_page()
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        tab.goto(f"file://{tmp_path / 'report.html'}")
        tab.wait_for_selector("#figure-layers .slider-group")
        shown = (
            "() => JSON.stringify(Array.from("
            "document.getElementById('figure-layers').calcdata[0][0].z, row => Array.from(row)))"
        )
        last = tab.evaluate(shown)
        rail = tab.locator("#figure-layers .slider-rail-touch-rect")
        rail.scroll_into_view_if_needed()
        handle = rail.bounding_box()
        tab.mouse.click(handle["x"] + 2, handle["y"] + handle["height"] / 2)
        at_start = "() => document.getElementById('figure-layers').layout.sliders[0].active === 0"
        tab.wait_for_function(at_start)
        tab.wait_for_timeout(300)
        first = tab.evaluate(shown)
        browser.close()
    assert errors == []
    assert first != last
