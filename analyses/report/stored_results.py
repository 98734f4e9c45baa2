"""Results of other analyses that are in the run folder, and the figures of them on the page."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from analyses.attention_attribution.attention_page import contrasts_of, head_of
from interp.report.overview import LinePanel
from interp.results.manifest import read_manifest
from interp.results.store import join_steps, open_result
from interp.suite import Suite


def stored(suite: Suite, folder: Path, names: Sequence[str]) -> dict[str, xr.Dataset] | None:
    """The newest results in ``folder`` with all of ``names``, with ``step``, about the weights that
    the run has now, its last checkpoint among them; None without any.
    """
    for entry in reversed(read_manifest(folder) or []):
        files = entry.files(folder)
        whole = all(set(files.get(name, ())) == set(entry.checkpoints) for name in names)
        if whole and _is_of(suite, entry.checkpoints):
            return {
                name: join_steps({step: open_result(x) for step, x in sorted(files[name].items())})
                for name in names
            }
    return None


def _is_of(suite: Suite, checkpoints: dict[int, str]) -> bool:
    return suite.steps[-1] in checkpoints and all(
        step in suite.steps and suite.sha256(step) == digest for step, digest in checkpoints.items()
    )


def stored_lines(suite: Suite, results: Path) -> dict[str, LinePanel]:
    """Panels by name, of those analyses whose results are in a folder of ``results``."""
    made = {"circuits": _circuit, "attention-attribution": _scores}
    found = {name: stored(suite, results / name, [name]) for name in made}
    return {name: made[name](x[name]) for name, x in found.items() if x is not None}


def _circuit(found: xr.Dataset) -> LinePanel:
    """What the circuit of each checkpoint keeps, and what is kept without it."""
    names = {"circuit_faithfulness": "in the circuit alone", "without_circuit": "without it"}
    lines = [
        {
            "name": name,
            "x": found.step.values,
            **{x: found[of + end].values for x, end in _ENDS.items()},
        }
        for of, name in names.items()
    ]
    n = f"n = {found.sizes['measured']} facts"
    return LinePanel("training step", "share of recall kept", n, lines, over_training=True)


_ENDS = {"mean": "", "low": "_low", "high": "_high"}


def _scores(found: xr.Dataset) -> LinePanel:
    """By how much more a head's scores favour some tokens over others, of the head that is needed
    most for each such contrast.
    """
    lines = []
    for contrast in contrasts_of(found):
        of = head_of(found, contrast)
        mean, half = (np.asarray(of[x].transpose("step")) for x in ("score", "score_margin"))
        name = f"{of.leading.item()}, from {contrast}"
        lines.append({
            "name": name, "x": found.step.values,
            "mean": mean, "low": mean - half, "high": mean + half,
        })  # fmt: skip
    n = f"n = {found.sizes['fact']} facts"
    return LinePanel("training step", "score before the softmax", n, lines, over_training=True)
