"""Runs the study from the command line, and shows its tables in words and on a page of figures."""

import sys
from math import log
from pathlib import Path

import pandas as pd
import torch

from analyses.associative_memory import AssociativeMemoryConfig
from analyses.associative_memory.forgetting import CHOICES, LAYERS, N_BINS, SIZES, Size, study
from analyses.associative_memory.memory_figures import figures, weight_in_words
from analyses.studies import (
    difference,
    difference_in_words,
    mean_in_words,
    paired,
)
from interp.files import check_writable, write_bytes, write_json
from interp.provenance import provenance
from interp.report.page import Bullets, Paragraph, Plot, Prose, Section, Table, anchor, page

_METHOD = (
    "A one-hidden-layer ReLU MLP maps keys to values (arXiv 2503.21676, appendix F.4). It is "
    "pre-trained on old pairs, then fine-tuned on new ones. A replay weight w means that an old "
    "pair is drawn with w times the probability of a new one. Accuracy and loss are those on all "
    "old and on all new pairs."
)
KNOWN = 0.99
"""New pairs count as known from the first evaluated step with this mean accuracy."""
_MEANS = (
    "Means over seeds, at the evaluated steps. New pairs count as known from the first step with a "
    f"mean accuracy of {KNOWN}."
)


def run(config: AssociativeMemoryConfig, *, command: str, bar) -> str:
    """The findings in words, and where they were written."""
    folder, size = Path(config.folder), SIZES[config.preset]
    check_writable(folder)
    total = size.model_steps(config.seeds)
    task = bar.add_task("training, steps of all models", total=total)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the matrices are small: threads would mostly wait for each other
    try:
        tables = study(size, range(config.seeds), lambda n: bar.advance(task, n))
    finally:
        torch.set_num_threads(threads)
    if bar.disable:  # a log file
        print(f"interp-analyse: {total} model-steps are done", file=sys.stderr)
    lines = said(tables, size)
    target = _save(tables, lines, size, folder, command)
    smoke = ["smoke: too small to show anything but that it works"]
    lines = (smoke if config.preset == "smoke" else []) + lines
    written = [f"tables: {folder}", f"report: {target}  (open it in a browser)"]
    return "\n".join(lines + written)


def said(tables: dict[str, pd.DataFrame], size: Size) -> list[str]:
    """The findings, each in a line: means over seeds ± half of 95 % intervals."""
    table, last, n = tables["associative_memory"], size.looked_into[-1], size.n_new_with_replay
    start, end = table[table.step == 0], table[table.step == last]
    begins = f"{_mean(start, 'old_accuracy')}, loss {_mean(start, 'old_loss', 4)} nats"
    none = f"{log(size.shape.n_values):.2f} with no knowledge"
    without = [
        f"{_mean(alike, 'old_accuracy')} after {many} new pairs"
        for many, alike in end[end.replay_weight == 0].groupby("n_new")
    ]
    replayed = [
        f"{_mean(alike, 'old_accuracy')} with {weight_in_words(weight)}"
        for weight, alike in end[end.n_new == n].groupby("replay_weight")
    ]
    return [
        f"{size.n_old} pairs are learned: accuracy {begins} per pair ({none})",
        f"old accuracy at fine-tuning step {last}, without replay: {', '.join(without)}",
        f"the same after {n} new pairs, by replay weight: {', '.join(replayed)}",
        *_layers_in_words(tables["associative_memory_layers"], size),
        *_cosines_in_words(tables["associative_memory_cosine"], size),
        *_choices_in_words(tables["associative_memory_choices"], size),
    ]


def _layers_in_words(table: pd.DataFrame, size: Size) -> list[str]:
    last, n = size.looked_into[-1], size.n_new_with_replay
    of = table[(table.step == last) & (table.n_new == n) & (table.replay_weight == 0)]
    lines = []
    for layer in LAYERS:
        alike = of[of.fine_tuned == layer]
        lines.append(
            f"the fine-tuned {layer} layer with the other pre-trained layer ({n} new pairs, step "
            f"{last}): old accuracy {_mean(alike, 'old_accuracy')}, new "
            f"{_mean(alike, 'new_accuracy')}; it moved by {_mean(alike, 'relative_change')} of its "
            f"norm, {_mean(alike, 'share_of_top_units')} of the squared change lies in the tenth "
            "of the units that changed most"
        )
    return lines


def _cosines_in_words(table: pd.DataFrame, size: Size) -> list[str]:
    """The nearest fifth of old keys less the farthest, by number of new pairs."""
    lines = []
    for n, alike in table[table.step == size.looked_into[-1]].groupby("n_new"):
        far, near = (alike[alike.fifth == fifth] for fifth in (0, N_BINS - 1))
        less = difference_in_words(pd.Series(difference(paired(near, far, "old_accuracy"))), 3)
        cosines = [_mean(part, "largest_cosine", 2).split(" ")[0] for part in (near, far)]
        lines.append(
            f"{n} new pairs, step {size.looked_into[-1]}: old accuracy on the fifth of old keys "
            f"nearest to a new key (cosine {cosines[0]}) less the farthest ({cosines[1]}): {less}"
        )
    return lines


def _choices_in_words(table: pd.DataFrame, size: Size) -> list[str]:
    lines = []
    for name in CHOICES:
        alike = table[table.choice == name]
        start, early, late = (
            _mean(alike[alike.step == step], "old_accuracy")
            for step in (0, size.looked_into[0], size.looked_into[-1])
        )
        lines.append(
            f"{name}: old accuracy {start} before fine-tuning on {size.n_new_with_replay} pairs, "
            f"{early} at step {size.looked_into[0]}, {late} at step {size.looked_into[-1]}"
        )
    return lines


HEADS = (
    "new pairs", "replay", "old pairs in a batch", "old accuracy, step {early}", "step {last}",
    "lowest (step)", "highest old loss (step)", "new accuracy, step {early}", "step {last}",
    "new known from step", "old accuracy then",
)  # fmt: skip


def rows(table: pd.DataFrame, size: Size) -> list[list[str]]:
    """Cells of the table of all mixtures, under ``HEADS``: means over seeds."""
    early, last = size.looked_into[0], size.looked_into[-1]
    mean = table.groupby(["n_new", "replay_weight", "step"]).mean().drop(columns="seed")
    found = []
    for of in size.mixtures:
        line = mean.loc[of.n_new, of.replay_weight]
        low, high = line.old_accuracy.idxmin(), line.old_loss.idxmax()
        known = line.index[line.new_accuracy >= KNOWN]
        found.append([
            str(of.n_new), weight_in_words(of.replay_weight), f"{of.share_of_old:.1%}",
            f"{line.old_accuracy[early]:.3f}", f"{line.old_accuracy[last]:.3f}",
            f"{line.old_accuracy[low]:.3f} ({low})", f"{line.old_loss[high]:.3f} ({high})",
            f"{line.new_accuracy[early]:.3f}", f"{line.new_accuracy[last]:.3f}",
            str(known[0]) if len(known) else "none",
            f"{line.old_accuracy[known[0]]:.3f}" if len(known) else "",
        ])  # fmt: skip
    return found


def heads(size: Size) -> list[str]:
    at = {"early": size.looked_into[0], "last": size.looked_into[-1]}
    return [head.format(**at) for head in HEADS]


def _mean(table: pd.DataFrame, column: str, digits: int = 3) -> str:
    of_seed = table.groupby("seed")[column].mean().to_numpy()
    return mean_in_words(of_seed, digits)


def _save(
    tables: dict[str, pd.DataFrame], lines: list[str], size: Size, folder: Path, command: str
) -> Path:
    """Writes the tables, what made them, and the page; returns the page."""
    for name, table in tables.items():
        csv = table.to_csv(index=False, float_format="%.9g")
        write_bytes(folder / f"{name}.csv", csv.encode())
    made = {"command": command} | provenance()
    write_json(folder / "associative-memory.json", made)
    shown = {
        key: ", ".join(f"{a} {b}" for a, b in x.items()) if isinstance(x, dict) else str(x)
        for key, x in made.items()
    }
    every = Table(heads(size), rows(tables["associative_memory"], size))
    sections = [Section("All mixtures", [Paragraph(_MEANS), every])]
    sections += [
        Section(heading, [Plot(anchor(heading), figure)])
        for heading, figure in figures(tables, size).items()
    ]
    links = Prose("table_links.html.j2", {"names": list(tables)})
    sections.append(Section("Made by", [Table([], list(shown.items())), links]))
    lead = [Paragraph(_METHOD), Bullets(lines, "lead")]
    target = folder / "associative-memory.html"
    write_bytes(target, page("Associative memory", lead, sections).encode())
    return target
