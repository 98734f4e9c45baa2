"""Figures of the study of mitigations: means over seeds, with 95 % intervals where they can be told
apart.
"""

import pandas as pd
import plotly.graph_objects as go
from plotly.colors import qualitative
from plotly.subplots import make_subplots

from analyses.beside_paper import across_seeds, with_title
from analyses.finetuning.weight_shares import across_runs
from analyses.mitigation.frontier import ALL, COMPARED
from analyses.studies import sample_in_words
from interp.report.figures.curves import band

_GREY = {"color": "#777", "dash": "dot", "width": 1}


def forgetting_figures(tables: dict[str, pd.DataFrame]) -> dict[str, go.Figure]:
    """Figures of the ways to fine-tune on new people, by section heading."""
    measured = tables["mitigation_measures"]
    drawn = {
        "Old and new accuracy": _frontiers(tables["mitigation_frontiers"]),
        "Area under the frontier": _areas(measured[measured.strength == ALL]),
    }
    if len(differences := tables["mitigation_differences"]):
        drawn["Differences in area"] = _differences(differences)
    return drawn


def _frontiers(table: pd.DataFrame) -> go.Figure:
    figure = go.Figure()
    lines = across_seeds(table, series="method", x="new", y="old")
    for i, (method, line) in enumerate(lines.groupby("series", sort=False)):
        reached = line[line.y > 0]
        figure.add_trace(
            go.Scatter(
                x=reached.x,
                y=reached.y,
                name=method,
                mode="lines",
                line={
                    "color": qualitative.D3[i % 10],
                    "width": 4 if method in COMPARED else 2,
                    "dash": "dash" if method in COMPARED else ("solid", "dot")[i // 10 % 2],
                },
                customdata=reached.margin,
                hovertemplate="new ≥ %{x:.2f}: old %{y:.3f} ± %{customdata:.3f}",
            )
        )
    n = table.seed.nunique()
    return with_title(
        figure,
        "Highest accuracy on old people at so much accuracy on new ones",
        f"all strengths and evaluations; mean over n = {n} seeds, 0 where a seed never gets there; "
        "± on hover: 95 %",
        xaxis={"title": "accuracy on new people, at least (share of values)"},
        yaxis={"title": "accuracy on old people (share of values)", "range": [0, 1.02]},
        height=560,
        width=950,
    )


def _areas(whole: pd.DataFrame) -> go.Figure:
    found = across_runs(whole, ["method"], "area").sort_values("mean")
    return with_title(
        go.Figure(_with_bars(found)),
        "Area under the frontier, all strengths together",
        f"mean and 95 % interval over n = {whole.seed.nunique()} seeds (Student's t); more "
        "strengths can only add",
        xaxis={"title": "area (0 to 1)"},
        height=200 + 24 * len(found),
        width=800,
    )


def _differences(table: pd.DataFrame) -> go.Figure:
    rows = table[table.measure == "area"]
    figure = make_subplots(1, rows.other.nunique(), shared_yaxes=True,
                           subplot_titles=[f"minus {x}" for x in rows.other.unique()])  # fmt: skip
    order = rows.groupby("method").difference.mean().sort_values().index.tolist()
    for column, (_, one) in enumerate(rows.groupby("other", sort=False), 1):
        points = one.rename(columns={"difference": "mean"})
        figure.add_trace(_with_bars(points), 1, column)
        figure.add_vline(0, line=_GREY, row=1, col=column)
    return with_title(
        figure,
        "Area under the frontier, difference between methods",
        f"paired by seed, n = {rows.n_seeds.max()}; 95 % intervals, each for itself; above 0 is "
        "better",
        xaxis_title="difference of areas",
        yaxis={"categoryorder": "array", "categoryarray": order},
        height=200 + 24 * len(order),
        width=950,
        showlegend=False,
    )


def _with_bars(found: pd.DataFrame) -> go.Scatter:
    return go.Scatter(
        x=found["mean"],
        y=found.method,
        mode="markers",
        marker={"color": "#1f4e9c", "size": 8},
        error_x={"array": found.margin.fillna(0), "color": "#1f4e9c"},
    )


def hallucination_figures(tables: dict[str, pd.DataFrame]) -> dict[str, go.Figure]:
    """Figures of training with unknown people, by section heading."""
    curves, risk = tables["mitigation_unknown_curves"], tables["mitigation_abstaining_risk"]
    return {
        "Unknown people: loss": _over_steps(
            curves, "loss", "attribute loss (nats per value)", curves.baseline.mean()
        ),
        "Unknown people: confidence": _over_steps(
            curves,
            "max_probability",
            "mean maximum probability",
            tables["mitigation_unknown"].prior_confidence.mean(),
        ),
        "Abstaining": _risks(risk),
    }


def _over_steps(curves: pd.DataFrame, measure: str, unit: str, baseline: float) -> go.Figure:
    trainings = list(dict.fromkeys(curves.training))
    splits = {"train": "known people", "held-out": "held-out people"}
    titles = [f"{name}, {training}" for name in splits.values() for training in trainings]
    figure = make_subplots(2, len(trainings), subplot_titles=titles, shared_yaxes="rows")
    for row, split in enumerate(splits, 1):
        for column, training in enumerate(trainings, 1):
            mine = curves[(curves.split == split) & (curves.training == training)]
            _shares(figure, mine, "step", measure, row, column)
    figure.add_hline(baseline, line=_GREY)
    figure.update_yaxes(title_text=unit, col=1)
    figure.update_xaxes(title_text="optimizer step", row=2)
    n = sample_in_words(curves.seed.nunique())
    note = f"{n}; dotted: answering by the frequencies of values; no run trains on held-out people"
    return with_title(
        figure, f"{unit.capitalize()}, by share of unknown people", note, height=700, width=1050,
        legend={"title": "share of biographies"},
    )  # fmt: skip


def _risks(risk: pd.DataFrame) -> go.Figure:
    trainings, shown = list(dict.fromkeys(risk.training)), risk.detector == "max_probability"
    figure = make_subplots(1, len(trainings), subplot_titles=trainings, shared_yaxes=True)
    for column, training in enumerate(trainings, 1):
        mine = risk[shown & (risk.training == training)]
        _shares(figure, mine, "coverage", "risk", 1, column)
    figure.update_xaxes(title_text="coverage (share of questions answered)")
    figure.update_yaxes(title_text="risk (share of answers that are wrong)", col=1)
    note = f"{sample_in_words(risk.seed.nunique())}; as many questions about known as about "
    note += "held-out people, answered by falling maximum probability of the first token"
    return with_title(
        figure, "What answers are wrong if the least confident are withheld", note, height=480,
        width=1050, legend={"title": "share of biographies"},
    )  # fmt: skip


def _shares(figure: go.Figure, table: pd.DataFrame, x: str, y: str, row: int, column: int) -> None:
    """One line per share of unknown people, with its band."""
    lines = across_seeds(table, series="share", x=x, y=y)
    for share, line in lines.groupby("series"):
        color = qualitative.D3[sorted(lines.series.unique()).index(share) % 10]
        at, name = line.x.to_numpy(), f"{share:g}"
        half = line.margin.fillna(0)
        low, high = ((line.y + sign * half).to_numpy() for sign in (-1, 1))
        figure.add_trace(band(at, low, high, color, group=name), row, column)
        figure.add_trace(
            go.Scatter(
                x=at,
                y=line.y,
                name=name,
                mode="lines",
                line={"color": color},
                legendgroup=name,
                showlegend=row == column == 1,
            ),
            row,
            column,
        )
