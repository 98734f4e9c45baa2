"""Slider and play buttons of figures with one frame per step."""

from collections.abc import Sequence

import plotly.graph_objects as go


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
    figure.update_layout(height=figure.layout.height + 97)
