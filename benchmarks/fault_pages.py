"""Part F: hostile texts in every field of text, and the pages with them in a real browser."""

import os
import shlex
import shutil
from collections.abc import Iterable
from pathlib import Path

from benchmarks.fault_inputs import COLUMNS, trained
from benchmarks.fault_runner import Findings, command, run

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><script>alert(2)</script>",
    "javascript:alert(3)",
    "<a href='javascript:alert(4)'>here</a>",
    "a\u2028b",
    "\u202egnitirw",
    "&lt;script&gt;alert(5)&lt;/script&gt;",
    "%{customdata}<extra></extra>{{7*7}}${alert(6)}",
    "long" * 2500,
)
NAME = '"><img src=x onerror=alert(7)>'
"""Of the run folder."""
BROWSER = os.environ.get("REPORT_BROWSER") or shutil.which("chromium")
_COMMANDS = (
    "interp-patch --ckpt {run} --sites z mlp_out --facts 12 --steps 20,30 --direction both",
    "interp-report --results {run}/results/patching --out again.html",
    "interp-analyse localization --ckpt {run} --facts 12 --people 12 --workers 1 --steps 20,30",
    "interp-analyse phases --ckpt {run} --out {run}/study",
)
_HARMFUL = """() => [...document.querySelectorAll(
  'img, iframe, object, embed, form, [onerror], [onload], [onclick]')]
  .filter(x => x.src || x.getAttribute('onerror') || x.getAttribute('onclick')).length
  + [...document.querySelectorAll('a')].filter(x => /^\\s*javascript:/i.test(
  x.getAttribute('href') || x.getAttribute('xlink:href') || '')).length"""
_SHOWN = "() => document.body.textContent"


def _train_hostile() -> None:
    """Trains a run whose people have hostile names and values."""
    import sys

    import interp.training.loop as loop

    draw = loop.draw_population

    def drawn(*given, **options):
        people = draw(*given, **options)
        rows = range(len(people))  # first names of as many tokens, so that all have twins
        people["first"] = [f"<script>alert({row})</script>" for row in rows]
        for shift, column in enumerate(("major", "company", "university")):
            people[column] = [HOSTILE[(row + shift) % len(HOSTILE)] for row in rows]
        return people

    loop.draw_population = drawn
    sys.argv = [*trained("hostile").split()]
    from interp.cli.interp_train import main

    main()


def _report_of_prompts() -> None:
    """A page from Python, on prompts with hostile attributes."""
    import interp

    suite = interp.load_suite("hostile")
    texts = suite.facts(6).texts
    people = suite.population.set_index("id").loc[texts.person]
    names = (people["first"] + " " + people["middle"] + " " + people["last"]).to_numpy()
    hostile = list(HOSTILE[:6])
    table = texts.assign(name=names, attribute=hostile)[list(COLUMNS)]
    table.to_csv("prompts.csv", index=False)
    tree = interp.patch_suite(suite, suite.read_facts("prompts.csv"), sites=["z"], steps=[20, 30])
    page = interp.build_report(tree, title=HOSTILE[0], command=HOSTILE[1])
    Path("python.html").write_text(page)


def hostile_texts(place: Path, found: Findings) -> Iterable[None]:
    """Adds a finding a page; yields after each."""
    folder = place.with_name("hostile")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    steps = [("training on hostile people", _train_hostile), ("prompts", _report_of_prompts)]
    for what, call in steps:
        ended = run(call, folder)
        if ended.code:
            found.add("F", what, "traceback", ended.said[-300:])
            yield
    if not (folder / "hostile" / "run.json").is_file():
        return
    (folder / "hostile").rename(folder / NAME)
    for line in _COMMANDS:
        ended = run(command(shlex.split(line.format(run=shlex.quote(NAME)))), folder)
        if ended.code:
            found.add("F", line, "other message" if ended.code == 2 else "traceback", ended.said)
            yield
    pages = sorted(folder.rglob("*.html"))
    for page, got in zip(pages, _opened(pages)):
        found.add("F", f"{page.name} in a browser", "silent" if got else "right value", got)
        yield


def _opened(pages: list[Path]) -> Iterable[str]:
    """What was wrong with each page, empty if nothing."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"]
        )
        for page in pages:
            wrong = []
            tab = browser.new_context(offline=True).new_page()
            tab.on("dialog", lambda x, w=wrong: (w.append(f"dialog {x.message}"), x.dismiss()))
            tab.on("pageerror", lambda x, w=wrong: w.append(f"error {x}"))
            tab.on("console", lambda x, w=wrong: w.append(x.text) if x.type == "error" else None)
            tab.on("request", lambda x, w=wrong: w.append(f"request {x.url[:80]}")
                   if not x.url.startswith(("file:///", "blob:", "data:")) else None)  # fmt: skip
            tab.goto(page.as_uri())
            tab.wait_for_timeout(1000)
            if tab.evaluate(_HARMFUL):
                wrong.append("a hostile text became an element")
            if not any(text in tab.evaluate(_SHOWN) for text in (*HOSTILE[:4], NAME)):
                wrong.append("no hostile text is shown as text")
            yield "; ".join(wrong)
        browser.close()
