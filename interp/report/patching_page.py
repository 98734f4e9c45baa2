"""The page of a patching sweep, from its results."""

import json

import numpy as np
import pandas as pd
import xarray as xr

from interp.dynamics.plateau import Phases, format_step, phases
from interp.fields import argument
from interp.report.figures import (
    by_site,
    effect_over_training,
    enough_and_needed,
    patch_heatmaps,
    site_explanation,
    site_heading,
    training_curves,
)
from interp.report.page import (
    Paragraph,
    Plot,
    Prose,
    Section,
    Table,
    page,
    repeated_weights_note,
)
from interp.report.summary import summary

Results = dict[str, xr.Dataset]


def build_report(
    results: Results | xr.DataTree,
    *,
    other: Results | None = None,
    run: dict | None = None,
    metrics: pd.DataFrame | None = None,
    title: str,
    command: str = "",
) -> str:
    """HTML page on one patching sweep.

    Args:
        results: a data set with ``step`` per site, as ``patch_suite`` returns them.
        other: the same sites and steps in the other direction, shown beside them.
        command: that asked for the report; by default the one that made the first result.
        run: what run.json holds; together with ``metrics``, the run's metrics table, it adds the
            training curves and phases.
    """
    if not isinstance(results, (dict, xr.DataTree)):
        raise ValueError("a report needs results by site; make them with interp.patch_suite")
    argument("title", title, str), argument("run", run, dict | None)
    argument("other", other, dict | None), argument("metrics", metrics, pd.DataFrame | None)
    results = _at_common_steps(by_site(results))
    if other is not None:
        steps = next(iter(results.values())).step.values
        other = {site: other[site].sel(step=steps) for site in results}
    training, found = [], None
    if run and metrics is not None:
        baseline = float(np.mean(list(run["no_knowledge_baseline"].values())))
        average = _average(metrics)
        found = phases(average.step.to_numpy(), average.loss.to_numpy(), baseline)
        training = [_training(metrics, baseline, found, average.iloc[-1])]
    sections = [*training, *_by_site(results, other), *_over_all_sites(results, other, found)]
    sections += [_facts(results), _provenance(results, run, command)]
    return page(title, [*summary(results, other), *repeated_weights_note(results)], sections)


def _at_common_steps(results: Results) -> Results:
    """Sites with a result, at the steps that all sites have.

    Raises:
        ValueError: there are none; results without steps, or without corrupted prompts.
    """
    if not results or any("step" not in result.dims for result in results.values()):
        raise ValueError("a report needs results with a step; make them with interp.patch_suite")
    for result in results.values():
        if any(result[end].isnull().all() for end in ("clean", "corrupted")):
            raise ValueError(
                "a report needs facts with corrupted prompts and answers; read these results with "
                "interp.effect(result, 'first_logprob')"
            )
    common = sorted(set.intersection(*(set(r.step.values.tolist()) for r in results.values())))
    if not common:
        raise ValueError("the sites have no step in common; patch them at the same steps")
    results = {site: result.sel(step=common) for site, result in results.items()}
    results = {site: result for site, result in results.items() if result.patched.notnull().any()}
    if not results:
        raise ValueError("no fact has any of the patched positions; patch other sites")
    return results


def _average(metrics: pd.DataFrame) -> pd.DataFrame:
    """Rows of the mean over attributes, on people trained on."""
    if missing := {"split", "attribute", "step", "loss", "accuracy"} - set(metrics.columns):
        raise ValueError(f"metrics has no column {min(missing)!r}; give a run's metrics")
    average = metrics[(metrics.split == "train") & (metrics.attribute == "average")]
    if average.empty:
        raise ValueError("metrics has no averages of the split train; give a run's own")
    if not np.isfinite(average.loss).all():
        raise ValueError("metrics has a loss that is not finite; leave the run out")
    return average


def _training(metrics: pd.DataFrame, baseline: float, found: Phases, last: pd.Series) -> Section:
    said = {
        "has_plateau": found.plateau_start < found.plateau_end,
        "start": format_step(found.plateau_start),
        "end": format_step(found.plateau_end),
        "last_step": int(last.step),
        "accuracy": f"{last.accuracy:.3f}",
    }
    curves = Plot("training", training_curves(metrics, baseline, found))
    return Section("Training curves", [curves, Prose("phases.html.j2", said)])


def _by_site(results: Results, other: Results | None) -> list[Section]:
    """Heat maps: sites without a heading of their own in one section, then one section per site."""
    together = {site: result for site, result in results.items() if not site_heading(site)}
    sections = []
    if together:
        place = next(iter(together.values())).attrs["by"].replace("role", "token role")
        place = place.replace("pos", "position")
        figure = Plot("layers", patch_heatmaps(together, other=other))
        explained = Paragraph(_LAYERS.format(place=place))
        sections.append(Section(f"Where: layer by {place}", [explained, figure]))
    for site in (site for site in results if site not in together):
        name = "heads" if site == "z" else site.replace(".", "-")
        figure = Plot(name, patch_heatmaps({site: results[site]}, other=other))
        said = [Paragraph(text)] if (text := site_explanation(site)) else []
        sections.append(Section(site_heading(site), [*said, figure]))
    return sections


def _over_all_sites(results: Results, other: Results | None, found: Phases | None) -> list[Section]:
    sections = []
    if other is not None:
        figure = Plot("enough-and-needed", enough_and_needed(results, other))
        sections.append(Section("Sufficient, or necessary", [Paragraph(_BOTH_DIRECTIONS), figure]))
    if next(iter(results.values())).sizes["step"] > 1:
        figure = Plot("over-training", effect_over_training(results, phases=found))
        sections.append(Section("When", [Paragraph(_OVER_TRAINING), figure]))
    return sections


_LAYERS = (
    "Each cell is one patch: an activation at one layer and one {place} is replaced by its value "
    "in the other run. Shown is how much of the difference between the runs is recovered "
    "(denoising) or lost (noising). With several checkpoints, move the slider, or press play, to "
    "go through training. Grey: the model does not yet tell the two runs apart, so there is "
    "nothing to recover."
)
_BOTH_DIRECTIONS = (
    "One point per patch. Right of the diagonal: enough to restore the answer, but not needed, "
    "since something else does the same (an OR gate). Left of it: needed, but not enough alone (an "
    "AND gate)."
)
_OVER_TRAINING = (
    "The strongest patches, at most four per site, with 95 % bootstrap intervals over facts. The "
    "grey band is the plateau. Click a name in the legend to hide its line, double-click to see it "
    "alone. The axis stops at −0.3 and 1.3; double-click in the figure to see all."
)


def _facts(results: Results) -> Section:
    first = next(iter(results.values()))
    columns = ["attribute", "clean_prompt", "answer", "corrupted_prompt", "corrupted_answer"]
    table = first[columns].reset_coords()[columns].to_dataframe()
    counts = table.attribute.value_counts(sort=False)
    listed = ", ".join(f"{name} {n}" for name, n in counts.items())
    shown = table.groupby("attribute", sort=False).head(2)[columns].astype(str).values.tolist()
    heads = [column.replace("_", " ") for column in columns]
    caption = Paragraph(f"Two of each attribute, of n = {len(table)} ({listed}).")
    return Section("The facts", [caption, Table(heads, shown, row_heads=False)])


def _provenance(results: Results, run: dict | None, command: str) -> Section:
    first = next(iter(results.values()))
    made_by, request = (json.loads(first.attrs.get(name, "{}")) for name in ("made_by", "request"))
    not_options = ("step", "site", "checkpoint", "versions")
    options = {key: value for key, value in request.items() if key not in not_options}
    rows = {
        "command": command or made_by.get("command") or "from Python",
        "training command": (run or {}).get("command") or "unknown",
        "checkpoints": f"steps {', '.join(map(str, first.step.values.tolist()))}",
        "sites": ", ".join(results),
        "options": json.dumps(options),
        "versions": json.dumps(request.get("versions", {}) | made_by.get("versions", {})),
        "hardware": json.dumps(made_by.get("hardware", {})),
        "git commit": str(made_by.get("git_commit")),
        "date": made_by.get("date", "unknown"),
    }
    return Section(
        "What was run", [Table([], list(rows.items()), code=True), Prose("terms.html.j2")]
    )
