"""How far confidence falls on known and on unknown people without an MLP at one token."""

import numpy as np
import pandas as pd

from interp.localization.answer_confidence import answer_confidence, without_mlp
from interp.localization.probes import PLACES
from interp.localization.prompts_about import known_and_unknown, prompts_about, value_tokens
from interp.model.decoder import HookedDecoder
from interp.statistics import percentiles, resampled_means
from interp.suite import Suite


def falls_without_mlps(model: HookedDecoder, suite: Suite) -> pd.DataFrame:
    """One row per (layer, role): means of the maximum probability on known and on unknown people,
    its fall with the MLP's output there replaced by the mean over all prompts, and how much more it
    falls on unknown people; 95 % bootstrap intervals over people.
    """
    asked = known_and_unknown(suite)
    facts = prompts_about(suite, asked)
    before = answer_confidence(model, facts, value_tokens(suite)).max_probability.to_numpy()
    rows = []
    for layer in range(model.cfg.n_layers):
        for role in PLACES:
            after = without_mlp(model, facts, layer=layer, role=role)
            table = asked.assign(before=before, fall=before - after)
            of_person = table.groupby(["known", "person"])[["before", "fall"]].mean()
            row, draws = {"layer": layer, "role": role}, {}
            for seed, (name, known) in enumerate((("known", True), ("unknown", False))):
                falls = of_person.fall[known].to_numpy()
                draws[name] = resampled_means(falls, n_resamples=1000, seed=seed)
                row |= {f"{name}_before": of_person.before[known].mean(), name: falls.mean()}
                row |= _ends(name, draws[name]) | {f"n_{name}": len(falls)}
            row["difference"] = row["unknown"] - row["known"]
            rows.append(row | _ends("difference", draws["unknown"] - draws["known"]))
    return pd.DataFrame(rows)


def _ends(name: str, draws: np.ndarray) -> dict[str, float]:
    low, high = percentiles(draws, 0.95)
    return {f"{name}_low": float(low), f"{name}_high": float(high)}
