"""What attention attribution says of a run, in words and on a page."""

import numpy as np
import xarray as xr

from analyses.agreement import MEASURES, interval_text
from analyses.checkpoints import halves
from interp.dynamics.emergence import MIN_CHECKPOINTS, emergence
from interp.report.figures.localization_maps import lines
from interp.report.figures.waterfall import waterfall
from interp.report.page import Block, Bullets, Paragraph, Plot, Section, Table, page
from interp.statistics import margin
from interp.suite import Suite

_METHOD = (
    "A contrast is the mean attention score (before the softmax) from the destination to some "
    "tokens minus that to others. With the LayerNorm scale held it is a sum over pairs: what one "
    "part of the residual stream wrote into the query times what another wrote into the keys. "
    "bias stands for all that no token decides. Each section shows the head whose attention to the "
    "first tokens the answer needs most at the last step: cutting it before the softmax costs most "
    "logit difference. It is found on one half of the facts, and what it costs is of the other. A "
    "large term says what the attention is made of, not that it matters."
)
_N_PAIRS, _N_HEADS, _N_MOVERS = 3, 6, 3
EXTRACTION = "final: names − cue"
_PAIR = ("query_part", "key_part")
_MOVED = {"moved": "term", "moved_margin": "term_margin", "wrote": "total"}
_MOVED |= {"wrote_margin": "total_margin"}


def said(found: xr.Dataset) -> list[str]:
    """For each contrast the head that is needed most, its largest pairs of parts, and since when;
    and what the heads that write most of the answer move, at the last step.
    """
    last = found.isel(step=-1)
    lines_of = [_said_of(found, contrast) for contrast in contrasts_of(found)]
    return [*lines_of, *(_moves(last, *head) for head in _movers(found))]


def _said_of(found: xr.Dataset, contrast: str) -> str:
    of_head = head_of(found, contrast)
    last = of_head.isel(step=-1)
    cost = last.needed.values[halves(found.attribute.values)[1]]
    (query, key), *_ = _largest(last)
    largest = last.sel(query_part=query, key_part=key)
    said = f"{cost.mean():+.2f} ± {float(margin(cost)):.2f} nats"
    head = f"{last.leading.item()} is needed most ({said})"
    if not cost.mean() > margin(cost):
        head = f"no head is shown to be needed; first is {last.leading.item()}, {said}"
    return (
        f"{contrast}: {head}. Its score, "
        f"{_pm(last, 'score')}, is largest in {query} · {key}, {_pm(largest, 'terms')}; "
        f"{_when(of_head.score_of_fact)}. From one name to another it differs by "
        f"{_pm(last, 'changed').removeprefix('+')}."
    )


def _pm(at: xr.Dataset, name: str) -> str:
    return f"{float(at[name]):+.2f} ± {float(at[f'{name}_margin']):.2f}"


def report(suite: Suite, found: xr.Dataset, command: str) -> str:
    """HTML page with a section per contrast, and one of what heads move."""
    sections = [Section(contrast, _evidence(found, contrast)) for contrast in contrasts_of(found)]
    sections.append(Section("What heads move to the answer", _moved(found)))
    rows = {"command": command, "asked": found.attrs.get("request", "")}
    rows["made by"] = found.attrs.get("made_by", "")
    sections.append(Section("What was run", [Table([], list(rows.items()), code=True)]))
    lead = [Bullets(said(found), "lead"), Paragraph(_METHOD)]
    return page(f"Why heads of {suite.path.resolve().name} attend to names", lead, sections)


def contrasts_of(found: xr.Dataset) -> list[str]:
    """Contrasts that some prompt has."""
    known = found.score.isel(step=-1).notnull().any(("layer", "head"))
    return found.contrast.values[known.values].tolist()


def head_of(found: xr.Dataset, contrast: str) -> xr.Dataset:
    """The results of a contrast's leading head."""
    of_contrast = found.sel(contrast=contrast)
    layer, head = of_contrast.leading.item()[1:].split("H")
    return of_contrast.isel(layer=int(layer), head=int(head))


def _largest(last: xr.Dataset) -> list[tuple[str, str]]:
    """The pairs of parts with the largest terms, of one head at one step."""
    pairs = last.terms.stack(pair=_PAIR).dropna("pair")
    return list(pairs.sortby(-np.abs(pairs)).pair.values[:_N_PAIRS])


def _when(curve: xr.DataArray) -> str:
    """When a curve (step, fact) rose, or fell, in words."""
    if curve.sizes["step"] < MIN_CHECKPOINTS:
        return f"too few checkpoints to say since when ({curve.sizes['step']})"
    sign = -1 if float(curve.isel(step=-1).mean() - curve.isel(step=0).mean()) < 0 else 1
    change = (sign * curve).dropna("fact", how="all").reset_coords(drop=True)
    rose = emergence(change)
    if not bool(rose.emerged):
        return f"no time of its change ({rose.reason.item()})"
    low, mid, high = (float(rose[f"midpoint{end}"]) for end in ("_low", "", "_high"))
    return f"half of its {'rise' if sign > 0 else 'fall'} at step {mid:.0f} [{low:.0f}, {high:.0f}]"


def _evidence(found: xr.Dataset, contrast: str) -> list[Block]:
    number, n = found.contrast.values.tolist().index(contrast), found.sizes["fact"]
    of_head, of_contrast, note = (
        head_of(found, contrast),
        found.sel(contrast=contrast),
        f"n = {n} facts",
    )
    last = of_head.isel(step=-1)
    parts = {"terms": "term", "terms_margin": "term_margin"}
    parts |= {"score": "total", "score_margin": "total_margin"}
    needed = of_contrast.needed.mean("fact").isel(step=-1).stack(at=("layer", "head"))
    most = needed.sortby(-needed)["at"].values[:_N_HEADS]
    curves = {
        name: {f"L{layer}H{h}": of_contrast[of].isel(layer=layer, head=h) for layer, h in most}
        for name, of in (("score", "score"), ("needed", "needed"))
    }
    heads = "the six heads that are needed most at the last step"
    at = found.isel(step=-1).sel(contrast=contrast)
    return [
        Plot(
            f"pairs-{number}",
            waterfall(
                of_head[list(parts)].rename(parts),
                _PAIR,
                title=f"{last.leading.item()}, {contrast}",
                subtitle=f"clean prompts, {note}, 95 % intervals",
                unit="attention score (before the softmax)",
            ),
        ),
        Table(
            [
                "query part · key part",
                "score at the last step",
                "difference between names",
                "since when",
            ],
            [_pair_row(of_head, last, pair) for pair in _largest(last)],
        ),
        Plot(
            f"scores-{number}",
            lines(curves["score"], "Score over training", f"{heads}, {note}", "attention score"),
        ),
        Plot(
            f"needed-{number}",
            lines(
                curves["needed"],
                "What cutting this attention costs",
                f"{heads}, {note}",
                "logit difference lost, nats",
            ),
        ),
        Paragraph(
            "How well estimates agree with causes at the last step, over all heads: parts of "
            "queries and keys with the same part taken from the corrupted run, and integrated "
            "gradients of the attention with setting it to 0."
        ),
        Table(
            ["estimate of", *MEASURES],
            [
                [pair, *(interval_text(at.sel(pair=pair, measure=m)) for m in MEASURES)]
                for pair in found.pair.values
            ],
        ),
    ]


def _pair_row(of_head: xr.Dataset, last: xr.Dataset, pair: tuple[str, str]) -> list[str]:
    at = dict(zip(_PAIR, pair))
    values = last.sel(at)
    return [
        " · ".join(pair),
        _pm(values, "terms"),
        _pm(values, "changed_terms").removeprefix("+"),
        _when(of_head.terms_of_fact.sel(at)),
    ]


def _movers(found: xr.Dataset) -> list[tuple[int, int]]:
    """The head that is needed most for names, and those that write most towards the answer at the
    last step: layer, head.
    """
    wrote = found.wrote.isel(step=-1).stack(at=("layer", "head"))
    most = [(int(layer), int(head)) for layer, head in wrote.sortby(-wrote)["at"].values]
    extracts = head_of(found, EXTRACTION)
    first = int(extracts["layer"]), int(extracts["head"])
    return list(dict.fromkeys([first, *most]))[:_N_MOVERS]


def _moves(last: xr.Dataset, layer: int, head: int) -> str:
    of_head = last.isel(layer=layer, head=head)
    places = of_head.moved.stack(place=("role", "part")).dropna("place")
    role, part = places.place.values[int(np.abs(places).values.argmax())]
    return (
        f"L{layer}H{head} writes {_pm(of_head, 'wrote')} nats towards the answer directly; its "
        f"largest part is {part} at {role}, {_pm(of_head.sel(role=role, part=part), 'moved')}."
    )


def _moved(found: xr.Dataset) -> list[Block]:
    note = f"n = {found.sizes['fact']} facts, 95 % intervals"
    blocks: list[Block] = [
        Paragraph(
            "What a head writes towards the answer at the last token, with its attention and the "
            "LayerNorm scales held: by source token and by the part of the residual stream there. "
            "Direct effects only: what later components make of it is not counted."
        )
    ]
    for layer, head in _movers(found):
        of_head = found.isel(layer=layer, head=head)
        parts = of_head[list(_MOVED)].rename(_MOVED)
        blocks.append(
            Plot(
                f"moved-{layer}-{head}",
                waterfall(
                    parts,
                    ("part", "role"),
                    title=f"L{layer}H{head}, what it moves",
                    subtitle=f"clean prompts, {note}",
                    unit="nats towards the answer",
                    joined=" at ",
                ),
            )
        )
    last, rows = found.isel(step=-1), []
    for layer, head in _movers(found):
        of_head = last.isel(layer=layer, head=head)
        row = [f"L{layer}H{head}"]
        for asked in last.asked.values:
            of_asked = of_head.sel(asked=asked)
            places = of_asked.moved_by_attribute.stack(place=("part", "role")).dropna("place")
            part, role = places.place.values[int(np.abs(places).values.argmax())]
            row.append(f"{_pm(of_asked, 'wrote_by_attribute')} (most: {part} at {role})")
        rows.append(row)
    heads = ["nats at the last step, asked for", *map(str, last.asked.values)]
    return [*blocks, Table(heads, rows)]
