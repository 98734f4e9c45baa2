"""The sections of a run's page: those of what was computed, and the commands for the rest."""

import json
import shlex
from collections.abc import Sequence
from os.path import relpath
from pathlib import Path
from urllib.parse import quote

import xarray as xr

from interp.localization.formation import Localization
from interp.provenance import provenance
from interp.report.figures.labels import patch_in_words
from interp.report.overview import Overview, PageSection, Panel, Remark
from interp.suite import Suite
from interp.training.run_folder import read_record

_SHARES = (
    "Share of recall lost without each head's attention from one token to another, or each MLP's "
    "output at a token (an effect, not a correlation). Blue: needed; red: in the way; pale: not "
    "shown to matter at that step. Columns are checkpoints, not to scale. Listed are those shown "
    "to matter at some checkpoint, at most 12 of each mechanism: they lose 5 % or more, so "
    "says the whole interval, and more than their control, the same change scored on an unrelated "
    "pair of values (p < 0.05, corrected for the number of tests)."
)


def chapters(
    suite: Suite,
    data: Overview,
    found: Localization | None,
    *,
    quick: bool,
    results: Sequence[xr.Dataset],
    beside: Path,
    command: str,
) -> list[PageSection]:
    """All sections, in the order of the page, which will be in the folder ``beside``."""
    shown = [*_answer(suite, data, found, quick), _training(data)]
    shown += [_patching(suite, data, results), *_components(data), _attention(data)]
    shown += [_attribution(suite, data, beside), _hallucination(data), _finetuning(suite, data)]
    return [*shown, _provenance(suite, found, results, command)]


def _analyse(name: str, suite: Suite) -> str:
    return shlex.join(["interp-analyse", name, "--ckpt", str(suite.path)])


def _answer(
    suite: Suite, data: Overview, found: Localization | None, quick: bool
) -> list[PageSection]:
    if found is None:
        line = Remark("Mechanisms are not localized in models with parallel blocks.")
        return [PageSection("When and where", lines=[line])]
    n = found.curves.sizes["fact"]
    few = (
        f"This is a quick localization with n = {n} facts; for all facts and controls in depth run"
    )
    lines = [Remark(few, _analyse("localization", suite))] if quick else []
    return [
        PageSection(
            "When and where",
            "Move the slider, or press ← and →, to go through training; space plays.",
            [
                Panel(
                    "timeline",
                    "When each mechanism formed",
                    f"Grey: the plateau, on which only frequencies are known. Bands: 95 % over "
                    f"n = {n} facts, cut at the frame. An effect is drawn from where the model "
                    "prefers right values at all; at first there is little recall to lose, and "
                    "bands are wide. A score is not a cause: attention can be there before it "
                    "matters. Diamonds: half-way between a curve's first and last value, "
                    "interpolated between checkpoints, with its 95 % interval.",
                ),
                Panel(
                    "model",
                    "Where it is",
                    "Heads (circles, with the tokens that they read) and MLPs (boxes) at the token "
                    "where they write. The stronger the colour, the more recall is lost without "
                    "them; pale ones are not shown to matter at this step. Point at one, or tap "
                    "it, for its numbers.",
                ),
            ],
            lines=lines,
            wide=True,
            screen=True,
        )
    ]


def _training(data: Overview) -> PageSection:
    if data.training is None:
        return PageSection("Training", lines=[Remark("The run folder has no metrics.")])
    return PageSection(
        "Training",
        panels=[
            Panel(
                "loss",
                "Loss",
                "Sum over the tokens of a value, in sentences that were not trained on. Grey: the "
                "plateau.",
            ),
            Panel(
                "byattribute",
                "What is known, by attribute",
                "Share of values with every token right, people trained on.",
            ),
        ],
        wide=True,
    )


def _patching(suite: Suite, data: Overview, results: Sequence[xr.Dataset]) -> PageSection:
    stored = suite.path / "results" / "patching"
    if data.patching is None and any(stored.glob("step-*.nc")):
        text = (
            "The stored results of patching have no map to show here: they are of paths or edges, "
            "have no corrupted answers, or are about other weights than the run has now."
        )
        return PageSection("Patching maps", text)
    if data.patching is None:
        line = Remark(
            "Nothing has been patched yet; run",
            shlex.join(["interp-patch", "--ckpt", str(suite.path)]),
        )
        return PageSection("Patching maps", lines=[line])
    choices = ["site", "attribute", "direction", "metric"]
    kept = [x for x in choices if len(_options(data, x)) > 1]
    return PageSection(
        "Patching maps",
        f"One activation at a time is replaced ({_how(results)}). The corrupted run is that of the "
        "same sentence with another name, or with noise on the name. 1: that alone moves the model "
        "all the way to the other run; 0: not at all.",
        [
            Panel(
                "maps",
                "What one activation moves",
                "Means over facts; point at a cell for its 95 % bootstrap interval and n. Grey: "
                "the model does not yet tell the two prompts apart, or no prompt has the position. "
                "Only the name differs, so heads that carry what is asked for can't show; an MLP "
                "that shows here is a memory only if the value becomes readable after it.",
            )
        ],
        kept,
    )


def _how(results: Sequence[xr.Dataset]) -> str:
    """What is replaced by what, in each direction."""
    ways = {x.attrs["direction"]: patch_in_words(x) for x in results}
    return "; ".join(f"{direction}: {how}" for direction, how in ways.items())


def _options(data: Overview, choice: str) -> list:
    values = data.patching["values"]
    return {
        "site": ["all", *data.patching["sites"]],
        "attribute": data.patching["attributes"],
        "direction": list(values),
        "metric": list(next(iter(values.values()))),
    }[choice]


def _components(data: Overview) -> list[PageSection]:
    if data.mechanisms is None:
        return []
    return [
        PageSection(
            "Heads and MLPs over time",
            panels=[
                Panel(
                    "lines",
                    "Recall lost without each part of one mechanism",
                    "Bands: 95 %, bootstrap over facts.",
                ),
                Panel("components", "The same for all mechanisms", _SHARES),
            ],
            choices=["mechanism"],
        )
    ]


def _attention(data: Overview) -> PageSection:
    edges = Panel(
        "edges",
        "Where this head attends, over training",
        "Means over facts with 95 % bands; shares of the attention of the token that attends, so "
        "that only lines to the same token compare. Attention is a score: what it causes is above.",
    )
    return PageSection(
        "Attention over tokens",
        panels=[
            Panel(
                "attention",
                "Attention on an example prompt",
                "Underlined in colour: name, sentence, answer position. Choose a head by its map.",
            ),
            *([] if data.mechanisms is None else [edges]),
        ],
        choices=["prompt", "head"],
    )


def _attribution(suite: Suite, data: Overview, beside: Path) -> PageSection:
    """A figure of each, and links to their own pages."""
    panels = [
        *_kept(
            data,
            "circuits",
            "How much a circuit keeps",
            "The smallest set of connections found that keeps most of the recall, at each "
            "checkpoint that has one: what the model recalls with all other connections as in the "
            "run on another name, and with these alone as in that run. 1: as the whole model; 0: "
            "as with another name. Bands: 95 % over facts that did not choose the set.",
        ),
        *_kept(
            data,
            "attention-attribution",
            "How strongly heads prefer the tokens they read",
            "Mean attention score to some tokens minus that to others, of the head whose attention "
            "from the one to the other is needed most at the last step. Bands: 95 % over facts.",
        ),
    ]
    lines = []
    for name, what in (
        ("circuits", "Which edges between components recall facts"),
        ("attention-attribution", "Why heads attend to names"),
        ("localization", "The mechanisms in depth: probes, neurons, edits, direct effects"),
        ("patching", "All patched sites, with the strongest patches"),
    ):
        if (suite.path / f"{name}.html").is_file():
            link = relpath(suite.path / f"{name}.html", beside)
            lines.append(Remark(f"{what}:", link=quote(link)))
        elif name != "patching":
            lines.append(Remark(f"{what}: not run; use", _analyse(name, suite)))
    return PageSection("Attribution and circuits", panels=panels, lines=lines, wide=True)


def _hallucination(data: Overview) -> PageSection:
    line = Remark(
        "When exactly it begins, what is said, and how well it can be told (trains models):",
        "interp-analyse hallucination",
    )
    if data.training is None or "held-out" not in data.training["splits"]:
        return PageSection("Hallucination", lines=[line])
    return PageSection(
        "Hallucination",
        "People whom the model never met: does it become surer of what it says about them while "
        "that stays wrong?",
        [
            Panel("accuracy", "What is right", "Share of values with every token right."),
            Panel("confidence", "How confident it is", "Mean highest probability at value tokens."),
            *_kept(
                data,
                "told",
                "Can known people be told from unknown ones?",
                "Three models of 320 people, kept with the toolkit, not this run. "
                "AUROC of known against held-out people; bands: 95 % over models, cut at 0 and 1.",
            ),
        ],
        lines=[line],
        wide=True,
    )


def _finetuning(suite: Suite, data: Overview) -> PageSection:
    if suite.config.from_run:
        text = (
            f"This run is fine-tuned, with {suite.config.new_people} new people, from step "
            f"{suite.config.from_step} of {Path(suite.config.from_run).name}; its curves are above."
        )
        return PageSection("Fine-tuning", text)
    line = Remark(
        "What fine-tuning on new people costs, and which weights carry it (trains models):",
        "interp-analyse finetuning",
    )
    panels = _kept(
        data,
        "finetuned",
        "What fine-tuning on new people costs",
        "Three models of 160 people, kept with the toolkit, not this run, fine-tuned on 20 new "
        "people alone; bands: 95 % over models, cut at 0 and 1. What comes back "
        "on old people, and how fast: see docs/hallucination-and-finetuning.md.",
    )
    return PageSection("Fine-tuning", panels=panels, lines=[line])


def _kept(data: Overview, name: str, title: str, caption: str) -> list[Panel]:
    return [Panel(name, title, caption)] if name in data.plain else []


def _provenance(
    suite: Suite, found: Localization | None, results: Sequence[xr.Dataset], command: str
) -> PageSection:
    record = read_record(suite.path)
    made = provenance()
    digests = ", ".join(f"{step}: {suite.sha256(step)[:12]}" for step in suite.steps)
    rows = [
        ("this page", command or "from Python"),
        *_of_localization(found),
        ("training", record.get("command") or "unknown"),
        ("seed of training", str(suite.config.seed)),
        ("versions", _listed(made["versions"])),
        ("git commit", str(made["git_commit"])),
        ("date", made["date"]),
        ("hardware", _listed(made["hardware"])),
        ("checkpoints (step: first digits of sha256)", digests),
    ]
    if results:
        asked = json.loads(results[0].attrs.get("request", "{}"))
        by = json.loads(results[0].attrs.get("made_by", "{}"))
        not_options = ("step", "site", "checkpoint", "versions")
        options = {key: x for key, x in asked.items() if key not in not_options}
        rows[1:1] = [
            ("patching", by.get("command") or "from Python"),
            ("options of patching", json.dumps(options)),
        ]
    return PageSection("What was run", rows=rows)


def _of_localization(found: Localization | None) -> list[tuple[str, str]]:
    if found is None:
        return []
    by = json.loads(found.answers["needs"].attrs.get("made_by", "{}"))
    made = f"{by.get('command') or 'from Python'}, {by.get('date', 'date unknown')}"
    steps = ", ".join(map(str, found.curves.step.values.tolist()))
    n = found.curves.sizes["fact"]
    return [("localization", f"{made}; n = {n} facts, steps {steps}")]


def _listed(values: dict) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())
