"""Results in, one self-contained HTML page out; the same input gives the same page."""

import json
import re
from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from plotly.offline import get_plotlyjs

from interp.dynamics.plateau import Phases, format_step, phases
from interp.fields import argument
from interp.patching.sites import SITES
from interp.report.figures import (
    by_site,
    effect_over_training,
    enough_and_needed,
    patch_heatmaps,
    site_label,
    training_curves,
)
from interp.report.headline import headline
from interp.results.store import repeats_in

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 2rem auto;
  padding: 0 1rem; }
h1 { margin-bottom: 0; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem; }
.lead { font-size: 1.1rem; }
.note { color: #555; }
.warning { background: #fff3cd; border-left: 4px solid #b58900; padding: .4rem .8rem; }
code { background: #f4f4f4; border-radius: 4px; padding: .1rem .3rem; word-break: break-word; }
table { border-collapse: collapse; font-size: .92rem; }
td, th { padding: .25rem .7rem; text-align: left; border-bottom: 1px solid #eee;
  vertical-align: top; }
th { color: #555; }
@media (max-width: 800px) { table { display: block; overflow-x: auto; } }
"""


def build_report(
    results: dict[str, xr.Dataset] | xr.DataTree,
    *,
    other: dict[str, xr.Dataset] | None = None,
    run: dict | None = None,
    metrics: pd.DataFrame | None = None,
    title: str,
    command: str = "",
) -> str:
    """HTML page on one patching sweep.

    Args:
        results: a data set with ``step`` a site, as ``patch_suite`` returns them.
        other: the same sites and steps in the other direction, shown beside them.
        command: that asked for the report; by default the one that made the first result.
        run: what run.json holds; together with ``metrics``, the run's metrics table, it adds the
            training curves and phases.
    """
    if not isinstance(results, (dict, xr.DataTree)):
        raise ValueError("a report needs results by site; make them with interp.patch_suite")
    argument("title", title, str), argument("run", run, dict | None)
    argument("other", other, dict | None), argument("metrics", metrics, pd.DataFrame | None)
    results = by_site(results)
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
        raise ValueError("no fact has any of the cells; patch other sites")
    if other is not None:
        other = {site: other[site].sel(step=common) for site in results}
    curves, found = "", None
    if run and metrics is not None:
        baseline = float(np.mean(list(run["no_knowledge_baseline"].values())))
        if missing := {"split", "attribute", "step", "loss", "accuracy"} - set(metrics.columns):
            raise ValueError(f"metrics has no column {min(missing)!r}; give a run's metrics")
        average = metrics[(metrics.split == "train") & (metrics.attribute == "average")]
        if average.empty:
            raise ValueError("metrics has no averages of the split train; give a run's own")
        if not np.isfinite(average.loss).all():
            raise ValueError("metrics has a loss that is not finite; leave the run out")
        found = phases(average.step.to_numpy(), average.loss.to_numpy(), baseline)
        curves = figure_html("training", training_curves(metrics, baseline, found))
        curves += _phases_text(found, average)
    by_layer = [name for name, site in SITES.items() if not site.part and not site.is_edge]
    residual = {site: result for site, result in results.items() if site in by_layer}
    sections = [("How knowledge came", curves)] if curves else []
    if residual:
        figure = figure_html("layers", patch_heatmaps(residual, other=other))
        place = next(iter(residual.values())).attrs["by"].replace("role", "token role")
        place = place.replace("pos", "position")
        sections.append((f"Where: layer by {place}", _WHERE.format(place=place) + figure))
    for site in [site for site in results if site not in by_layer]:
        heading, text = _PARTS.get(site, (site_label(site).capitalize(), ""))
        if "-" in site:
            heading, text = f"Along the path {site_label(site)}", _PATH
        name = "heads" if site == "z" else site.replace(".", "-")
        figure = figure_html(name, patch_heatmaps({site: results[site]}, other=other))
        sections.append((heading, text + figure))
    if other is not None:
        figure = figure_html("enough-and-needed", enough_and_needed(results, other))
        sections.append(("Enough, or needed", _GATES + figure))
    if next(iter(results.values())).sizes["step"] > 1:
        sections.append(
            (
                "When",
                _WHEN + figure_html("over-training", effect_over_training(results, phases=found)),
            )
        )
    sections += [
        ("The facts", _facts_table(results)),
        ("What was run", _provenance(results, run, command)),
    ]
    return page(title, headline(results, other) + repeats_note(results), sections)


def repeats_note(results: dict[str, xr.Dataset]) -> str:
    """HTML: which of the checkpoints share weights that should differ; nothing if none do."""
    repeats = dict.fromkeys(str(x) for result in results.values() for x in repeats_in(result))
    items = "".join(f"<li>{escape(line)}</li>" for line in repeats)
    if not items:
        return ""
    return f"<div class='warning'><b>Check these checkpoints:</b><ul>{items}</ul></div>"


def page(title: str, lead: str, sections: list[tuple[str, str]]) -> str:
    """HTML page that needs nothing else: plotly.js stands in it once. ``lead`` and the sections'
    contents are HTML, titles and headings text; a section can be linked to by ``anchor(heading)``.
    """
    body = "\n".join(
        f"<h2 id='{anchor(heading)}'>{escape(heading)}</h2>\n{content}"
        for heading, content in sections
    )
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n"
        f"<script>{get_plotlyjs()}</script></head>\n"
        f"<body><h1>{escape(title)}</h1>\n{lead}\n{body}\n</body></html>\n"
    )


def anchor(heading: str) -> str:
    """Where a section of that heading is on its page."""
    return re.sub(r"\W+", "-", heading.lower()).strip("-")


_WHERE = """
<p>Each cell replaces one activation, at one layer and one {place}, by what it is in the other run,
and measures how much of the difference between the runs comes back (denoising) or is lost
(noising). With several checkpoints, move the slider, or press play, to go through training. Grey:
the model does not yet tell the two runs apart, so there is nothing to recover.</p>"""
_PARTS = {
    "z": (
        "Which heads",
        "<p>The same for the output of single attention heads, a panel a token role.</p>",
    ),
    "mlp_post": ("Which neurons", "<p>The same for groups of an MLP's neurons.</p>"),
    "edge": (
        "Which attention edges",
        "<p>One head's attention from a destination (a panel each) to a source, taken from the "
        "other run.</p>",
    ),
    "head_knockout": (
        "Whose attention is needed",
        "<p>One head's attention from a destination (a panel each) to a source cut off before the "
        "softmax.</p>",
    ),
    "knockout": (
        "What attention is needed",
        "<p>Attention of all heads from a destination (a panel each) to a source cut off before "
        "the softmax.</p>",
    ),
}
_PATH = """
<p>The first stop is changed; each later one reads the base run plus what that change wrote, all
else frozen; what the last stop then computes is pasted into the base run. A panel a place of the
first stop; places at which nothing arrives are left out. Grey: the stops are not in order.</p>"""
_GATES = """
<p>A point a cell. Right of the diagonal: enough to bring the answer back, but not needed, since
something else does the same (an OR gate). Left of it: needed, but not enough alone (an AND
gate).</p>"""
_WHEN = """
<p>The strongest components, at most four a site, with 95 % bootstrap intervals over facts. The grey
band is the plateau. Click a name in the legend to hide its line, double-click to see it alone. The
axis stops at −0.3 and 1.3; double-click in the figure to see all.</p>"""


def _phases_text(found: Phases, average: pd.DataFrame) -> str:
    last = average.iloc[-1]
    final = f"At the end of training, step {int(last.step)}, accuracy is {last.accuracy:.3f}."
    if not found.plateau_start < found.plateau_end:
        return f"<p>This run shows no complete plateau. {final}</p>"
    return (
        "<p>First the model learns how values are distributed: by step "
        f"{format_step(found.plateau_start)} its loss is within 5 % of the "
        "no-knowledge baseline. Then it stays there: the <b>plateau</b>, shaded, until step "
        f"{format_step(found.plateau_end)}, the first "
        "checkpoint from which the loss remains more than 0.5 % below the baseline. Then it "
        f"learns who has which value. {final}</p>"
    )


def _facts_table(results: dict[str, xr.Dataset]) -> str:
    first = next(iter(results.values()))
    columns = ["attribute", "clean_prompt", "answer", "corrupted_prompt", "corrupted_answer"]
    table = first[columns].reset_coords()[columns].to_dataframe()
    per_attribute = table.attribute.value_counts(sort=False)
    shown = table.groupby("attribute", sort=False).head(2)
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>"
        for row in shown[columns].values
    )
    heads = "".join(f"<th>{escape(column.replace('_', ' '))}</th>" for column in columns)
    counts = ", ".join(f"{escape(str(name))} {n}" for name, n in per_attribute.items())
    caption = f"<p>Two of each attribute, of n = {len(table)} ({counts}).</p>"
    return f"{caption}<table><tr>{heads}</tr>{rows}</table>"


def _provenance(results: dict[str, xr.Dataset], run: dict | None, command: str) -> str:
    first = next(iter(results.values()))
    made_by, request = (json.loads(first.attrs.get(name, "{}")) for name in ("made_by", "request"))
    steps = ", ".join(map(str, first.step.values.tolist()))
    rows = {
        "command": command or made_by.get("command") or "from Python",
        "training command": (run or {}).get("command") or "unknown",
        "checkpoints": f"steps {steps}",
        "sites": ", ".join(results),
        "options": json.dumps(
            {
                key: value
                for key, value in request.items()
                if key not in ("step", "site", "checkpoint", "versions")
            }
        ),
        "versions": json.dumps(request.get("versions", {}) | made_by.get("versions", {})),
        "hardware": json.dumps(made_by.get("hardware", {})),
        "git commit": str(made_by.get("git_commit")),
        "date": made_by.get("date", "unknown"),
    }
    body = "".join(
        f"<tr><th>{escape(name)}</th><td><code>{escape(value)}</code></td></tr>"
        for name, value in rows.items()
    )
    return f"<table>{body}</table>{_TERMS}"


_GO_TO = """
document.getElementById('{plot_id}').on('plotly_click', event => {
  const place = event.points[0].customdata;
  if (typeof place === 'string' && place.startsWith('#')) location.hash = place;
});
"""
_TERMS = """
<p class='note'><b>Terms.</b> Clean: the prompt whose answer is right. Corrupted: the same
sentence with another person's name. Logit difference: logit of the first token of the right value
minus that of the other person's, in nats, at the position that predicts it. Recovered: (patched −
corrupted) ÷ (clean − corrupted), means over facts, unclipped; 0 is the corrupted run, 1 the clean
one. Lost (noising): 1 − recovered; 0 is the clean run, 1 the corrupted one. Shares of different
cells need not add up to 1.</p>"""


def figure_html(name: str, figure: go.Figure) -> str:
    """A figure for a page. A click on a point whose ``customdata`` is a text that begins with #
    goes to that place of the page.
    """
    return figure.to_html(
        post_script=_GO_TO,
        full_html=False,
        include_plotlyjs=False,
        auto_play=False,
        div_id=f"figure-{name}",
        config={"displaylogo": False},
    )
