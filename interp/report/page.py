"""Builds a self-contained HTML page from paragraphs, tables and figures. The templates beside this
file escape every text; the same input gives the same page.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar, NamedTuple

import plotly.graph_objects as go
import xarray as xr
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from interp.results.store import repeats_in


@dataclass(frozen=True)
class Paragraph:
    """A paragraph; ``style`` is empty, ``lead`` or ``note``."""

    text: str
    style: str = ""
    template: ClassVar[str] = "paragraph.html.j2"


@dataclass(frozen=True)
class Bullets:
    """A list of lines, under a bold title if there is one; ``style`` is ``lead`` or ``warning``."""

    lines: Sequence[str]
    style: str
    title: str = ""
    template: ClassVar[str] = "bullets.html.j2"


@dataclass(frozen=True)
class Prose:
    """A template of its own, with the values that it uses."""

    template: str
    values: Mapping[str, object] = field(default_factory=dict)


class Entry(NamedTuple):
    """A name in bold and the text that follows it."""

    name: str
    text: str


Cell = str | Sequence[Entry]


@dataclass(frozen=True)
class Table:
    """Rows under column heads, if there are any. The last cell of a row with fewer cells than heads
    spans the remaining columns.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    row_heads: bool = True
    """The first cell of a row is its head."""
    code: bool = False
    """Other cells are set as code."""
    template: ClassVar[str] = "table.html.j2"


@dataclass(frozen=True)
class Plot:
    """A figure. A click on a point whose ``customdata`` is a text that begins with # goes to that
    place on the page.
    """

    name: str
    figure: go.Figure
    template: ClassVar[str] = "plot.html.j2"

    @property
    def html(self) -> Markup:
        html = self.figure.to_html(
            post_script=_GO_TO,
            full_html=False,
            include_plotlyjs=False,
            auto_play=False,
            div_id=f"figure-{self.name}",
            config={"displaylogo": False},
        )
        return Markup(html)  # plotly writes texts as JSON in which < is escaped


Block = Paragraph | Bullets | Prose | Table | Plot


@dataclass(frozen=True)
class Section:
    """A heading, to which ``#anchor(heading)`` links, and what stands under it."""

    heading: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        return anchor(self.heading)


def page(title: str, lead: Sequence[Block], sections: Sequence[Section]) -> str:
    """A complete HTML page, which contains plotly.js once."""
    template = templates().get_template("page.html.j2")
    plotly = Markup(get_plotlyjs())
    return template.render(title=title, lead=lead, sections=sections, plotly=plotly)


@cache
def templates() -> Environment:
    """The templates of pages, which escape every text."""
    return Environment(
        loader=PackageLoader("interp.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def anchor(heading: str) -> str:
    """The id of a section with that heading on its page."""
    return re.sub(r"\W+", "-", heading.lower()).strip("-")


def repeated_weights_note(results: Mapping[str, xr.Dataset]) -> list[Block]:
    """A note on checkpoints that share weights which should differ; empty if there are none."""
    repeats = dict.fromkeys(str(x) for result in results.values() for x in repeats_in(result))
    return [Bullets(list(repeats), "warning", "Check these checkpoints:")] if repeats else []


_GO_TO = """
document.getElementById('{plot_id}').on('plotly_click', event => {
  const place = event.points[0].customdata;
  const there = typeof place === 'string' && place.startsWith('#')
    && document.getElementById(place.slice(1));
  if (there) there.scrollIntoView();
});
"""
