"""Questions that localization asks of the last checkpoint only, because they are too slow to ask of
all.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr

from interp.data.facts import FactSet
from interp.localization.component_ablation import needs
from interp.localization.fact_editing import N_OTHERS, edit_facts
from interp.localization.logit_attribution import copying
from interp.localization.neurons import written
from interp.model.decoder import HookedDecoder
from interp.patching import patch
from interp.results.metrics import effect, recovered
from interp.statistics import runs_differ
from interp.suite import Suite

SEVERED = {"nothing": None, "MLPs": "mlp_out", "attention": "attn_out"}
PARTS = ("first", "middle", "last")
N_IN_DEPTH, N_EDITED, N_SEVERED, N_SCORED = 96, 24, 192, 384
"""Facts: asked in depth, overwritten, run with parts frozen, scored on their whole value."""


@dataclass(frozen=True)
class AskedInDepth:
    """The last checkpoint and what it is asked about."""

    model: HookedDecoder
    suite: Suite
    facts: FactSet
    leading: dict[str, dict[str, str]]
    """By mechanism, the leading component and its place."""
    seed: int
    max_memory: float

    @property
    def how(self) -> dict:
        """Options passed to ``patch``."""
        return {"whole_value": False, "max_memory": self.max_memory}

    def some(self, n: int, role: str = "") -> FactSet:
        """About ``n`` facts, equally many of each attribute, with a token of ``role`` if given."""
        facts = _with_role(self.facts, role) if role else self.facts
        attribute = facts.texts.attribute.to_numpy()
        names = list(dict.fromkeys(attribute))
        each = max(1, n // len(names))
        chosen = [np.flatnonzero(attribute == name)[:each] for name in names]
        return facts[np.concatenate(chosen)]


Compute = Callable[[AskedInDepth], xr.Dataset]


def answer(
    suite: Suite,
    step: int,
    questions: list[str],
    *,
    compute: Compute,
    facts: FactSet,
    leading: dict[str, dict[str, str]],
    device: str,
    **options,
) -> dict[str, xr.Dataset]:
    """The answer of one checkpoint to the one question in ``asked``, by its name."""
    model = suite.load(step, device=device)
    asked = AskedInDepth(model, suite, facts, leading, **options)
    return {question: _plain(compute(asked)) for question in questions}


def severed(asked: AskedInDepth) -> xr.Dataset:
    """``recovered`` (frozen, layer, role) by the clean residual stream, with nothing, the MLPs or
    the attention of all later layers frozen at the patched tokens; NaN where the two runs cannot be
    told apart. Attribute ``n``: number of facts.
    """
    facts = asked.some(N_SEVERED)
    runs = [
        patch(asked.model, facts, site="resid_pre", frozen=frozen, **asked.how)
        for frozen in SEVERED.values()
    ]
    apart = runs_differ((runs[0].clean - runs[0].corrupted).values)
    shares = xr.concat([recovered(run) for run in runs], "frozen").where(bool(apart))
    return xr.Dataset({"recovered": shares}, {"frozen": list(SEVERED)}, {"n": len(facts)})


def neurons(asked: AskedInDepth) -> xr.Dataset:
    """``effect`` (layer, neuron, fact) of single neurons where the leading memory works, noising,
    nats, negative = needed; at ``final`` also ``agreement`` (fact): correlation over neurons of the
    memory's layer of −effect and what they write towards the right value.
    """
    memory = asked.leading["memory"]
    layer, place = _layer_of(memory), memory["place"]
    facts = asked.some(N_IN_DEPTH, place)
    single = {"groups": (place,), "n_neurons": 1, "direction": "noising"}
    result = effect(patch(asked.model, facts, site="mlp_post", **single, **asked.how))
    answer = xr.Dataset({"effect": result.isel(role=0, drop=True)})
    if place == "final":
        own = written(asked.model, facts, layer=layer).drop_vars("layer")
        single_layer = answer.effect.sel(layer=layer, drop=True)
        answer["agreement"] = xr.corr(-single_layer, own, dim="neuron")
    return answer


def _with_role(facts: FactSet, role: str) -> FactSet:
    """Those whose prompt has the role."""
    return facts[np.flatnonzero((facts.roles == facts.role_names.index(role)).any(1).numpy())]


def edits(asked: AskedInDepth) -> xr.Dataset:
    """Results of ``edit_facts`` in the leading memory, and in the first MLP at name_middle, which
    acts on names; at name_last, where some people have no middle name.
    """
    memory = asked.leading["memory"]
    facts = asked.some(N_EDITED, memory["place"])
    all_have_it = len(_with_role(facts, "name_middle")) == len(facts)
    name = "name_middle" if all_have_it else "name_last"
    where = {
        f"{memory['component']} at {memory['place']}": (_layer_of(memory), memory["place"]),
        f"L0 MLP at {name}": (0, name),
    }
    suite = asked.suite
    n_sentences = min(10, suite.config.n_train_templates, int(suite.texts.n_train.min()))
    n_others = min(N_OTHERS, suite.config.n_people)
    how = {"n_sentences": n_sentences, "n_others": n_others, "seed": asked.seed}
    tables = [
        edit_facts(asked.model, asked.suite, facts, layer=layer, role=role, **how)
        for layer, role in where.values()
    ]
    return xr.concat(tables, "edited").assign_coords(edited=list(where))


def _layer_of(mlp: dict[str, str]) -> int:
    return int(mlp["component"].removeprefix("L").removesuffix(" MLP"))


def parts(asked: AskedInDepth) -> xr.Dataset:
    """``recovered`` (part, layer, role): by the residual stream, one part of the name swapped; of
    ``n`` (part) facts, or as many as there are whose person has such a twin. NaN where there is
    none, and where the two runs can't be told apart.
    """
    facts = asked.some(N_IN_DEPTH)
    attributes = list(dict.fromkeys(facts.texts.attribute))
    shares, counts = {}, {}
    for part in PARTS:
        drawn = {"attribute": attributes, "seed": asked.seed, "corruption": f"swap-{part}"}
        swapped = asked.suite.facts(len(facts), fewer=True, **drawn)
        counts[part] = len(swapped)
        if len(swapped) < 2:
            continue
        result = patch(asked.model, swapped, site="resid_pre", **asked.how)
        apart = runs_differ((result.clean - result.corrupted).values)
        shares[part] = recovered(result).where(bool(apart))
    found = xr.Dataset({"n": ("part", list(counts.values()))}, {"part": list(counts)})
    if shares:
        found["recovered"] = xr.concat(shares.values(), "part").assign_coords(part=list(shares))
    return found


def feeds(asked: AskedInDepth) -> xr.Dataset:
    """``recovered`` (layer, role, ...): through each MLP's output into the values of the leading
    extraction head.
    """
    layer, head = asked.leading["extraction"]["component"][1:].split("H")
    group = int(head) // asked.model.cfg.n_grouped  # whose values the head reads
    path = f"mlp_out-L{layer}H{group}.v"
    result = patch(asked.model, asked.some(N_IN_DEPTH), site=path, **asked.how)
    return xr.Dataset({"recovered": recovered(result)})


def copied(asked: AskedInDepth) -> xr.Dataset:
    """``share`` (layer, head, …) from ``logit_attribution.copying``."""
    return xr.Dataset({"share": copying(asked.model, asked.facts)})


def whole_value(asked: AskedInDepth) -> xr.Dataset:
    """``component_ablation.needs``, measured by the log-probability of the whole value."""
    facts = asked.some(N_SCORED)
    return needs(asked.model, facts, whole_value=True, max_memory=asked.max_memory)


def _plain(answer: xr.Dataset) -> xr.Dataset:
    """The result without the attributes that netCDF 3 cannot hold."""
    answer = answer.drop_vars([x for x in answer.coords if "prompt" in str(x)])
    for name in [*answer.data_vars, *answer.coords]:
        if answer[name].dtype == bool:
            answer[name] = answer[name].astype(np.int8)
        if answer[name].dtype == np.int64:
            answer[name] = answer[name].astype(np.int32)
    return answer
