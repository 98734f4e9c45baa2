"""Images of figures: drawn offline in the browser there is, or refused in one line."""

import os
import shutil
from xml.etree import ElementTree

import plotly.graph_objects as go
import pytest

from interp.report import images
from interp.report.figures.controls import add_controls, without_controls

BROWSER = os.environ.get("REPORT_BROWSER") or shutil.which("chromium")
HOSTILE = "<script>alert(1)</script><a href='javascript:alert(1)'>x</a> & \"z\""


def moving(title="A figure<br><sup>n = 3 facts</sup>"):
    figure = go.Figure(go.Scatter(x=[1, 2], y=[3, 4], name=HOSTILE, showlegend=True))
    figure.update_layout(title=title, height=300)
    add_controls(figure, [0, 10, 20])
    return figure


def test_a_still_names_its_step_and_has_no_slider():
    figure = moving()
    still = without_controls(figure)
    assert still.layout.title.text == "A figure<br><sup>n = 3 facts; step 20</sup>"
    assert not still.layout.sliders and not still.layout.updatemenus
    assert still.layout.height == 300 and figure.layout.height == 397
    assert len(figure.layout.sliders) == 1  # the figure itself is left as it was
    assert without_controls(still) is still


@pytest.mark.skipif(BROWSER is None, reason="no chromium here; CI installs it and requires it")
def test_images_are_drawn_and_hostile_names_stay_text(monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", shutil.which(BROWSER))
    (png,) = images.images({"a": moving()}, "png").values()
    assert png.startswith(b"\x89PNG") and png[-8:-4] == b"IEND"
    assert int.from_bytes(png[16:20]) == 2200 and int.from_bytes(png[20:24]) == 600
    drawn = images.images({"a": moving(), "b": moving("Another")}, "svg")
    assert list(drawn) == ["a", "b"] and b"Another" in drawn["b"] and b"step 20" in drawn["a"]
    for svg in drawn.values():
        root = ElementTree.fromstring(svg)
        assert root.tag.endswith("svg") and root.get("height") == "300"
        assert not [x for x in root.iter() if x.tag.split("}")[-1] == "script"]
        assert not [v for x in root.iter() for v in x.attrib.values() if "javascript:" in v]
        assert not [x for x in root.iter() if "slider" in (x.get("class") or "")]


def test_without_a_browser_it_is_said_what_to_install(monkeypatch, tmp_path):
    monkeypatch.delenv("BROWSER_PATH", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"none is on the PATH; install Chromium or Chrome"):
        images.browser()
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "gone"))
    with pytest.raises(ValueError, match=r"none is at BROWSER_PATH, .*gone; install"):
        images.browser()
    (tmp_path / "gone").write_text("#!/bin/sh\n")
    (tmp_path / "gone").chmod(0o755)
    assert images.browser() == str(tmp_path / "gone")
    monkeypatch.setattr(images, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'interp\[images\]'"):
        images.browser()
