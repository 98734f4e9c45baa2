"""What a run folder says of its run: run.json, population, tokenizer; read, checked, written."""

import json
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pandas as pd
from tokenizers import Tokenizer

from interp.bios.batches import sampling_weights
from interp.bios.population import no_knowledge_baseline
from interp.bios.tokenizer import save_tokenizer
from interp.config import ATTRIBUTES, TrainConfig, train_config
from interp.files import write_bytes, write_json
from interp.provenance import provenance


def read_config(run: Path) -> TrainConfig:
    """The configuration in a run folder's run.json.

    Raises:
        FileNotFoundError, ValueError: there is none, or it can't be read.
    """
    return train_config(read_record(run)["config"])


def read_record(run: Path) -> dict:
    """All of a run folder's run.json.

    Raises:
        FileNotFoundError, ValueError: there is none, or it can't be read.
    """
    path = run / "run.json"
    if not path.is_file():
        raise FileNotFoundError(f"no run.json in {run}; give the folder that interp-train wrote")
    try:
        record = json.loads(path.read_text())
        train_config(record["config"])
        if set(record["no_knowledge_baseline"]) != set(ATTRIBUTES):
            raise KeyError("no_knowledge_baseline")
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); copy it again, or train again into another folder"
        ) from None
    return record


def is_begun(config: TrainConfig, out: Path, resume: bool) -> bool:
    """Whether ``out`` holds such a run, to go on with.

    Raises:
        ValueError: it holds one that can't or mustn't be gone on with.
    """
    path = out / "run.json"
    if path.is_file() and not resume:
        raise ValueError(
            f"{out} holds a run already; add --resume to go on with it, or choose another --out"
        )
    if not path.is_file() and resume and any(out.glob("step-*")):
        raise ValueError(
            f"{out} has checkpoints but no run.json, so it can't be resumed; choose another --out"
        )
    if path.is_file():
        recorded = read_config(out)
        if changed := [
            f.name for f in fields(config) if getattr(config, f.name) != getattr(recorded, f.name)
        ]:
            name = changed[0]
            raise ValueError(
                f"{out} was started with {name} {getattr(recorded, name)}, not "
                f"{getattr(config, name)}; "
                "resume it with what it was started with, or choose another --out"
            )
    return path.is_file()


def begin(
    config: TrainConfig, out: Path, people: pd.DataFrame, tokenizer: Tokenizer, command: str
) -> None:
    """Writes what a run folder holds before its first checkpoint; run.json last."""
    save_tokenizer(tokenizer, out)
    weights = sampling_weights(config, config.n_steps - 1)
    people = people.assign(sampling_weight=np.pad(weights, (0, config.n_held_out)))
    write_bytes(out / "population.parquet", people.to_parquet(index=False))
    record = {
        "command": command,
        "config": asdict(config),
        "no_knowledge_baseline": no_knowledge_baseline(people),
    }
    write_json(out / "run.json", record | provenance())
