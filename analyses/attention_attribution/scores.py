"""Which parts of the residual stream make the heads that recall facts look where they look?

At every checkpoint, on the same facts: every head's score contrasts by their parts
(``interp.attribution.attention_scores``); what it costs to cut each head off the contrast's first
sources; two estimates beside causes; and what heads move to the answer position. For each contrast
the terms of single facts are kept of one head: the one that is needed most at the last step.
"""

import numpy as np
import xarray as xr

from analyses.agreement import MEASURES, agreement_of
from analyses.attention_attribution import AttentionAttributionConfig
from analyses.attention_attribution.attention_page import report, said
from analyses.checkpoints import analyse_checkpoints, halves
from interp.attribution import pattern_attribution, score_attribution, value_attribution
from interp.attribution.attention_scores import CONTRASTS
from interp.data.facts import FactSet
from interp.model.decoder import HookedDecoder
from interp.patching import patch_sites
from interp.statistics import margin
from interp.suite import Suite

NAME = "attention-attribution"
_CUTS = {"needed": "head_knockout", "zeroed": "edge"}


def run_and_report(config: AttentionAttributionConfig, *, command: str, bar) -> str:
    """The findings in words, and the path of the report that was written."""
    return analyse_checkpoints(
        *(config, NAME, _of_step, report, said),
        options_of=_leading_heads,
        command=command,
        bar=bar,
    )


def _leading_heads(
    suite: Suite, step: int, *, facts: FactSet, device: str
) -> dict[str, tuple[str, ...]]:
    """For each contrast the head that is needed most at ``step``, by one half of the facts."""
    chosen_by, _ = halves(facts.texts.attribute.to_numpy(object))
    needed = needs(suite.load(step, device=device), facts[chosen_by]).needed.mean("fact")
    flat = needed.stack(at=("layer", "head")).fillna(0).sel(contrast=list(CONTRASTS))
    places = flat["at"].values[flat.argmax("at").values]
    return {"heads": tuple(f"L{layer}H{head}" for layer, head in places)}


def _of_step(
    suite: Suite,
    step: int,
    names: list[str],
    *,
    facts: FactSet,
    device: str,
    heads: tuple[str, ...],
) -> dict[str, xr.Dataset]:
    return {NAME: of_model(suite.load(step, device=device), facts, heads)}


def of_model(model: HookedDecoder, facts: FactSet, heads: tuple[str, ...]) -> xr.Dataset:
    """What is found at one checkpoint.

    Args:
        heads: for each of ``CONTRASTS`` the head whose terms are kept of every fact.

    Returns:
        Means over facts with halves of their 95 % intervals (``…_margin``): ``score`` and ``terms``
        of ``score_attribution``; ``changed`` and ``changed_terms``, by how much they differ between
        the clean and the corrupted prompt, sign apart (names are drawn alike, so that signed
        differences would average to 0); ``moved`` of ``value_attribution`` and ``wrote``, its sum;
        ``moved_by_attribute`` and
        ``wrote_by_attribute``, means over the facts that are ``asked`` for one attribute.
        Of single facts: ``score_of_fact``, ``terms_of_fact``, ``needed`` (see ``needs``).
        ``agreement`` (pair, contrast, measure) with ``_low`` and ``_high``: of what a part of the
        query, or of all keys, is estimated to change with what patching it changes; and of
        integrated gradients of attention with zeroing it.
    """
    scores, moved = score_attribution(model, facts), value_attribution(model, facts)
    cuts = needs(model, facts)
    clean, corrupted = (scores.sel(prompt=x, drop=True) for x in scores.prompt.values)
    of_fact = {
        "score": clean.score,
        "terms": clean.terms,
        "changed": np.abs(clean.score - corrupted.score),
        "changed_terms": np.abs(clean.terms - corrupted.terms),
        "moved": moved.moved,
        "wrote": moved.moved.sum(("role", "part")),
    }
    found = {name: x.mean("fact") for name, x in of_fact.items()}
    found |= {
        f"{name}_margin": xr.apply_ufunc(margin, x, input_core_dims=[["fact"]])
        for name, x in of_fact.items()
    }
    by_attribute = moved.moved.groupby("attribute").mean("fact")
    found["moved_by_attribute"] = by_attribute.rename(attribute="asked")
    wrote = of_fact["wrote"].groupby("attribute")
    found["wrote_by_attribute"] = wrote.mean("fact").rename(attribute="asked")
    found["wrote_by_attribute_margin"] = wrote.map(
        lambda x: xr.apply_ufunc(margin, x, input_core_dims=[["fact"]])
    ).rename(attribute="asked")
    found["score_of_fact"] = clean.score
    at = [(int(x[1:].split("H")[0]), int(x.split("H")[1])) for x in heads]
    found["terms_of_fact"] = xr.concat(
        [
            clean.terms.sel(contrast=contrast).isel(layer=layer, head=head, drop=True)
            for contrast, (layer, head) in zip(CONTRASTS, at)
        ],
        "contrast",
    )
    found["needed"] = cuts.needed
    whole = xr.Dataset(found).astype(np.float32).merge(_agreement(scores, cuts, model, facts))
    return whole.assign_coords(leading=("contrast", np.array(heads, object)))


def needs(model: HookedDecoder, facts: FactSet) -> xr.Dataset:
    """What each head's attention to each contrast's first sources does for the answer.

    Returns:
        ``needed`` and ``zeroed`` (layer, head, contrast, fact): clean − patched ``logit_diff``,
        nats, positive = needed; with the attention cut before the softmax, and with the pattern set
        to 0 there. NaN where a prompt lacks destination or sources.
    """
    there = {facts.role_names[i] for i in facts.roles.unique().tolist() if i >= 0}
    ends = {
        name: (dest, "+".join(x for x in first if x in there))
        for name, (dest, first, _) in CONTRASTS.items()
        if dest in there and there.intersection(first)
    }
    found = {}
    for dest in dict.fromkeys(dest for dest, _ in ends.values()):
        sources = tuple(dict.fromkeys(src for of, src in ends.values() if of == dest))
        cut = patch_sites(
            model,
            facts,
            sites=list(_CUTS.values()),
            groups=(dest,),
            sources=sources,
            replacement="zero",
            direction="noising",
            whole_value=False,
        )
        for name, (of, src) in ends.items():
            if of == dest:
                found[name] = xr.Dataset({
                    kind: (cut[site].clean - cut[site].patched).sel(dest=dest, src=src, drop=True)
                    for kind, site in _CUTS.items()
                })  # fmt: skip
    order = xr.IndexVariable("contrast", list(found))
    return xr.concat(list(found.values()), order).reindex(contrast=list(CONTRASTS))


def _agreement(
    scores: xr.Dataset, cuts: xr.Dataset, model: HookedDecoder, facts: FactSet
) -> xr.Dataset:
    integrated = pattern_attribution(model, facts).attribution
    pairs = {
        side: [scores[x].sel(side=side, drop=True) for x in ("estimated", "patched")]
        for side in scores.side.values
    }
    pairs["attention"] = [_over_first_sources(integrated), cuts.zeroed]
    return agreement(pairs)


def _over_first_sources(attribution: xr.DataArray) -> xr.DataArray:
    """Of each contrast, the attribution of its destination's attention to its first sources."""
    of_contrast = [
        attribution.sel(dest=dest, drop=True)
        .sel(src=[x for x in first if x in attribution.src])
        .sum("src")
        if dest in attribution.dest
        else xr.full_like(attribution.isel(dest=0, src=0, drop=True), np.nan)
        for dest, first, _ in CONTRASTS.values()
    ]
    return xr.concat(of_contrast, xr.IndexVariable("contrast", list(CONTRASTS)), coords="minimal")


def agreement(pairs: dict[str, list[xr.DataArray]]) -> xr.Dataset:
    """How well an estimate agrees with a cause, over all heads, parts and facts.

    Args:
        pairs: estimate and cause (contrast, fact, and further dims, which count as cells).

    Returns:
        ``agreement`` (pair, contrast, measure): correlations, −1 to 1, and the share of the same
        sign; ``_low`` and ``_high``: 95 % percentile bootstrap intervals over facts.
    """
    rows = []
    for pair in pairs.values():
        cells = [dim for dim in pair[1].dims if dim not in ("contrast", "fact")]
        flat = [
            x.transpose("contrast", *cells, "fact")
            .stack(cell=cells, create_index=False)
            .transpose("contrast", "cell", "fact")
            .values.astype(float)
            for x in pair
        ]
        rows.append([agreement_of(*of_contrast) for of_contrast in zip(*flat)])
    found = np.array(rows)
    dims, names = ("pair", "contrast", "measure"), ("agreement", "agreement_low", "agreement_high")
    return xr.Dataset(
        {name: (dims, found[:, :, i]) for i, name in enumerate(names)},
        {"pair": list(pairs), "contrast": list(CONTRASTS), "measure": list(MEASURES)},
    )
