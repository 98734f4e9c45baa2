"""Hooks of MkDocs (mkdocs.yml names this file).

Pages link to files of the repository by relative paths, as a forge shows them. MkDocs knows only
what lies in docs/, so files outside that a page links to are put into the site under
``repository/``, and the links are changed when the site is built. The command-line reference and
the API reference are made here, from the dataclasses and modules themselves.
"""

import re
from pathlib import Path
from posixpath import dirname, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from site_reference import api_index, api_page, api_pages, commands

ROOT = Path(__file__).parents[1]
OUTSIDE = "repository/"
LINK = re.compile(r"(\]\()([^)#\s]+)")
IF_THERE = "notebooks.md"
"""A page of the navigation that is shown if it exists."""


def on_config(config: MkDocsConfig) -> None:
    if not (ROOT / "docs" / IF_THERE).exists():
        config.nav = _without(config.nav, IF_THERE)


def _without(entries: list, page: str) -> list:
    """The navigation without the entry of a page."""
    left = []
    for entry in entries:
        ((title, under),) = entry.items() if isinstance(entry, dict) else [("", entry)]
        if isinstance(under, list):
            left.append({title: _without(under, page)})
        elif under != page:
            left.append(entry)
    return left


def on_files(files: Files, config: MkDocsConfig) -> None:
    for uri in api_pages():
        files.append(File.generated(config, uri, content=api_page(uri)))
    waiting = [file for file in files if file.is_documentation_page()]
    while waiting:
        file = waiting.pop()
        for _, link in LINK.findall(file.content_string):
            target = _target(file.src_uri, link)
            uri = target and _uri(target)
            if uri and uri.startswith(OUTSIDE) and uri not in files.src_uris:
                added = File.generated(config, uri, abs_src_path=str(target))
                files.append(added)
                waiting += [added] if added.is_documentation_page() else []


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    uri = page.file.src_uri

    def rewritten(found: re.Match) -> str:
        target = _target(uri, found[2])
        return found[1] + (relpath(_uri(target), dirname(uri)) if target else found[2])

    markdown = LINK.sub(rewritten, markdown)
    markdown = markdown.replace("<!-- commands -->", commands())
    return markdown.replace("<!-- modules -->", api_index())


def _target(uri: str, link: str) -> Path | None:
    """The file of the repository that ``link`` on the page ``uri`` leads to; None if it does not
    lead to one.
    """
    outside = uri.startswith(OUTSIDE)
    page = ROOT / uri.removeprefix(OUTSIDE) if outside else ROOT / "docs" / uri
    target = (page.parent / link).resolve()
    return target if target.is_file() and target.is_relative_to(ROOT) else None


def _uri(target: Path) -> str:
    """Where the site has a file of the repository."""
    if target.is_relative_to(ROOT / "docs"):
        return target.relative_to(ROOT / "docs").as_posix()
    return OUTSIDE + target.relative_to(ROOT).as_posix()
