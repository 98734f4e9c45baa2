"""The documentation as a site: it builds without a warning, loads nothing from elsewhere, and its
references say what the code says.
"""

import os
import re
import runpy
import shutil
import subprocess
import sys
from configparser import ConfigParser
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
import yaml
from filelock import FileLock
from playwright.sync_api import sync_playwright
from test_browser import BROWSER, QUIET
from test_readme import files

import interp
from analyses.interp_analyse import analyse
from analyses.registry import registered
from interp.cli import interp_audit, interp_convert, interp_patch, interp_report, interp_train

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "interp-train": interp_train.main,
    "interp-patch": interp_patch.main,
    "interp-report": interp_report.main,
    "interp-audit": interp_audit.main,
    "interp-convert": interp_convert.main,
} | {f"interp-analyse {name}": analyse for name in registered()}


class Html(HTMLParser):
    """What a page of the site has: ids, links, what it loads, and the cells of its tables."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids, self.links, self.loaded, self.rows, self.heading = set(), [], [], {}, ""
        self._in = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.add(attrs.get("id"))
        if tag == "a" and "href" in attrs:
            self.links.append(attrs["href"])
        if tag in ("script", "img", "link", "iframe", "source") and attrs.get("rel") != "canonical":
            self.loaded += [attrs[key] for key in ("src", "href", "srcset") if attrs.get(key)]
        self._in = tag if tag in ("h2", "tr", "td") else self._in
        if tag == "h2":
            self.heading = attrs["id"]
        if tag == "tr":
            self.rows.setdefault(self.heading, []).append([])
        if tag == "td":
            self.rows[self.heading][-1].append("")

    def handle_endtag(self, tag):
        self._in = "" if tag == self._in else self._in

    def handle_data(self, data):
        if self._in == "td":
            self.rows[self.heading][-1][-1] += data


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site, which parallel test processes share. CI requires MkDocs; elsewhere it may be
    missing.
    """
    if "REPORT_BROWSER" not in os.environ:
        pytest.importorskip("mkdocs", reason="MkDocs is not installed: pip install '.[docs]'")
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    with FileLock(root / "site.lock"):
        if not (root / "site").exists():
            build(root / "unfinished").rename(root / "site")
    return root / "site"


def build(folder: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[str, Html]:
    return {
        path.relative_to(site).as_posix(): Html(path)
        for path in site.rglob("*.html")
        if path.name != "404.html"
    }


def followed(page: str, link: str) -> tuple[str, str]:
    """File of the site and place in it that a link leads to."""
    parts = urlsplit(urljoin(f"http://site/{page}", link))
    return unquote(parts.path).lstrip("/"), unquote(parts.fragment)


def is_elsewhere(link: str) -> bool:
    return bool(urlsplit(link).scheme or urlsplit(link).netloc)


def test_every_link_and_anchor_leads_somewhere(site, pages):
    n_places = 0
    for name, page in pages.items():
        for link in filter(lambda x: not is_elsewhere(x), page.links):
            target, place = followed(name, link)
            assert (site / target).is_file(), f"{name}: {link}"
            if place and target in pages:
                n_places += 1
                assert place in pages[target].ids, f"{name}: {link}"
    assert n_places > 100


def test_every_page_is_reached_from_the_first(pages):
    seen, waiting = set(), ["index.html"]
    while waiting:
        name = waiting.pop()
        if name not in seen and name in pages:
            seen.add(name)
            links = (link for link in pages[name].links if not is_elsewhere(link))
            waiting += [followed(name, link)[0] for link in links]
    assert seen == pages.keys()
    assert len(seen) > 25


def test_nothing_is_loaded_from_elsewhere(site, pages):
    for name, page in pages.items():
        assert page.loaded, name
        assert not [link for link in page.loaded if is_elsewhere(link)], name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", sheet.read_text()), sheet


@pytest.mark.skipif(BROWSER is None, reason="no chromium here; CI installs it and requires it")
def test_pages_open_offline_from_the_folder_at_any_width(site):
    said, asked, too_wide = [], [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which(BROWSER), args=QUIET)
        for width in (390, 1024):
            context = browser.new_context(offline=True, viewport={"width": width, "height": 800})
            tab = context.new_page()
            tab.on("console", lambda x: said.append(x.text) if x.type == "error" else None)
            tab.on("request", lambda x: asked.append(x.url) if is_online(x.url) else None)
            for name in ("index.html", "concepts.html", "commands.html", "api/facts.html"):
                tab.goto(f"file://{site / name}")
                overflow = "document.documentElement.scrollWidth - window.innerWidth"
                if tab.evaluate(overflow) > 0:
                    too_wide.append((name, width))
            shown = tab.locator("img").count()
        browser.close()
    assert (said, asked, too_wide) == ([], [], [])
    assert shown == 0  # the last page has none; those of the first are files


def is_online(url: str) -> bool:
    return not url.startswith(("file:", "data:", "blob:"))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_reference_has_the_options_of_a_commands_help(pages, monkeypatch, capsys, command):
    rows = pages["commands.html"].rows[command.replace(" ", "-")]
    options = {row[0]: row for row in rows if row and row[0].startswith("--") and len(row) == 4}
    monkeypatch.setattr(sys, "argv", [*command.split(), "--help"])
    with pytest.raises(SystemExit):
        COMMANDS[command]()
    said = capsys.readouterr().out
    flags = re.findall(r"^  (--[a-z][a-z0-9-]*)", said, re.M)
    assert sorted(options) == sorted(flags)
    solid = without_blanks(said)
    for flag, (_, takes, default, text) in options.items():
        assert without_blanks(text) in solid, flag
        if takes.startswith(("whole", "number")) and default not in ("required", ""):
            assert without_blanks(f"{text}(default:{default})") in solid, flag


def without_blanks(text: str) -> str:
    """Help is wrapped anywhere, and Markdown takes away marks of code."""
    return re.sub(r"[\s`]+", "", text)


def test_the_reference_has_every_public_name_and_shapes(site, pages):
    for name, home in interp._HOMES.items():
        of = {page for page, html in pages.items() if f"{home}.{name}" in html.ids}
        assert len(of) == 1, name
    for name in interp._MODULES:
        assert f"api/{name}.html" in pages
        module = getattr(interp, name)
        for exported in getattr(module, "__all__", ()):
            ids = set.union(*(html.ids - {None} for html in pages.values()))
            path = f"{module.__name__}."
            assert [x for x in ids if x.startswith(path) and x.endswith(f".{exported}")], exported
    text = re.sub(r"<[^>]+>", "", (site / "api" / "facts.html").read_text())
    assert "clean: Int[Tensor, 'fact pos']" in text


def test_the_analysis_of_the_guide_has_40_lines():
    shown = [text for name, text in files() if name.startswith("analyses/arrival")]
    lines = [line for text in shown for line in text.splitlines() if line.strip()]
    assert len(shown) == 2 and len(lines) == 40


def test_the_pictures_of_gates_are_those_that_the_script_draws():
    script = runpy.run_path(str(ROOT / "docs" / "make_gates.py"))
    for name, gate in script["GATES"].items():
        kept = ROOT / "docs" / "figures" / f"gate-{name}.svg"
        assert kept.read_text() == script["picture"](name, gate)


def test_version_licence_and_citation_agree():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == setup["metadata"]["version"]
    assert cited["license"] == setup["metadata"]["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License\n")
    assert f"## {cited['version']}," in (ROOT / "CHANGELOG.md").read_text()
    assert cited["references"][0]["url"] == "https://arxiv.org/abs/2503.21676"
