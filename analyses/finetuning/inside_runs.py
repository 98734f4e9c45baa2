"""What changes inside the models of plain fine-tunings: roles, attention, and which weights carry
what is lost.
"""

from functools import partial
from pathlib import Path

import pandas as pd

from analyses.finetuning.roles_kept import named_groups, roles_of_run
from analyses.finetuning.tuned_attention import tuned_attention
from analyses.finetuning.weight_shares import transplants_of_run
from analyses.options import StudyConfig
from interp.process import local_workers

Tables = dict[str, pd.DataFrame]


def inside_runs(
    config: StudyConfig,
    folders: dict[str, Path],
    seeds: dict[str, int],
    *,
    transplanted: tuple[int, ...],
    localized: tuple[int, ...],
) -> Tables:
    """``finetuning_transplants`` (also of the components that localization names before
    fine-tuning), ``finetuning_attention`` and ``finetuning_roles`` of several runs.

    Args:
        seeds: of each run.
        transplanted: steps at which weights are transplanted, and attention measured.
        localized: steps at which roles are measured.
    """
    ask = partial(_of_run, transplanted=transplanted, localized=localized, device=config.device)
    with local_workers(min(config.workers, len(folders))) as pool:
        found = list((map if pool is None else pool.map)(ask, folders.values()))
    return {
        name: pd.concat(
            [
                tables[name].assign(run=run, seed=seeds[run])
                for run, tables in zip(folders, found, strict=True)
            ],
            ignore_index=True,
        )
        for name in found[0]
    }


def _of_run(
    run: Path, *, transplanted: tuple[int, ...], localized: tuple[int, ...], device: str
) -> Tables:
    roles = roles_of_run(run, (0, *localized), device=device)
    named = named_groups(roles)
    return {
        "finetuning_transplants": transplants_of_run(run, transplanted, named, device=device),
        "finetuning_attention": tuned_attention(run, (0, *transplanted), device=device),
        "finetuning_roles": roles,
    }
