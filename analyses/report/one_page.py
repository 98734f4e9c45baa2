"""Collects what is stored of a run, computes what is missing and quick, and writes the page."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr

from analyses.report import ReportPageConfig
from analyses.report.chapters import chapters
from analyses.report.five_sentences import sentences
from analyses.report.kept_studies import kept_lines
from analyses.report.quick_localization import localization_of, quick_steps
from analyses.report.stored_results import stored_lines
from interp.data.batches import people_of
from interp.files import check_page, write_bytes
from interp.localization.attention_to_names import EDGES
from interp.localization.formation import Localization
from interp.model.decoder import device_of
from interp.report import overview
from interp.report.patch_maps import patching_of
from interp.results.localize import plateau
from interp.results.store import read_folder, read_other_direction, repeats_in
from interp.suite import Suite, load_suite

N_PROMPTS = 3
DRAWN_ROLES = ("name_first", "name_middle", "name_last", "cue", "final")
Stored = tuple[dict[str, xr.Dataset], dict[str, xr.Dataset] | None]


def run_and_report(config: ReportPageConfig, *, command: str, bar) -> str:
    """The path of the page that was written."""
    suite = load_suite(config.ckpt)
    if not suite.is_run:
        raise ValueError(
            f"{suite.path} is not a run of interp-train, which this page is about; use "
            "interp-patch and interp-analyse localization with --facts-csv"
        )
    target = Path(config.out or suite.path / "report.html")
    check_page(target)
    found, quick = None, False
    if not suite.config.parallel:
        task = bar.add_task("localizing, checkpoint", total=len(quick_steps(suite)))
        found, quick = localization_of(
            suite, config, command=command, on_step=lambda n: bar.update(task, completed=n)
        )
    page = one_page(suite, config, found, quick=quick, beside=target.parent, command=command)
    write_bytes(target, page.encode())
    return f"report: {target}  (open it in a browser)"


def one_page(
    suite: Suite,
    config: ReportPageConfig,
    found: Localization | None,
    *,
    quick: bool,
    beside: Path,
    command: str = "",
) -> str:
    """The page as HTML.

    Args:
        found: None for models that localization does not know.
        quick: ``found`` is of few facts.
        beside: the folder that the page will be in, from which it links to other pages.
    """
    metrics = suite.metrics if (suite.path / "metrics.parquet").is_file() else None
    patching = _patching(suite)
    data = overview.Overview(
        name=suite.path.resolve().name,
        steps=_steps(suite, found, patching),
        model={
            "layers": suite.shape.n_layers,
            "heads": suite.shape.n_heads,
            "roles": DRAWN_ROLES,
            "words": overview.ROLE_WORDS,
            "places": overview.PLACE_WORDS,
        },
        training=_training(suite, metrics),
        mechanisms=_mechanisms(found),
        patching=None if patching is None else patching_of(*patching),
        attention=_attention(suite, config),
        plain=kept_lines() | stored_lines(suite, suite.path / "results"),
        first=_first(found),
    )
    said = [] if found is None else sentences(suite, metrics, plateau(suite), found)
    results = [] if patching is None else [x for of in patching if of for x in of.values()]
    notes = dict.fromkeys(str(x) for result in results for x in repeats_in(result))
    return overview.overview_page(
        "Where and when this model came to recall facts",
        _subtitle(suite, found),
        said,
        chapters(suite, data, found, quick=quick, results=results, beside=beside, command=command),
        data,
        warnings=list(notes),
    )


def _subtitle(suite: Suite, found: Localization | None) -> str:
    shape = suite.shape
    return (
        f"{suite.path.resolve().name}: {suite.config.n_people:,} people, {shape.n_layers} layers, "
        f"{shape.n_heads} heads, width {shape.d_model}, {len(suite.steps)} checkpoints to step "
        f"{suite.steps[-1]:,}{_localized(found)}. The people and their dates are made up. Recall "
        "is the logit of the right value minus that of another person's value. Lost without a head "
        "or MLP is the share of recall that goes when the head's attention is cut, or the MLP's "
        "output is replaced by its output for another name; such shares need not add up to 1. "
        "L0H1 is head 1 of layer 0; both are counted from 0."
    )


def _localized(found: Localization | None) -> str:
    return "" if found is None else f", {found.curves.sizes['step']} of them localized"


def _patching(suite: Suite) -> Stored | None:
    folder = suite.path / "results" / "patching"
    if not (folder.is_dir() and any(folder.glob("step-*.nc"))):
        return None
    results = read_folder(folder)
    steps = sorted(set.intersection(*(_of_run(suite, x) for x in results.values())))
    results = {site: x.sel(step=steps) for site, x in results.items()}
    if not steps or any(x.corrupted.isnull().all() for x in results.values()):
        return None
    other = read_other_direction(folder, results)
    return results, None if other is None else {k: x.sel(step=steps) for k, x in other.items()}


def _of_run(suite: Suite, result: xr.Dataset) -> set[int]:
    """Steps whose result is about the weights that the run has now."""
    digests = {int(step): x for step, x in json.loads(result.attrs["checkpoints"]).items()}
    return {
        step
        for step in result.step.values.tolist()
        if step in suite.steps and suite.sha256(step) == digests[step]
    }


def _steps(suite: Suite, found: Localization | None, patching: Stored | None) -> list[int]:
    steps = set(quick_steps(suite))
    if found is not None:
        steps |= set(found.curves.step.values.tolist())
    if patching is not None:
        steps |= set(next(iter(patching[0].values())).step.values.tolist())
    return sorted(steps)


def _training(suite: Suite, metrics: pd.DataFrame | None) -> dict | None:
    if metrics is None:
        return None
    config = suite.config
    evaluated = {
        split: min(people_of(config, split)[1], config.n_evaluated)
        for split in dict.fromkeys(metrics.split)
    }
    baseline = suite.no_knowledge_baseline
    return overview.training_of(metrics, baseline, plateau(suite), evaluated)


def _mechanisms(found: Localization | None) -> dict | None:
    if found is None:
        return None
    return overview.mechanisms_of(
        found.mechanisms, found.curves, found.formed, found.answers["attention"], EDGES
    )


def _first(found: Localization | None) -> dict[str, str]:
    """Choices to begin with: the head that loses the most."""
    if found is None:
        return {}
    table = found.mechanisms
    last = table[(table.step == table.step.max()) & (table.attribute == "all") & table.named]
    heads = last[last.kind == "head"].nlargest(1, "share").component
    return {"head": heads.iloc[0]} if len(heads) else {}


@torch.inference_mode()
def _attention(suite: Suite, config: ReportPageConfig) -> dict:
    """Attention of every head on a few prompts, one for each of the first attributes."""
    told = suite.config.attributes
    facts = suite.facts(len(told), attribute=told, seed=config.seed, fewer=True)
    shown = [facts[i] for i in range(min(N_PROMPTS, len(facts)))]
    device, steps = device_of(config.device), quick_steps(suite)
    found: dict[str, list[np.ndarray]] = {}
    labels = {f"{i + 1}: {x.text['attribute']}".replace("_", " "): x for i, x in enumerate(shown)}
    for step in steps:
        model = suite.load(step, device=device)
        for label, fact in labels.items():
            found.setdefault(label, []).append(_patterns(model, fact.clean.to(device)))
    prompts = {
        label: {
            "tokens": [suite.tokenizer.id_to_token(int(t)) for t in fact.clean],
            "roles": list(fact.roles),
            "answer": str(fact.text["answer"]),
        }
        for label, fact in labels.items()
    }
    return overview.attention_of({x: np.stack(found[x]) for x in labels}, prompts, steps)


def _patterns(model, tokens: torch.Tensor) -> np.ndarray:
    """(layer, head, dest, src)."""
    wanted = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    _, cache = model.run_with_cache(tokens[None], names_filter=wanted)
    return torch.stack([cache[name][0] for name in wanted]).float().cpu().numpy()
