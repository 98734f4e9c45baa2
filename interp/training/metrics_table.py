"""The rows of metrics.parquet: metrics of a model at each checkpoint."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from interp.config import TrainConfig
from interp.data.batches import UNKNOWN, evaluation_set, people_of
from interp.data.biographies import Texts
from interp.files import read_table, table_bytes, write_bytes
from interp.model.decoder import HookedDecoder
from interp.training.evaluation import AVERAGE, evaluate
from interp.training.optimizer import Trainee
from interp.training.run_folder import json_digest, read_record

SPLITS = ("train", "held-out")
BESIDE = ("new", UNKNOWN)
"""People whom fine-tuning adds; people met with other values in every biography."""
_TEXTS = ("split", "attribute")
_MEASURES = ("loss", "accuracy", "max_probability", "entropy")
COLUMNS = ("step", *_TEXTS, *_MEASURES, "learning_rate", "tokens_seen", "training_loss")


class Metrics:
    """The metrics table of a run in training, computed in the run's precision; ``losses`` are those
    of the batches since its last row, and stay on the device until the next.
    """

    def __init__(
        self, config: TrainConfig, out: Path, texts: Texts, reference: HookedDecoder | None
    ) -> None:
        self.config, self.path, self.reference = config, out / "metrics.parquet", reference
        splits = [*SPLITS, *(name for name in BESIDE if people_of(config, name)[1])]
        self.sets = {split: evaluation_set(texts, config, split) for split in splits}
        self.table = read_metrics(self.path) if self.path.is_file() else pd.DataFrame()
        self.losses: list[Tensor] = []

    def go_on_from(self, steps: list[int]) -> None:
        """Drops rows of steps other than these.

        Raises:
            ValueError: a row of these is missing, or there twice.
        """
        if len(self.table):
            self.table = self.table[self.table.step.isin(steps)]
        told = self.config.attributes
        wanted = sorted((split, name) for split in self.sets for name in (*told, AVERAGE))
        for step in steps:
            rows = self.table[self.table.step == step] if len(self.table) else self.table
            if not len(rows) or sorted(zip(rows.split, rows.attribute)) != wanted:
                raise ValueError(
                    f"{self.path} lacks rows of step {step}, or holds others; copy it again, or "
                    "train again into another --out"
                )

    def add(self, model: HookedDecoder, trainee: Trainee, learning_rate: float) -> None:
        training_loss = torch.stack(self.losses).double().mean().item() if self.losses else np.nan
        self.losses.clear()
        reference = self.reference if trainee.step >= self.config.start_step else None
        precision = "bf16" if self.config.precision == "bf16" else "fp32"
        rows = [
            evaluate(model, biographies, reference=reference, precision=precision).assign(
                step=trainee.step,
                split=split,
                learning_rate=learning_rate,
                tokens_seen=trainee.tokens_seen,
                training_loss=training_loss,
            )
            for split, biographies in self.sets.items()
        ]
        self.table = pd.concat([self.table, *rows], ignore_index=True)[list(COLUMNS)]
        self.table.attrs = {"config": json_digest(read_record(self.path.parent)["config"])}
        write_bytes(self.path, table_bytes(self.table))


def read_metrics(path: Path) -> pd.DataFrame:
    """The table in a run's metrics.parquet.

    Raises:
        FileNotFoundError, ValueError: it is missing or damaged, has other columns, or is of
            another run than the folder's.
    """
    table = read_table(path)
    of_run = (path.parent / "run.json").is_file()
    recorded = read_record(path.parent).get("digests") if of_run else None
    if recorded and table.attrs.get("config", recorded["config"]) != recorded["config"]:
        raise ValueError(f"{path} is of another run than its run.json; copy this run's own")
    for name in dict.fromkeys((*COLUMNS, *table.columns)):
        if name not in table:
            wrong = f"it has no column {name!r}"
        elif name not in COLUMNS:
            wrong = f"it has the unknown column {name!r}"
        elif (
            table[name].dtype.kind not in ("iu" if name == "step" else "iuf") and name not in _TEXTS
        ):
            wrong = f"column {name!r} holds {table[name].dtype}, not numbers"
        elif name in ("accuracy", "max_probability") and not table[name].between(0, 1 + 1e-6).all():
            wrong = f"column {name!r} is not from 0 to 1"
        else:
            continue
        raise ValueError(f"{path} is damaged ({wrong}); copy it again, or train again")
    for row in table[table.duplicated(["step", *_TEXTS]) | (table.step < 0)].itertuples():
        raise ValueError(
            f"{path} is damaged (step {row.step}, {row.split}, {row.attribute} is there twice, or "
            "negative); copy it again, or train again"
        )
    return table
