"""Figures of how a model behaves towards known and unknown people over training."""

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import qualitative
from plotly.subplots import make_subplots

from analyses import paper
from analyses.beside_paper import across_seeds, beside_paper, with_title
from analyses.hallucination.answers import KINDS
from analyses.studies import sample_in_words
from interp.config import TrainConfig
from interp.report.figures.curves import band

_THERE = "paper, figure M, 64k people, one seed"
_SHOWN = (("held out", "1 nearest, 2 shared"), ("two parts shared", "all"))
"""Sets, and those among them, whose answers are drawn: each has one nearest known person."""


def figures(tables: dict[str, pd.DataFrame], base: TrainConfig) -> dict[str, go.Figure]:
    """Figures, by section heading."""
    found = tables["hallucination"]
    sets = found[~found.set.str.contains("as many")]
    seeds = sample_in_words(found.seed.nunique())
    shared = {"x": ("optimizer step",) * 2, "here": f"here, {base.n_people} people, {seeds}"}
    shared |= {"legend": "people"}
    drawn = {}
    for heading, measure, title, theirs, there, how in (
        ("Loss", "loss", "Attribute loss of known and unknown people", ("5", "left"),
         "paper, figure 5, 64k people", {"baselines": (found.baseline.mean(), paper.NO_KNOWLEDGE)}),
        ("Accuracy", "accuracy", "Attribute accuracy", ("M", "acc"), _THERE,
         {"y": "share of values", "log_y": False}),
        ("Confidence", "max_probability",
         "Probability of the likeliest token, mean over value tokens", ("M", "maxprob"), _THERE,
         {"y": "probability", "log_y": False}),
        ("Entropy", "entropy", "Entropy of the prediction, mean over value tokens",
         ("M", "entropy"), _THERE, {"y": "entropy (nats)"}),
    ):  # fmt: skip
        drawn[heading] = beside_paper(
            across_seeds(sets, series="set", x="step", y=measure),
            paper.panel(*theirs).sort_values("series", ascending=False, kind="stable"),
            title=title,
            there=there,
            **how,
            **shared,
        )
    return drawn | {
        "Calibration": _calibration(found, tables["hallucination_reliability"], seeds),
        "What is said of unknown people": _answers(tables["hallucination_answers"], seeds),
    }


def _calibration(found: pd.DataFrame, bins: pd.DataFrame, seeds: str) -> go.Figure:
    """ECE over training, and the reliability of each run at its last checkpoint."""
    last = f"accuracy by confidence, step {bins.step.max()}"
    figure = make_subplots(1, 2, subplot_titles=["expected calibration error", last])
    sets = [name for name in dict.fromkeys(found.set) if "part" not in name]
    for name, color in zip(sets, qualitative.D3):
        of = found[found.set == name]
        for measure, dash in (("ece", "solid"), ("ece_calibrated", "dot")):
            _line(figure, of, measure, name, color, dash, column=1)
        of = bins[bins.set == name]
        marks = {"mode": "markers", "marker_color": color, "showlegend": False}
        x, y = of.confidence, of.accuracy
        figure.add_trace(go.Scatter(x=x, y=y, legendgroup=name, name=name, **marks), 1, 2)
    diagonal = {"mode": "lines", "line": {"color": "#777", "dash": "dot"}, "name": "calibrated"}
    figure.add_trace(go.Scatter(x=[0, 1], y=[0, 1], **diagonal), 1, 2)
    figure.update_xaxes(title_text="optimizer step", col=1)
    figure.update_xaxes(title_text="confidence (probability)", col=2)
    figure.update_yaxes(title_text="ECE (probability)", col=1)
    figure.update_yaxes(title_text="accuracy (share)", col=2)
    note = (
        "first token of each value; ten bins of equal mass, on the right a marker per bin and "
        f"seed; dotted on the left: by chance alone; {seeds}"
    )
    return with_title(figure, "Calibration", note, height=450, width=1100)


def _answers(answers: pd.DataFrame, seeds: str) -> go.Figure:
    """Shares of what is said, a panel per set, with what chance would give."""
    titles = [f"{name} ({among})" for name, among in _SHOWN]
    figure = make_subplots(1, len(_SHOWN), subplot_titles=titles, shared_yaxes=True)
    for column, (name, among) in enumerate(_SHOWN, 1):
        of_set = answers[(answers.set == name) & (answers.among == among)]
        for kind, color in zip(KINDS, qualitative.D3):
            for measure, dash in (("share", "solid"), ("chance", "dot")):
                of = of_set[of_set.kind == kind]
                _line(figure, of, measure, kind, color, dash, column=column)
    figure.update_xaxes(title_text="optimizer step")
    figure.update_yaxes(title_text="share of answers", col=1)
    note = f"likeliest first token; dotted: neighbours dealt at random; {seeds}"
    return with_title(figure, "What is said of unknown people", note, height=450, width=1100)


def _line(
    figure: go.Figure, of: pd.DataFrame, y: str, name: str, color: str, dash: str, *, column: int
) -> None:
    """The mean over seeds; of solid lines its band too."""
    line = across_seeds(of.assign(line=name), series="line", x="step", y=y)
    if dash == "solid" and line.margin.notna().any():
        low, high = (line.y + sign * line.margin.fillna(0) for sign in (-1, 1))
        x, low, high = (values.to_numpy() for values in (line.x, low, high))
        figure.add_trace(band(x, low, high, color, group=name), 1, column)
    figure.add_trace(
        go.Scatter(
            x=line.x,
            y=line.y,
            mode="lines",
            line={"color": color, "dash": dash},
            name=name if dash == "solid" else f"{name}, by chance",
            legendgroup=name,
            showlegend=column == 1 and dash == "solid",
        ),
        1,
        column,
    )
