"""When did each curve in a file rise, with what uncertainty, and in which order?"""

import os
from pathlib import Path

import numpy as np
import pandas as pd

from analyses.emergence import EmergenceConfig
from interp.dynamics.emergence import MARKS, Order, emergence, order, read_curves
from interp.dynamics.plateau import format_step
from interp.files import check_file, write_bytes


def time_and_write(config: EmergenceConfig, *, command: str, bar) -> str:
    """Rise times and their order in words; the times are also written to a CSV if one is given."""
    if config.out:
        check_file(Path(config.out))
        if os.path.exists(config.curves) and _is_same(config.out, config.curves):
            raise ValueError(f"out is {config.out}, the file of the curves; choose another --out")
    table, found = run(config)
    if config.out:
        write_bytes(Path(config.out), table.to_csv(index=False).encode())
    return said(table, found)


def _is_same(one: str, other: str) -> bool:
    return os.path.exists(one) and os.path.samefile(one, other)


def run(config: EmergenceConfig) -> tuple[pd.DataFrame, Order | None]:
    """One row per curve, as ``interp.dynamics.emergence.emergence`` returns it; and the order in
    which curves emerged, None if fewer than two did.
    """
    curves = read_curves(Path(config.curves))
    if "curve" not in curves.dims:
        curves = curves.expand_dims(curve=["value"])
    how = {"confidence": config.confidence, "seed": config.seed}
    found = emergence(curves, **how)
    measures = [f"{mark}{end}" for mark in (*MARKS, "rise") for end in ("", "_low", "_high")]
    columns = ["emerged", "reason", *measures, *(f"resolution_{mark}" for mark in MARKS)]
    table = found[columns].to_dataframe()[columns].reset_index()
    emerged = np.flatnonzero(found.emerged)
    if len(emerged) < 2:
        return table, None
    n_pairs = len(emerged) * (len(emerged) - 1) // 2
    enough = max(1000, int(2 * n_pairs / (1 - config.confidence)) + 1)  # for p to get so small
    return table, order(curves.isel(curve=emerged), between="curve", n_resamples=enough, **how)


def said(table: pd.DataFrame, found: Order | None) -> str:
    """The times of each curve and their order in words."""
    lines = []
    for row in table.itertuples():
        if not row.emerged:
            lines.append(f"{row.curve}: no step, {row.reason}")
            continue
        lines.append(f"{row.curve}: {'; '.join(_in_words(row, mark) for mark in MARKS)}")
    if found is not None:
        share = "" if np.isnan(found.share) else f", so in {found.share:.0%} of bootstrap samples"
        sure = "significant" if found.significant else "not significant"
        sure = "not tested: no column fact" if np.isnan(found.share) else sure
        lines.append(f"order of midpoints: {' → '.join(found.labels)} ({sure}{share})")
    return "\n".join(lines)


def _in_words(row, mark: str) -> str:
    spacing = getattr(row, f"resolution_{mark}")
    at, low, high = (
        format_step(getattr(row, f"{mark}{end}"), spacing) for end in ("", "_low", "_high")
    )
    between = "" if np.isnan(getattr(row, f"{mark}_low")) else f" [{low}, {high}]"
    return f"{mark} {at}{between}, checkpoints {format_step(spacing, spacing)} apart"
