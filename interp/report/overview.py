"""One page on a run: what was learned when, by which heads and MLPs, and the evidence, all panels
moved by one slider over training.

The functions here turn tables and data sets into the numbers that ``templates/overview.js`` draws;
nothing is computed in the browser but what is shown. NaN becomes null: missing, never 0.
"""

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import pandas as pd
import xarray as xr
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from interp.dynamics.plateau import Phases
from interp.report.page import anchor, templates
from interp.statistics import margin

ROLE_WORDS = {
    "bos": "start",
    "name_first": "first name",
    "name_middle": "middle name",
    "name_last": "last name",
    "cue": "sentence",
    "final": "answer position",
}
PLACE_WORDS = {
    "name_middle ← name_first": "first → middle name",
    "name_last ← other names": "other names → last name",
    "final ← names": "names → answer",
    "final ← name_last": "last name → answer",
    "final ← cue": "sentence → answer",
    "final ← rest": "other tokens → answer",
}
WHAT_IT_DOES = {
    "name attention": "heads that carry parts of a name to the next part",
    "memory": "MLPs after which the value can be read, and before which it can't",
    "extraction": "heads that carry what is known about the name to the answer",
    "relation": "heads that carry which attribute is asked for to the answer",
}
_KINDS = {"cause": "needed", "score": "in place"}
"""Curves of a mechanism on the page, and as ``mechanism_curves`` labels them."""
MOST_COMPONENTS = 12
"""Of each mechanism."""
DIGITS = 4


@dataclass(frozen=True)
class Panel:
    """A figure: the function of overview.js that draws it, its title and caption."""

    name: str
    title: str
    caption: str


@dataclass(frozen=True)
class Remark:
    """A sentence under a section, a command and a link, where there are any."""

    text: str
    code: str = ""
    link: str = ""


@dataclass(frozen=True)
class PageSection:
    """A section of the page; ``choices`` are the selectors above its panels."""

    heading: str
    text: str = ""
    panels: Sequence[Panel] = ()
    choices: Sequence[str] = ()
    lines: Sequence[Remark] = ()
    rows: Sequence[tuple[str, str]] = ()
    screen: bool = False
    """``text`` is about controls, and not printed."""
    wide: bool = False
    """Panels stand side by side where there is room."""

    @property
    def anchor(self) -> str:
        return anchor(self.heading)


@dataclass(frozen=True)
class LinePanel:
    """A panel of lines with bands, given by its data; ``x`` is ``training step`` or another axis.
    Each line has ``name``, ``x``, ``mean``, ``low`` and ``high``.
    """

    x: str
    y: str
    n: str
    lines: Sequence[Mapping[str, object]]
    over_training: bool = False


@dataclass(frozen=True)
class Overview:
    """What the panels show; parts that were not computed are None."""

    name: str
    steps: Sequence[int]
    """Of the slider."""
    model: Mapping[str, object]
    training: Mapping[str, object] | None = None
    mechanisms: Mapping[str, object] | None = None
    patching: Mapping[str, object] | None = None
    attention: Mapping[str, object] | None = None
    plain: Mapping[str, LinePanel] = field(default_factory=dict)
    first: Mapping[str, str] = field(default_factory=dict)
    """Choices that the page begins with."""


def overview_page(
    title: str,
    subtitle: str,
    sentences: Sequence[str],
    chapters: Sequence[PageSection],
    data: Overview,
    *,
    warnings: Sequence[str] = (),
) -> str:
    """The page, complete in one file."""
    text = json.dumps(_plain(asdict(data)), separators=(",", ":"), allow_nan=False)
    return templates().get_template("overview.html.j2").render(
        title=title,
        subtitle=subtitle,
        sentences=sentences,
        warnings=warnings,
        sections=chapters,
        # "<" can't end the script that holds the data
        data=Markup(text.replace("<", "\\u003c").replace("&", "\\u0026")),
        plotly=Markup(get_plotlyjs()),
    )  # fmt: skip


def _plain(value: object) -> object:
    """``value`` as JSON has it; numbers with ``DIGITS`` digits, NaN as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(x) for key, x in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(x) for x in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None
    if isinstance(value, np.generic):
        return value.item()
    return value


def training_of(
    metrics: pd.DataFrame, baseline: float, found: Phases, n_people: Mapping[str, int]
) -> dict:
    """Loss (nats per value), accuracy and highest probability over training.

    Args:
        metrics: the run's, as ``suite.metrics``.
        n_people: evaluated, by split.
    """
    average = metrics[metrics.attribute == "average"]
    measures = ("loss", "accuracy", "max_probability")
    steps = np.unique(average.step)
    splits = {
        split: {x: table.set_index("step")[x].reindex(steps).to_numpy() for x in measures}
        | {"n": n_people.get(split, 0)}
        for split, table in average.groupby("split", sort=False)
    }
    known = metrics[(metrics.split == "train") & (metrics.attribute != "average")]
    plateau = found.plateau_start < found.plateau_end
    return {
        "steps": steps,
        "splits": splits,
        "baseline": baseline,
        "plateau": [found.plateau_start, found.plateau_end] if plateau else None,
        "attributes": {
            name: table.set_index("step").accuracy.reindex(steps).to_numpy()
            for name, table in known.groupby("attribute", sort=False)
        },
    }


def mechanisms_of(
    table: pd.DataFrame,
    curves: xr.DataArray,
    formed: xr.Dataset | None,
    attention: xr.Dataset,
    ends: Mapping[str, tuple[str, Sequence[str]]],
) -> dict:
    """Curves, times and components of the mechanisms.

    Args:
        table: one row per (step, cell) of ``interp.localization.mechanisms``.
        curves: (curve, step, fact), with labels such as ``memory: needed``.
        formed: ``interp.dynamics.emergence.emergence`` of them; None with too few checkpoints.
        attention: ``pattern`` (step, layer, head, edge, fact).
        ends: destination and sources of each place of heads.
    """
    names = list(WHAT_IT_DOES)
    return {
        "names": names,
        "short": WHAT_IT_DOES,
        "steps": curves.step.values,
        "n": curves.sizes["fact"],
        "curves": {name: _curves(table, curves, name) for name in names},
        "times": {} if formed is None else {name: _times(formed, name) for name in names},
        "components": _components(table, ends),
        "attention": {"of": _edges(attention)},
    }


def _curves(table: pd.DataFrame, curves: xr.DataArray, mechanism: str) -> dict:
    """``cause``: the share lost without all heads (or MLPs) at the place of the component with the
    largest share at the last step, where the two prompts are told apart; ``score``: the curve in
    place. None where no component implements the mechanism at the last step.
    """
    mine = table[(table.attribute == "all") & (table.mechanism == mechanism)]
    last = mine[(mine.step == mine.step.max()) & mine.named]
    label = f"{mechanism}: {_KINDS['score']}"
    score = _with_margin(curves.sel(curve=label)) if label in curves.curve.values else None
    if last.empty:
        return {"cause": None, "score": score}
    whole = mine[(mine.kind == "all") & (mine.place == last.nlargest(1, "share").place.iloc[0])]
    whole = whole.set_index("step").reindex(curves.step.values)
    apart = whole.told_apart.to_numpy(bool)
    names = {"mean": "share", "low": "low", "high": "high"}
    cause = {name: whole[x].where(apart).to_numpy(float) for name, x in names.items()}
    return {"cause": cause, "score": score}


def _with_margin(values: xr.DataArray) -> dict:
    """Mean over facts with its 95 % interval (Student's t)."""
    by_fact = values.transpose(..., "fact").values
    mean, half = by_fact.mean(-1), margin(by_fact)
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _times(formed: xr.Dataset, mechanism: str) -> dict:
    found = {}
    for kind, word in _KINDS.items():
        label = f"{mechanism}: {word}"
        if label in formed.curve.values and bool(formed.emerged.sel(curve=label)):
            at = formed.sel(curve=label)
            marks = {x: float(at[x]) for x in ("onset", "midpoint", "completion")}
            bounds = {"low": float(at.midpoint_low), "high": float(at.midpoint_high)}
            found[kind] = marks | bounds | {"spacing": float(at.resolution_midpoint)}
    return found


def _components(table: pd.DataFrame, ends: Mapping[str, tuple[str, Sequence[str]]]) -> list[dict]:
    """Heads and MLPs, by mechanism, those with the largest share at the last step first. ``ever``:
    shown to matter at some step.
    """
    whole = table[(table.attribute == "all") & table.kind.isin(["head", "mlp"])]
    rows = []
    for (mechanism, place, component), of in whole.groupby(
        ["mechanism", "place", "component"], sort=False
    ):
        of = of.sort_values("step")
        shares = {x: of[x].where(of.told_apart).to_numpy(float) for x in ("share", "low", "high")}
        dest, src = ends.get(place, (place, ()))
        rows.append({
            "id": f"{mechanism}|{component}|{place}", "mechanism": mechanism,
            "component": component, "place": place, "kind": of.kind.iloc[0], "dest": dest,
            "src": list(src), "layer": int(component[1:].split("H")[0].split()[0]),
            "label": PLACE_WORDS.get(place, ROLE_WORDS.get(place, place)),
            "named": of.named.to_numpy(), "ever": bool(of.named.any()), **shares,
        })  # fmt: skip
    order = list(WHAT_IT_DOES)
    rows.sort(key=lambda x: (order.index(x["mechanism"]), -np.nan_to_num(x["share"][-1])))
    named = [x for x in rows if x["ever"]]
    by_mechanism = [[x for x in named if x["mechanism"] == mechanism] for mechanism in order]
    return [x for of in by_mechanism for x in of[:MOST_COMPONENTS]]


def _edges(attention: xr.Dataset) -> dict:
    pattern = attention.pattern.transpose("layer", "head", "edge", "step", "fact")
    kept = [str(x) for x in pattern.edge.values if str(x) in PLACE_WORDS]
    return {
        f"L{layer}H{head}": {
            edge: _with_margin(pattern.sel(edge=edge)[layer, head]) for edge in kept
        }
        for layer in range(pattern.sizes["layer"])
        for head in range(pattern.sizes["head"])
    }


def attention_of(
    patterns: Mapping[str, np.ndarray],
    prompts: Mapping[str, Mapping[str, object]],
    steps: Sequence[int],
) -> dict:
    """Attention of all heads over the tokens of example prompts, in 256 levels.

    Args:
        patterns: (step, layer, head, dest, src), by label of the prompt.
        prompts: ``tokens``, ``roles`` and ``answer`` of each.
    """
    _, layers, heads, _, _ = next(iter(patterns.values())).shape
    return {
        "steps": list(steps),
        "layers": layers,
        "heads": heads,
        "prompts": [
            {"label": label, **prompts[label], "patterns": _as_bytes(pattern)}
            for label, pattern in patterns.items()
        ],
    }


def _as_bytes(shares: np.ndarray) -> str:
    return b64encode(np.rint(shares * 255).astype(np.uint8).tobytes()).decode()
