"""The memory MLP and the extraction heads of a run, named by what they are needed for."""

import pandas as pd

from interp.localization.component_ablation import needs
from interp.localization.mechanisms import mechanisms, readable_gain
from interp.localization.probes import read_off
from interp.model.decoder import HookedDecoder
from interp.suite import Suite

N_FACTS = 192


def locate(model: HookedDecoder, suite: Suite) -> pd.DataFrame:
    """One row per component: component, mechanism, place, share, ``named``. Of what ``mechanisms``
    names on facts about training people, the memory with the largest share and all extraction
    heads; where it names none, the component with the largest share, which is not ``named``.
    """
    facts = suite.facts(N_FACTS, fewer=True)
    found = mechanisms(needs(model, facts), readable_gain(read_off(model, facts)))
    found = found[(found.attribute == "all") & found.kind.isin(["head", "mlp"])]
    found = found.sort_values("share", ascending=False, kind="stable")
    rows = []
    for mechanism in ("memory", "extraction"):
        of = found[found.mechanism == mechanism]
        named = of[of.named]
        chosen = named if len(named) else of[:1]
        rows.append(chosen[:1] if mechanism == "memory" else chosen)
    kept = ["component", "mechanism", "place", "share", "named"]
    return pd.concat(rows, ignore_index=True)[kept]
