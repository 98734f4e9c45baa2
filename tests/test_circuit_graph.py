"""The figure of a circuit: one frame a step, what is hovered, and steps without a circuit."""

import numpy as np
import pytest
import xarray as xr

from interp.report.figures.circuit_graph import MOST_DRAWN, circuit_graph

WRITERS = ["embed", "L0H0", "L0H1", "L0-MLP"]
READERS = [*(f"L0H{i}.{kind}" for kind in "qkv" for i in range(2)), "L0-MLP", "logits"]


@pytest.fixture
def found():
    rng = np.random.default_rng(0)
    dims = ("step", "writer", "reader", "role")
    size = rng.normal(size=(2, 2, len(WRITERS), len(READERS), 3))
    circuit = np.zeros(size.shape[1:], np.int8)
    circuit[1, 0, 0, 0] = circuit[1, 1, 7, 2] = circuit[1, 0, 6, 1] = 1
    return xr.Dataset(
        {
            "importance": (("estimate", *dims), size),
            "margin": (dims, np.full(circuit.shape, 0.25)),
            "circuit": (dims, circuit),
        },
        {"estimate": ["exact", "eap"], "step": [0, 100], "writer": WRITERS, "reader": READERS,
         "role": ["name_first", "name_last", "final"]},
    )  # fmt: skip


def test_edges_say_their_effect_their_interval_and_what_estimates_say(found):
    figure = circuit_graph(found, "title", "subtitle", link="#there")
    hovered = figure.frames[1].data[-1]
    exact, eap = (found.importance.sel(step=100, writer="L0H0", reader="logits", role="final",
                                       estimate=x).item() for x in ("exact", "eap"))  # fmt: skip
    wanted = f"L0H0 → logits at final<br>{exact:+.2f} ± 0.25 nats, exact<br>eap {eap:+.2f}"
    assert wanted in hovered.text and len(hovered.text) == 3
    assert set(hovered.customdata) == {"#there"}
    lines = figure.frames[1].data[:3]
    assert sorted(line.line.dash for line in lines) == ["dash", "solid", "solid"]
    widths = [line.line.width for line in lines]
    assert widths == sorted(widths, reverse=True)  # the strongest first


def test_a_step_without_a_circuit_says_so_and_frames_have_as_many_traces(found):
    empty, full = circuit_graph(found, "title", "subtitle", link="#there").frames
    assert empty.data[-1].text == ("no circuit at this step",)
    assert len(empty.data) == len(full.data) == MOST_DRAWN + 2
