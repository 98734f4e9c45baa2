"""Whether the heads and MLPs that recall facts are the same before and after fine-tuning.

Roles are those of ``interp.localization.mechanisms``, on facts about old people. How well two
localizations agree is held against a control: the model before fine-tuning on two samples of facts,
which differ by chance alone.
"""

from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses.beside_paper import with_title
from analyses.studies import mean_in_words
from interp.localization.checkpoint_answers import checkpoint_answers
from interp.localization.mechanisms import MECHANISMS, mechanisms
from interp.suite import load_suite

N_FACTS = 192
SAME, OTHER = "the same facts", "other facts"
_CELL = ["seed", "mechanism", "place", "component"]


def roles_of_run(run: Path, steps: tuple[int, ...], *, device: str = "cpu") -> pd.DataFrame:
    """Of every head and MLP at ``steps``, 0 among them, and at step 0 on other facts, too.

    Returns:
        One row per (step, sample, component, place): ``share`` of clean − corrupted ``logit_diff``
        that is lost without the component, with ``low`` and ``high`` (95 %, over facts), ``named``
        (``interp.localization.mechanisms``), ``gap`` (clean − corrupted, nats).
    """
    suite = load_suite(run)
    n = min(N_FACTS, suite.config.n_people * len(suite.config.attributes))
    facts = [suite.facts(n, attribute=suite.config.attributes, seed=seed) for seed in (0, 1)]
    asked, tables = [(step, SAME, facts[0]) for step in steps] + [(0, OTHER, facts[1])], []
    for step, sample, of in asked:
        model = suite.load(step, device=device)
        answers = checkpoint_answers(model, of, of, questions=("needs", "readings"))
        needed = answers["needs"]
        table = mechanisms(needed, answers["readings"].gain)
        gap = float((needed.clean - needed.corrupted).mean())
        table = table[(table.attribute == "all") & table.kind.isin(["head", "mlp"])]
        tables.append(table.assign(step=step, sample=sample, gap=gap))
    columns = ["step", "sample", "component", "mechanism", "place", "share", "low", "high", "named"]
    return pd.concat(tables, ignore_index=True)[[*columns, "gap"]]


def named_groups(roles: pd.DataFrame) -> dict[str, str]:
    """Groups of weights (``interp.model.weight_groups``) of the components that implement each
    mechanism before fine-tuning, and as many that are needed least for it, by label.

    Args:
        roles: ``roles_of_run``.
    """
    before, groups = roles[(roles.step == 0) & (roles["sample"] == SAME)], {}
    for mechanism in MECHANISMS:
        mine = before[before.mechanism == mechanism]
        named = list(dict.fromkeys(mine.component[mine.named]))
        needed = mine[~mine.component.isin(named)].groupby("component").share.max()
        least = needed.nsmallest(len(named)).index.tolist()
        if len(least) < len(named) or not named:
            continue
        groups[mechanism] = _weights(named)
        groups[f"as many, least needed for {mechanism}"] = _weights(least)
    return groups


def _weights(components: list[str]) -> str:
    return "+".join(name.replace(" ", "-") for name in components)


def kept(table: pd.DataFrame) -> pd.DataFrame:
    """How far roles are those of before, one row per (seed, step, sample) of ``roles_of_run``.

    Returns:
        ``correlation`` (Pearson's) and ``distance`` (root of the mean square) of the shares of all
        components at all places, before and after; ``n_named`` before, of them ``n_still`` after,
        and ``n_added``; ``n_mechanisms`` that are implemented before, and of how many of them the
        component with the largest share is the same, ``n_same_leader``.
    """
    rows = []
    for (seed, step, sample), after in table.groupby(["seed", "step", "sample"]):
        before = table[(table.seed == seed) & (table.step == 0) & (table["sample"] == SAME)]
        both = before.merge(after, on=_CELL, suffixes=("_before", "_after"))
        named, still = both.named_before.astype(bool), both.named_after.astype(bool)
        change = both.share_after - both.share_before
        first, then = (_leaders(both, f"share_{when}") for when in ("before", "after"))
        there = set(both.mechanism[named])
        rows.append({
            "seed": seed, "step": step, "sample": sample,
            "correlation": both.share_before.corr(both.share_after),
            "distance": (change**2).mean() ** 0.5,
            "n_named": named.sum(), "n_still": (named & still).sum(),
            "n_added": (still & ~named).sum(), "n_mechanisms": len(there),
            "n_same_leader": sum(first[name] == then[name] for name in there),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _leaders(table: pd.DataFrame, share: str) -> dict[str, str]:
    """Place and component with the largest share, by mechanism."""
    best = table.loc[table.groupby("mechanism")[share].idxmax()]
    return dict(zip(best.mechanism, best.place + ": " + best.component))


def figure(table: pd.DataFrame) -> go.Figure:
    """Shares of all components before fine-tuning and after, one panel per step, then the control
    on other facts.
    """
    same = table[table["sample"] == SAME]
    before = same[same.step == 0].set_index(_CELL).share
    panels = {f"step {step}": x for step, x in same[same.step > 0].groupby("step")}
    panels["step 0, other facts"] = table[table["sample"] == OTHER]
    drawn = make_subplots(1, len(panels), subplot_titles=list(panels), shared_yaxes=True)
    colors = dict(zip(MECHANISMS, ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728")))
    for column, mine in enumerate(panels.values(), 1):
        after = mine.set_index(_CELL).share.reindex(before.index)
        for mechanism, color in colors.items():
            of = before.index.get_level_values("mechanism") == mechanism
            drawn.add_scatter(
                x=before[of], y=after[of], mode="markers", name=mechanism, row=1, col=column,
                marker={"color": color, "size": 5}, legendgroup=mechanism,
                showlegend=column == 1, text=[cell[3] for cell in before.index[of]],
            )  # fmt: skip
        ends = [float(min(before.min(), 0)), float(before.max())]
        line = {"color": "#777", "dash": "dot"}
        drawn.add_scatter(
            x=ends, y=ends, mode="lines", line=line, showlegend=False, row=1, col=column
        )
        drawn.update_xaxes(title_text="share before", row=1, col=column)
    drawn.update_yaxes(title_text="share after", row=1, col=1)
    n_seeds, n = table.seed.nunique(), len(before)
    note = (
        "share of clean − corrupted logit_diff (nats) that is lost without a head or MLP; "
        f"{n} components and places of {n_seeds} seeds, pooled; dotted: no change"
    )
    title = "Heads and MLPs that recall old facts, before and after fine-tuning on new people"
    return with_title(drawn, title, note, width=1100, height=430, margin={"t": 110})


def said(table: pd.DataFrame) -> list[str]:
    """Whether roles are kept, in words."""
    found, lines = kept(table), []
    for (step, sample), of in found.groupby(["step", "sample"], sort=False):
        if step == 0 and sample == SAME:
            continue
        when = "step 0 on other facts (control)" if step == 0 else f"step {step}"
        lines.append(
            f"roles at {when} against step 0: correlation of shares "
            f"{mean_in_words(of.correlation.to_numpy(), 3)}; of {of.n_named.sum()} named "
            f"components of {len(of)} seeds {of.n_still.sum()} are still named, "
            f"{of.n_added.sum()} are added; the component with the largest share is the same in "
            f"{of.n_same_leader.sum()} of {of.n_mechanisms.sum()} mechanisms"
        )
    return lines
