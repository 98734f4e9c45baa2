"""Figures as PNG or SVG files, drawn by plotly.js in a browser that kaleido starts. Nothing is
fetched from a network.
"""

import asyncio
import os
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Literal

import plotly.graph_objects as go

from interp.report.figures.controls import without_controls

ImageFormat = Literal["png", "svg"]
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_WIDTH, _HEIGHT = 1100, 500
"""Pixels of a figure; its own height counts if it has one."""
_SCALE = {"png": 2, "svg": 1}
"""Pixels of an image file per pixel of the figure."""


def browser() -> str:
    """Path of the browser that draws images: what BROWSER_PATH names, else Chromium or Chrome on
    the PATH.

    Raises:
        ValueError: kaleido or a browser is missing; the message says what to install.
    """
    if find_spec("kaleido") is None:
        raise ValueError(
            "images are drawn by kaleido, which is missing; pip install 'interp[images]'"
        )
    named = os.environ.get("BROWSER_PATH")
    for name in (named,) if named else _BROWSERS:
        if found := shutil.which(name):
            return found
    where = f"at BROWSER_PATH, {named}" if named else "on the PATH"
    raise ValueError(
        f"images are drawn in a browser, and none is {where}; install Chromium or Chrome (Debian: "
        "apt install chromium), or set BROWSER_PATH to one"
    )


def images(figures: Mapping[str, go.Figure], kind: ImageFormat) -> dict[str, bytes]:
    """The contents of an image file of each figure, which shows the figure's last step. Sliders and
    buttons are left out.

    Raises:
        ValueError: kaleido or a browser is missing.
    """
    return asyncio.run(_drawn(figures, kind, browser()))


async def _drawn(
    figures: Mapping[str, go.Figure], kind: ImageFormat, path: str
) -> dict[str, bytes]:
    import kaleido

    async with kaleido.Kaleido(n=1, mathjax=False, path=path) as drawer:
        drawn = {}
        for name, figure in figures.items():
            still = without_controls(figure)
            size = {"width": _WIDTH, "height": still.layout.height or _HEIGHT}
            opts = {"format": kind, "scale": _SCALE[kind], **size}
            drawn[name] = await drawer.calc_fig(still, opts=opts)
    return drawn
