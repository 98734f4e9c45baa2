"""How well can a known person be told from one never seen, by what, and since when?

Known are training people, unknown held-out ones, as many of each. Their names and values are drawn
alike, every part of a name occurs with known people, and both are asked in evaluation templates
drawn alike: the two differ in nothing but training, so that at step 0 no detector can work. The
length of the prompt is a control that must tell nothing at any step.

Every detector's direction is fixed beforehand (higher = known), so an AUROC may be below 0.5. It is
over prompts, its interval over people of one run: ``interp.localization.selective_prediction``.
Detectors are compared with plain confidence, the maximum probability of the first value token.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import qualitative

from analyses.beside_paper import across_seeds, with_title
from analyses.studies import mean_in_words
from interp.data.facts import FactSet
from interp.localization.answer_confidence import answer_confidence, mlp_activity
from interp.localization.attention_to_names import attention
from interp.localization.formation import place_of
from interp.localization.located import locate
from interp.localization.people_probe import (
    left_out_scores,
    scores_of_chosen_layer,
    shuffled_by_person,
)
from interp.localization.probes import PLACES, STREAM, stream
from interp.localization.prompts_about import (
    known_and_unknown,
    prompts_about,
    value_tokens,
)
from interp.localization.selective_prediction import (
    aurc,
    auroc,
    auroc_table,
    resampled_auroc,
    risk_coverage,
)
from interp.model.decoder import HookedDecoder
from interp.report.figures.curves import band
from interp.statistics import percentiles
from interp.suite import Suite, load_suite

N_STEPS = 12
"""Checkpoints asked, evenly spaced in their order, first and last included."""
N_SHUFFLES = 20
"""Of the labels of people, at the last step."""
CONFIDENCE = "maximum probability"
CONTROL = "prompt length (control)"
FROM_OUTPUT = {
    CONFIDENCE: "max_probability",
    "negative entropy": "negative_entropy",
    "logit margin": "logit_margin",
    "geometric margin": "geometric_margin",
    "margin among values": "value_margin",
}
PROBED = {"last name": "name_last", "answer position": "final"}
DRAWN = (CONFIDENCE, "geometric margin", "probe, last name", "probe, answer position",
         "memory's output, answer position", "extraction attention to names", CONTROL)  # fmt: skip
"""Detectors in the figures over training and coverage; the others lie on top of these."""
COVERAGES = np.linspace(0.05, 1, 20)


def detection_of_run(run: Path, device: str) -> dict[str, pd.DataFrame]:
    """Tables by CSV name.

    ``hallucination_detection``: AUROC of every detector at every step asked
    (``selective_prediction.auroc_table``). ``hallucination_probes``: AUROC of a probe after each
    layer, with true labels and with labels shuffled over people. ``hallucination_located``: the MLP
    and heads that detectors read. ``hallucination_risk_coverage`` and ``hallucination_aurc``: at
    the last step, answering only where a detector is high.
    """
    suite = load_suite(run)
    asked = known_and_unknown(suite)
    facts, known = prompts_about(suite, asked), asked.known.to_numpy()
    located = locate(suite.load(suite.steps[-1], device=device), suite)
    person = facts.texts.person.to_numpy()
    detected, probed = [], []
    steps = asked_steps(suite)
    for step in steps:
        model = suite.load(step, device=device)
        confidence, activity = _by_model(suite, model, facts, located)
        n_shuffles = N_SHUFFLES if step == steps[-1] else 0
        of_probes, layers = _by_probes(model, facts, known, n_shuffles)
        probed.append(layers.assign(step=step))
        scores = activity | of_probes | {CONTROL: facts.lengths.numpy().astype(float)}
        table = auroc_table(scores, known, person, reference=CONFIDENCE)
        detected.append(table.assign(step=step, n_known=int(known.sum()), n=len(known)))
    correct = confidence.correct.to_numpy()
    return {
        "hallucination_detection": pd.concat(detected, ignore_index=True),
        "hallucination_probes": pd.concat(probed, ignore_index=True),
        "hallucination_located": located,
        "hallucination_risk_coverage": _at_coverages(scores, correct).assign(step=steps[-1]),
        "hallucination_aurc": _areas(scores, correct, known).assign(step=steps[-1]),
    }


def asked_steps(suite: Suite) -> list[int]:
    """``N_STEPS`` of a run's checkpoints, the first and the last among them."""
    at = np.linspace(0, len(suite.steps) - 1, N_STEPS).round().astype(int)
    return [suite.steps[i] for i in dict.fromkeys(at)]


def _by_model(
    suite: Suite, model: HookedDecoder, facts: FactSet, located: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """``answer_confidence``, and scores by detector: from the output, the memory and the heads."""
    confidence = answer_confidence(model, facts, value_tokens(suite))
    scores = {name: confidence[column].to_numpy() for name, column in FROM_OUTPUT.items()}
    memory = located[located.mechanism == "memory"].component.iloc[0]
    activity = mlp_activity(model, facts).isel(layer=int(memory.split()[0][1:]))
    for what, site in (("output", "mlp_out"), ("neurons", "mlp_post")):
        for where, role in PROBED.items():
            norm = activity.sel(site=site, role=role)
            scores[f"memory's {what}, {where}"] = norm.to_numpy()
    pattern = attention(model, facts).pattern
    heads = [place_of(x) for x in located[located.mechanism == "extraction"].component]
    for name, edge in (("names", "final ← names"), ("last name", "final ← name_last")):
        of_heads = [pattern.sel(edge=edge).isel(layer=i, head=h).to_numpy() for i, h in heads]
        scores[f"extraction attention to {name}"] = np.mean(of_heads, 0).astype(float)
    return confidence, scores


def _by_probes(
    model: HookedDecoder, facts: FactSet, known: np.ndarray, n_shuffles: int
) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    """Scores of the probes whose layer is chosen on the people they are fitted on, and a table of
    AUROC after each layer: with true labels, and the mean and the central 95 % over ``n_shuffles``
    deals of the labels to other people.
    """
    streams, person = stream(model, facts), facts.texts.person.to_numpy()
    scores, rows = {}, []
    for where, role in PROBED.items():
        features = streams[:, STREAM.index("resid_post"), PLACES.index(role)].astype(float)
        scores[f"probe, {where}"], _ = scores_of_chosen_layer(features, known, person)
        dealt = [shuffled_by_person(known, person, seed=seed) for seed in range(n_shuffles)]
        chance = [[auroc(x, y) for x in left_out_scores(features, y, person)] for y in dealt]
        for layer, score in enumerate(left_out_scores(features, known, person)):
            at = {"place": where, "layer": layer}
            ends = percentiles(resampled_auroc(score, known, person), 0.95)
            rows.append(at | _row("true", auroc(score, known), ends))
            if n_shuffles:
                of_layer = np.array(chance)[:, layer]
                rows.append(at | _row("shuffled", of_layer.mean(), percentiles(of_layer, 0.95)))
    return scores, pd.DataFrame(rows)


def _row(labels: str, mean: float, ends: tuple[np.ndarray, np.ndarray]) -> dict[str, object]:
    return {"labels": labels, "auroc": mean, "low": float(ends[0]), "high": float(ends[1])}


def _at_coverages(scores: dict[str, np.ndarray], correct: np.ndarray) -> pd.DataFrame:
    """One row per (detector, coverage): risk at the highest threshold that answers at least that
    share of all prompts, known and unknown.
    """
    rows = []
    for name, score in scores.items():
        curve = risk_coverage(score, correct)
        at = np.searchsorted(curve.coverage, COVERAGES - 1e-9)
        rows.append(curve.iloc[at].assign(detector=name, asked_coverage=COVERAGES))
    return pd.concat(rows, ignore_index=True)


def _areas(scores: dict[str, np.ndarray], correct: np.ndarray, known: np.ndarray) -> pd.DataFrame:
    """One row per detector: ``aurc``, the least that any order of the prompts gives, and the share
    of wrong answers over all prompts, known ones and unknown ones.
    """
    risks = {"risk": ~correct, "risk_known": ~correct[known], "risk_unknown": ~correct[~known]}
    means = {name: float(wrong.mean()) for name, wrong in risks.items()}
    least = aurc(correct.astype(float), correct)
    rows = [{"detector": x, "aurc": aurc(y, correct), "least": least} for x, y in scores.items()]
    return pd.DataFrame(rows).assign(**means)


def figures(tables: dict[str, pd.DataFrame]) -> dict[str, go.Figure]:
    """Figures, by heading; tables with a column ``seed``."""
    detected = tables["hallucination_detection"]
    probes, risks = tables["hallucination_probes"], tables["hallucination_risk_coverage"]
    n_seeds, one = detected.seed.nunique(), detected.iloc[0]
    note = (
        f"{one.n_known} prompts about known, {one.n - one.n_known} about unknown people a run; "
        f"mean and 95 % interval over {n_seeds} seeds"
    )
    last = detected[detected.step == detected.step.max()]
    labels = probes[probes.step == probes.step.max()].assign(
        of=lambda x: x.place + ", " + x.labels + " labels"
    )
    return {
        "Known or never seen: detectors over training": _lines(
            across_seeds(_drawn(detected), series="detector", x="step", y="auroc"),
            "How well known people are told from unknown ones", note, "optimizer step",
            "AUROC (0.5 = not at all)",
        ),
        "Known or never seen: against plain confidence": _against_confidence(last, note),
        "Known or never seen: linear probes after each layer": _lines(
            across_seeds(labels, series="of", x="layer", y="auroc"),
            "Logistic regression on the residual stream, people left out, last step", note,
            "after layer", "AUROC (0.5 = not at all)",
        ),
        "Abstaining: risk and coverage": _lines(
            across_seeds(_drawn(risks), series="detector", x="asked_coverage", y="risk"),
            "Wrong answers when only prompts with the highest scores are answered, last step",
            note, "coverage (share of prompts answered)", "risk (share of answers wrong)",
        ),
    }  # fmt: skip


def _drawn(table: pd.DataFrame) -> pd.DataFrame:
    return table[table.detector.isin(DRAWN)]


def _lines(table: pd.DataFrame, title: str, note: str, x: str, y: str) -> go.Figure:
    """One line and band per series of ``across_seeds``."""
    figure = go.Figure()
    for i, (series, line) in enumerate(table.groupby("series", sort=False)):
        color = qualitative.Dark24[i % 24]
        half = line.margin.fillna(0)
        ends = (line.x.to_numpy(), (line.y - half).to_numpy(), (line.y + half).to_numpy())
        figure.add_trace(band(*ends, color, group=series))
        figure.add_trace(
            go.Scatter(
                x=line.x, y=line.y, name=series, legendgroup=series, mode="lines+markers",
                line={"color": color},
            )
        )  # fmt: skip
    axes = {"xaxis_title": x, "yaxis_title": y}
    return with_title(figure, title, note, **axes, height=560, width=1000)


def _against_confidence(last: pd.DataFrame, note: str) -> go.Figure:
    found = across_seeds(
        last[last.detector != CONFIDENCE], series="detector", x="step", y="difference"
    ).sort_values("y")
    figure = go.Figure(
        go.Scatter(
            x=found.y,
            y=found.series,
            error_x={"array": found.margin.fillna(0)},
            mode="markers",
        )
    )
    title = "AUROC minus that of the maximum probability, last step"
    axes = {"xaxis_title": "difference of AUROC (negative: confidence is better)"}
    return with_title(figure.add_vline(0, line_dash="dot"), title, note, **axes, height=520)


def said(tables: dict[str, pd.DataFrame]) -> str:
    """The findings in words, one line each; tables with a column ``seed``. Intervals are over seeds
    where they are given as ±, over people of one run in brackets.
    """
    detected, probes = tables["hallucination_detection"], tables["hallucination_probes"]
    areas, last = tables["hallucination_aurc"], detected[detected.step == detected.step.max()]
    plain = last[last.detector == CONFIDENCE].auroc.to_numpy()
    inside = last[~last.detector.isin([*FROM_OUTPUT, CONTROL])].groupby("detector").auroc.mean()
    lines = [
        f"known people are told from unknown ones by the {CONFIDENCE} with an AUROC of "
        f"{mean_in_words(plain, 2)} at the last step; by probes, the memory's activity and the "
        f"extraction heads' attention with {inside.min():.2f} to {inside.max():.2f}"
    ]
    better = [
        f"{row.detector} of seed {row.seed} ({row.difference:+.3f} [{row.difference_low:.3f}, "
        f"{row.difference_high:.3f}])"
        for row in last[last.difference_low > 0].itertuples()
    ]
    lines.append(f"better than that: {', '.join(better) or 'no detector'}")
    lines.append(
        "of the checkpoints asked, confidence tells them apart from "
        + ", ".join(_since(table) for _, table in detected.groupby("seed"))
    )
    ends = probes[probes.step == probes.step.max()]
    means = ends.groupby(["labels", "place", "layer"]).auroc.mean()
    lines.append(
        "linear probes, over places and layers: AUROC "
        + ", ".join(
            f"{means[labels].min():.2f} to {means[labels].max():.2f} with {labels} labels"
            for labels in ends.labels.unique()
        )
    )
    plain = areas[areas.detector == CONFIDENCE]
    lines.append(
        f"answering all prompts, {mean_in_words(plain.risk.to_numpy(), 3)} are wrong "
        f"({mean_in_words(plain.risk_known.to_numpy(), 3)} of known people's, "
        f"{mean_in_words(plain.risk_unknown.to_numpy(), 3)} of unknown people's); area under the "
        f"risk-coverage curve by confidence {mean_in_words(plain.aurc.to_numpy(), 3)}, at best "
        f"{mean_in_words(plain.least.to_numpy(), 3)}"
    )
    return "\n".join(lines)


def _since(detected: pd.DataFrame) -> str:
    """The first step from which on confidence tells known from unknown people of a run."""
    of = detected[detected.detector == CONFIDENCE].sort_values("step")
    lasting = np.flip(np.logical_and.accumulate(np.flip(of.low.to_numpy() > 0.5)))
    if not lasting.any():
        return f"no step (seed {of.seed.iloc[0]})"
    row = of[lasting].iloc[0]
    return (
        f"step {row.step} (seed {row.seed}, AUROC {row.auroc:.2f} [{row.low:.2f}, {row.high:.2f}])"
    )
