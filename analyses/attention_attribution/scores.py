"""Which parts of the residual stream make a head attend to names, at every checkpoint?

Every head's score contrasts (``interp.attribution.attention_scores``) are computed on the same
facts at every checkpoint. For each contrast the page leads with the head whose score is largest at
the last step, as a sum over pairs of query and key part, and says how well the terms agree with
patching the same parts.
"""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from analyses.agreement import MEASURES, agreement_of, interval_text
from analyses.attention_attribution import AttentionAttributionConfig
from analyses.checkpoints import analyse_checkpoints
from interp.attribution.attention_scores import CONTRASTS, score_attribution
from interp.data.facts import FactSet
from interp.dynamics.emergence import MIN_CHECKPOINTS, emergence
from interp.report.figures.localization_maps import lines
from interp.report.figures.score_parts import score_by_pairs
from interp.report.page import Block, Bullets, Paragraph, Plot, Section, Table, page
from interp.statistics import margin
from interp.suite import Suite

NAME = "attention-attribution"
_METHOD = (
    "A contrast is the mean attention score (before the softmax) from the destination to some "
    "tokens minus that to others. With the LayerNorm scale held it is a sum over pairs: what one "
    "part of the residual stream wrote into the query times what another wrote into the keys. "
    "bias stands for all that no token decides. A large term says what the head's attention is "
    "made of, not that what it moves is used."
)


@dataclass(frozen=True)
class Leading:
    """The head whose contrast is largest at the last step."""

    contrast: str
    layer: int
    head: int

    @property
    def label(self) -> str:
        return f"L{self.layer}H{self.head}"


def run_and_report(config: AttentionAttributionConfig, *, command: str, bar) -> str:
    """The findings in words, and the path of the report that was written."""
    return analyse_checkpoints(*(config, NAME, _of_step, report, said), command=command, bar=bar)


def _of_step(
    suite: Suite, step: int, names: list[str], *, facts: FactSet, device: str
) -> dict[str, xr.Dataset]:
    return {NAME: summary(score_attribution(suite.load(step, device=device), facts))}


def summary(scores: xr.Dataset) -> xr.Dataset:
    """Means over facts of ``score_attribution`` with halves of their 95 % intervals, ``score`` of
    each fact, and ``agreement``.
    """
    found = {"score_of_fact": scores.score}
    for name in ("score", "terms", "estimated", "patched"):
        found[name] = scores[name].mean("fact")
        found[f"{name}_margin"] = xr.apply_ufunc(margin, scores[name], input_core_dims=[["fact"]])
    return xr.Dataset(found).astype(np.float32).merge(agreement(scores))


def agreement(scores: xr.Dataset) -> xr.Dataset:
    """How well ``estimated`` changes of a contrast agree with ``patched`` ones, over all heads,
    parts and facts (measure, side, contrast): correlations, −1 to 1, and the share of the same
    sign; with 95 % percentile bootstrap intervals over facts.
    """
    dims = ("side", "contrast", "layer", "head", "part", "fact")
    pair = [
        scores[name].transpose(*dims).stack(cell=dims[2:5], create_index=False).astype(float)
        for name in ("estimated", "patched")
    ]
    places = [
        [{"side": side, "contrast": contrast} for contrast in scores.contrast.values]
        for side in scores.side.values
    ]
    found = np.array([
        [agreement_of(*(x.sel(at).transpose("cell", "fact").values for x in pair)) for at in row]
        for row in places
    ])  # fmt: skip
    names = ("agreement", "agreement_low", "agreement_high")
    coords = {"measure": list(MEASURES), "side": scores.side, "contrast": scores.contrast}
    values = {
        name: (("side", "contrast", "measure"), found[:, :, i]) for i, name in enumerate(names)
    }
    return xr.Dataset(values, coords).transpose("measure", "side", "contrast")


def leading(found: xr.Dataset) -> list[Leading]:
    """The head with the largest score at the last step, for each contrast that facts have."""
    last, heads = found.score.isel(step=-1), []
    for contrast in CONTRASTS:
        of_contrast = last.sel(contrast=contrast)
        if of_contrast.notnull().any():
            at = of_contrast.argmax(("layer", "head"))
            heads.append(Leading(contrast, int(at["layer"]), int(at["head"])))
    return heads


def said(found: xr.Dataset) -> list[str]:
    """For each contrast its leading head, its largest pairs of parts, and their agreement with
    patching, at the last step.
    """
    lines_of = []
    last = found.isel(step=-1)
    for head in leading(found):
        of_head = last.sel(contrast=head.contrast).isel(layer=head.layer, head=head.head)
        pairs = of_head.terms.stack(pair=("query_part", "key_part")).dropna("pair")
        largest = pairs.sortby(-np.abs(pairs)).isel(pair=slice(3))
        margins = of_head.terms_margin.stack(pair=("query_part", "key_part")).sel(pair=largest.pair)
        terms = ", ".join(
            f"{query} · {key} {float(x):+.2f} ± {float(half):.2f}"
            for (query, key), x, half in zip(largest.pair.values, largest, margins)
        )
        lines_of.append(
            f"{head.contrast}: {head.label}, score {float(of_head.score):+.2f} ± "
            f"{float(of_head.score_margin):.2f}; of it {terms}"
        )
    return lines_of


def report(suite: Suite, found: xr.Dataset, command: str) -> str:
    """HTML page with a section per contrast."""
    n = found.sizes["fact"]
    when = {head.contrast: _when(found, head) for head in leading(found)}
    content = [Section(head.contrast, _evidence(found, head, n)) for head in leading(found)]
    lead = [
        Bullets([f"{text}; {when[text.partition(': L')[0]]}" for text in said(found)], "lead"),
        Paragraph(_METHOD),
    ]
    rows = {"command": command, "asked": found.attrs.get("request", "")}
    rows["made by"] = found.attrs.get("made_by", "")
    content.append(Section("What was run", [Table([], list(rows.items()), code=True)]))
    return page(f"Why heads of {suite.path.resolve().name} attend to names", lead, content)


def _when(found: xr.Dataset, head: Leading) -> str:
    """When the head's contrast rose, in words."""
    if found.sizes["step"] < MIN_CHECKPOINTS:
        return f"too few checkpoints ({found.sizes['step']}) to say since when"
    curve = found.score_of_fact.sel(contrast=head.contrast).isel(layer=head.layer, head=head.head)
    rose = emergence(curve.drop_vars(("layer", "head", "contrast"), errors="ignore"))
    if not bool(rose.emerged):
        return f"no time of its rise ({rose.reason.item()})"
    low, mid, high = (float(rose[f"midpoint{end}"]) for end in ("_low", "", "_high"))
    return f"half of its rise at step {mid:.0f} [{low:.0f}, {high:.0f}]"


def _evidence(found: xr.Dataset, head: Leading, n: int) -> list[Block]:
    of_contrast = found.sel(contrast=head.contrast)
    of_head = of_contrast.isel(layer=head.layer, head=head.head)
    name = f"{list(CONTRASTS).index(head.contrast)}"
    every = of_contrast.score.isel(step=-1)
    top = every.stack(at=("layer", "head")).sortby(-np.abs(every.stack(at=("layer", "head"))))
    curves = {
        f"L{layer}H{h}": of_contrast.score.isel(layer=layer, head=h)
        for layer, h in top.at.values[:6]
    }
    note = f"n = {n} facts, 95 % intervals"
    measures = found.isel(step=-1).sel(contrast=head.contrast)
    return [
        Plot(
            f"pairs-{name}",
            score_by_pairs(
                of_head, title=f"{head.label}, {head.contrast}", subtitle=f"clean prompts, {note}"
            ),
        ),
        Plot(
            f"scores-{name}",
            lines(
                curves,
                f"Score over training, {head.contrast}",
                f"the six heads with the largest score at the last step, n = {n} facts",
                "attention score",
            ),
        ),
        Paragraph(
            "How well terms agree with a cause, the same part taken from the corrupted run, over "
            "all heads and parts at the last step:"
        ),
        Table(
            ["part of", *MEASURES],
            [
                [side, *(interval_text(measures.sel(side=side, measure=m)) for m in MEASURES)]
                for side in ("query", "key")
            ],
        ),
    ]
