"""Slider and play buttons of figures with one frame per step."""

from collections.abc import Sequence

import plotly.graph_objects as go

_HEIGHT = 97
"""Pixels that slider and buttons take up below a figure."""


def add_controls(figure: go.Figure, steps: Sequence[int]) -> None:
    """A slider over the frames, which are named by step, and buttons to play them."""
    now = {
        "mode": "immediate",
        "frame": {"duration": 0, "redraw": True},
        "transition": {"duration": 0},
    }
    play = {
        "mode": "immediate",
        "fromcurrent": True,
        "frame": {"duration": 450, "redraw": True},
        "transition": {"duration": 0},
    }
    figure.update_layout(
        sliders=[
            {
                "active": len(steps) - 1,
                "currentvalue": {"prefix": "step "},
                "pad": {"t": 62},
                "x": 0.1,
                "len": 0.9,
                "steps": [
                    {"label": str(s), "method": "animate", "args": [[str(s)], now]} for s in steps
                ],
            }
        ],
        updatemenus=[
            {
                "type": "buttons",
                "direction": "left",
                "x": 0.08,
                "y": 0,
                "xanchor": "right",
                "yanchor": "top",
                "pad": {"t": 67},
                "buttons": [
                    {"label": "▶", "method": "animate", "args": [[str(s) for s in steps], play]},
                    {"label": "❚❚", "method": "animate", "args": [[None], now]},
                ],
            }
        ],
        margin={"b": 137},
    )
    figure.update_layout(height=figure.layout.height + _HEIGHT)


def without_controls(figure: go.Figure) -> go.Figure:
    """A copy without slider, buttons and frames, of the step that the slider is at, which its title
    names; the figure itself if it has no slider.
    """
    if not figure.layout.sliders:
        return figure
    slider = figure.layout.sliders[0]
    step = slider.steps[slider.active].label
    still = go.Figure(figure.data, figure.layout)
    title = still.layout.title.text.removesuffix("</sup>")
    still.layout.sliders = still.layout.updatemenus = ()
    return still.update_layout(
        title_text=f"{title}; step {step}</sup>",
        height=figure.layout.height - _HEIGHT,
        margin={"b": 60},
    )
