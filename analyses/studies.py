"""What training studies share: naming runs after the fields they vary, training them in parallel,
and reading them as tidy tables.
"""

from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from scipy.stats import ttest_1samp

from analyses.options import StudyConfig
from analyses.shared_training import executor_for, train_part
from interp.config import TrainConfig
from interp.dynamics.plateau import (
    format_step,
    knowledge_start,
    phases,
    plateau_crossing,
    rises_from,
)
from interp.statistics import ALPHA, format_p, holm, margin
from interp.training.evaluation import AVERAGE
from interp.training.metrics_table import BESIDE, SPLITS, read_metrics
from interp.training.run_folder import read_record
from interp.training.run_many import OnStep, runs_left, train_all

_NOT_NAMED = ("device", "precision", "compile", "n_evaluated", "checkpoint_every", "dense_every",
              "dense_until", "keep")  # fmt: skip
_LONGEST_NAME = 120


@dataclass(frozen=True)
class Study:
    """Tables, figures and summary of a training study."""

    tables: dict[str, pd.DataFrame]
    """By the name of the CSV file."""
    figures: dict[str, go.Figure]
    """By heading."""
    said: str
    """A summary of a few lines."""


def variants(base: TrainConfig, changes: list[dict]) -> dict[str, TrainConfig]:
    """Configurations that differ from ``base``, by name, such as ``n_people-640_seed-1``."""
    return {name_of(base, replace(base, **change)): replace(base, **change) for change in changes}


def name_of(base: TrainConfig, config: TrainConfig) -> str:
    """The name of a run's folder in a study: the fields in which it differs from ``base``."""
    ours, theirs = asdict(config), asdict(base)
    changed = {k: v for k, v in ours.items() if v != theirs[k] and k not in _NOT_NAMED}
    words = "_".join(f"{k}-{_word(v)}" for k, v in changed.items())
    if len(words) > _LONGEST_NAME:  # a schedule, say; a file system takes 255
        words = f"{words[:_LONGEST_NAME]}-{sha256(words.encode()).hexdigest()[:8]}"
    return words or "base"


def trained(
    config: StudyConfig,
    runs: dict[str, TrainConfig],
    *,
    keep_all: bool = False,
    command: str = "",
    on_step: OnStep = lambda name, step, n_steps: None,
) -> dict[str, Path]:
    """Folders of the finished runs, by name.

    Args:
        keep_all: checkpoints stay on disk; of runs that differ from the base in the seed only they
            always do, since several studies want them.
    """
    kept = {"base", *(f"seed-{run.seed}" for run in runs.values())}
    runs = {
        name: run if keep_all or name in kept else replace(run, keep="last")
        for name, run in runs.items()
    }
    out = Path(config.folder) / "runs"
    if config.cluster.is_part and runs_left(runs, out):
        train_part(config, runs, out, command, on_step)
    with executor_for(config) as executor:
        return train_all(runs, out, executor=executor, command=command, on_step=on_step)


def curves(folders: dict[str, Path], runs: dict[str, TrainConfig]) -> pd.DataFrame:
    """One row per (run, step, split): what varies among the runs, then biographies seen per person,
    attribute loss (nats per value), accuracy, the no-knowledge baseline.
    """
    fields = varied(runs)
    tables = []
    for name, folder in folders.items():
        table = average_metrics(folder)
        baseline = np.mean(list(read_record(folder)["no_knowledge_baseline"].values()))
        seen = table.step * runs[name].batch_size / runs[name].n_people
        known = {"run": name, "baseline": baseline, "biographies_a_person": seen} | fields[name]
        tables.append(table.assign(**known))
    measures = ["loss", "accuracy", "max_probability", "entropy", "training_loss", "baseline"]
    at = ["step", "split", "biographies_a_person"]
    return pd.concat(tables, ignore_index=True)[["run", *fields[name], *at, *measures]]


def average_metrics(folder: Path) -> pd.DataFrame:
    """Metrics of a run averaged over attributes, one row per (step, split).

    Raises:
        FileNotFoundError, ValueError: it is missing or damaged; a row is missing, or there twice;
            the run diverged.
    """
    path = folder / "metrics.parquet"
    table = read_metrics(path)
    table = table[table.attribute == AVERAGE].sort_values("step", kind="stable")
    for row in table[table.duplicated(["step", "split"])].itertuples():
        raise ValueError(f"{path} has step {row.step}, {row.split}, twice; copy it again")
    known = (*SPLITS, *BESIDE)
    for split in table.split[~table.split.isin(known)]:
        raise ValueError(f"{path} has the split {split!r}; there are {', '.join(known)}")
    steps = {split: set(table.step[table.split == split]) for split in SPLITS}
    if not all(steps.values()) or steps["train"] != steps["held-out"]:
        counts = " and ".join(f"{len(at)} of {split} people" for split, at in steps.items())
        raise ValueError(f"{path} has rows at {counts}; it needs both at each step, copy it again")
    measured = ["loss", "accuracy", "max_probability", "entropy"]
    for row in table[~np.isfinite(table[measured]).all(axis=1)].itertuples():
        raise ValueError(
            f"{folder} diverged: its loss on {row.split} people is {row.loss} at step {row.step}, "
            "and no table is made of such runs; delete that folder and train it with a smaller "
            "learning rate, or leave it out"
        )
    return table


def outcomes(found: pd.DataFrame) -> pd.DataFrame:
    """One row per run in ``curves``: its phases as ``interp.dynamics`` finds them (steps, and
    biographies per person), the interval between the checkpoints around the end of the plateau, and
    its final loss and accuracy.

    With skewed sampling the loss of a model that knows no values lies above the baseline, which is
    that of uniform sampling, so that its plateau ends later by this rule.
    """
    rows = []
    for _, both in found.groupby("run", sort=False):
        table, held_out = both[both.split == "train"], both[both.split == "held-out"]
        step, last = table.step.to_numpy(), table.iloc[-1]
        loss, unknown = table.loss.to_numpy(), held_out.loss.to_numpy()
        ours = phases(step, loss, last.baseline)
        at = np.searchsorted(step, ours.plateau_end) if np.isfinite(ours.plateau_end) else 0
        a_step = last.biographies_a_person / last.step
        rows.append(
            last.drop(["split", "biographies_a_person", "training_loss", "step"]).to_dict()
            | {
                "n_steps": last.step,
                "plateau_start": ours.plateau_start,
                "plateau_end": ours.plateau_end,
                "plateau_crossing": plateau_crossing(step, loss, last.baseline),
                "knowledge_start": knowledge_start(step, loss, unknown, last.baseline),
                "held_out_rises_from": rises_from(step, unknown),
                "held_out_loss": unknown[-1],
                "resolution": step[at] - step[at - 1] if at else np.nan,
                "plateau_end_biographies_a_person": ours.plateau_end * a_step,
            }
        )
    return pd.DataFrame(rows)


def in_words(alike: pd.DataFrame) -> str:
    """Outcomes in words for runs that differ only in the seed: the end of the plateau for each
    seed, mean final loss and accuracy with 95 % intervals over seeds.
    """
    ended = [format_step(end) for end in alike.plateau_end.dropna()]
    stuck = f"{len(alike) - len(ended)} of {len(alike)}"
    plateau = f"plateau ends at {', '.join(ended)}" if ended else "plateau not left"
    plateau += f" (not left by {stuck})" if 0 < len(ended) < len(alike) else ""
    loss = mean_in_words(alike.loss.to_numpy(), 2)
    accuracy = mean_in_words(alike.accuracy.to_numpy(), 3)
    return f"{plateau}; final loss {loss}, accuracy {accuracy}"


def mean_in_words(values: np.ndarray, digits: int) -> str:
    """The mean ± half of its 95 % interval over seeds, or the only value."""
    return f"{values.mean():.{digits}f}{plus_minus(float(margin(values)), digits)}"


def plus_minus(half: float, digits: int) -> str:
    """Half of an interval as text, to follow its centre; empty where there is none."""
    return "" if np.isnan(half) else f" ± {half:.{digits}f}"


def sample_in_words(n: int, of: str = "seed") -> str:
    """What a figure's bands and lines are made of, for its subtitle."""
    return f"n = 1 {of}" if n == 1 else f"n = {n} {of}s, bands 95 %"


def paired(ones: pd.DataFrame, others: pd.DataFrame, measure: str) -> pd.DataFrame:
    """``measure`` under two conditions, in the columns one and other, by seed.

    Raises:
        ValueError: they were not run with the same seeds, each once.
    """
    one, other = (table.set_index("seed")[measure].sort_index() for table in (ones, others))
    if list(one.index) != list(other.index) or not one.index.is_unique:
        raise ValueError(
            f"runs of seeds {list(one.index)} can't be paired with {list(other.index)}"
        )
    return pd.DataFrame({"one": one, "other": other})


def difference(pairs: pd.DataFrame) -> dict:
    """``one`` minus ``other``: mean over seeds, half of its 95 % interval (Student's t), p
    (two-sided t test, unadjusted), the number of seeds, and the number of seeds left out because
    they lack one of the two.
    """
    whole = pairs.dropna()
    gaps = (whole.one - whole.other).to_numpy()
    return {
        "difference": gaps.mean() if len(gaps) else np.nan,
        "margin": float(margin(gaps)),
        "p": float(ttest_1samp(gaps, 0).pvalue) if len(gaps) > 1 else np.nan,
        "n_seeds": len(gaps),
        "n_without": len(pairs) - len(gaps),
    }


def with_holm(rows: list[dict]) -> pd.DataFrame:
    """Rows from ``difference``, one per comparison, with ``p_holm``: p adjusted for the number of
    comparisons.
    """
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table.p.to_numpy()))


def holm_in_words(table: pd.DataFrame) -> str | None:
    """How many comparisons in ``with_holm`` are significant; None where none could be tested."""
    tested = table.p_holm.dropna()
    if tested.empty:
        return None
    return (
        f"± are 95 % intervals, each for itself; {(tested < ALPHA).sum()} of {len(tested)} have "
        f"p < {ALPHA} after Holm's correction, the least is {format_p(tested.min())}"
    )


def difference_in_words(row, digits: int = 2) -> str:
    """Mean difference ± half of its 95 % interval."""
    return f"{row.difference:+.{digits}f}{plus_minus(row.margin, digits)}"


def varied(runs: dict[str, TrainConfig]) -> dict[str, dict]:
    """Values of the fields in which the runs differ, by run; ``n_people`` and ``seed`` are always
    included.
    """
    values = {name: asdict(config) for name, config in runs.items()}
    fields = [
        field
        for field in asdict(next(iter(runs.values())))
        if field in ("n_people", "seed") or len({str(v[field]) for v in values.values()}) > 1
    ]
    return {name: {field: _plain(v[field]) for field in fields} for name, v in values.items()}


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return Path(value).name if isinstance(value, str) and "/" in value else value


def _word(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(_plain(value))
    return text.replace(":", "x").replace(",", "-").replace(" ", "-")
