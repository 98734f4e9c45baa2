"""Reading, checking and writing the files that describe a run: run.json, population, tokenizer."""

import hashlib
import json
from dataclasses import asdict, fields
from math import isfinite
from pathlib import Path

import numpy as np
import pandas as pd
from tokenizers import Tokenizer

from interp.config import ATTRIBUTES, TrainConfig, train_config
from interp.data.batches import sampling_weights
from interp.data.population import SPLITS, check_population, no_knowledge_baseline
from interp.data.template_sets import TemplateSet, from_record
from interp.data.tokenizer import tokenizer_files
from interp.fields import shortened
from interp.files import read_json, read_table, table_bytes, write_bytes, write_json
from interp.model.checkpoint_folder import step_folders
from interp.provenance import provenance

_RECORDED = {
    "command": str,
    "config": dict,
    "no_knowledge_baseline": dict,
    "versions": dict,
    "git_commit": str | None,
    "hardware": dict,
    "date": str,
}
"""Keys of run.json, and what each holds."""
CSV_FIELDS = ("people_csv", "templates")
"""Fields of the configuration that name a user's CSV."""
_IN_DIGESTS = ("population.parquet", "tokenizer.json")
_WORDS = {str: "text", dict: "an object", str | None: "text or null"}


def read_config(run: Path) -> TrainConfig:
    """The configuration in a run folder's run.json.

    Raises:
        FileNotFoundError, ValueError: there is none, or it can't be read.
    """
    return train_config(read_record(run)["config"])


def read_record(run: Path) -> dict:
    """The contents of a run folder's run.json.

    Raises:
        FileNotFoundError, ValueError: there is none, or it can't be read.
    """
    path = run / "run.json"
    if not path.is_file():
        raise FileNotFoundError(f"no run.json in {run}; give the folder that interp-train wrote")
    record = read_json(path)
    try:
        _check_record(record)
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}); copy it again, or train again into another folder"
        ) from None
    return record


def _check_record(record: dict) -> None:
    """Raises a ValueError unless run.json holds exactly what ``begin`` writes."""
    for name in dict.fromkeys((*_RECORDED, *record)):
        if name in ("digests", "own_people"):  # older runs have no digests, synthetic ones no own
            continue
        if name not in record:
            raise ValueError(f"it lacks {name!r}")
        if name not in _RECORDED:
            raise ValueError(f"it has the unknown key {name!r}")
        if not isinstance(record[name], _RECORDED[name]):
            got, wanted = shortened(record[name]), _WORDS[_RECORDED[name]]
            raise ValueError(f"{name} is {got}; it must be {wanted}")
    train_config(record["config"])
    recorded = record.get("digests", {})
    if not isinstance(recorded, dict):
        raise ValueError(f"digests is {shortened(recorded)}; it must be an object")
    if recorded and recorded.get("config") != json_digest(record["config"]):
        raise ValueError("config is not the one that the run was begun with")
    attributes = tuple(own_templates(record) or ATTRIBUTES)
    baseline = record["no_knowledge_baseline"]
    if set(baseline) != set(attributes):
        raise ValueError(
            f"no_knowledge_baseline is of {', '.join(baseline)}; it must be of "
            f"{', '.join(attributes)}"
        )
    for name, value in baseline.items():
        if type(value) not in (int, float) or not isfinite(value):
            raise ValueError(f"no_knowledge_baseline of {name} is {shortened(value)}, not a number")


def own_templates(record: dict) -> dict[str, TemplateSet] | None:
    """The templates of a run of a user's own people, by attribute, from the contents of run.json;
    None for synthetic people.

    Raises:
        ValueError: they are missing, damaged, or not those that the run was begun with.
    """
    own = record.get("own_people")
    if bool(record["config"].get("people_csv")) != (own is not None):
        raise ValueError("config has people_csv and own_people is missing, or the other way round")
    if own is None:
        return None
    if not isinstance(own, dict) or set(own) != {*CSV_FIELDS, "templates_used"}:
        raise ValueError(f"own_people is {shortened(own)}; it must have the digests and templates")
    if record.get("digests", {}).get("own_people") != json_digest(own):
        raise ValueError("own_people is not what the run was begun with")
    return from_record(own["templates_used"])


def check_csvs(config: TrainConfig, out: Path, own: dict) -> None:
    """Raises a ValueError where a CSV of a user's own people is there and is not the one that the
    run was begun with. They need not be there: the run folder holds what is in them.
    """
    for name in CSV_FIELDS:
        path = Path(getattr(config, name))
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() != own[name]:
            raise ValueError(
                f"{path} has changed since {out} was begun with it; put the earlier one back, or "
                "train into another --out"
            )


def read_population(config: TrainConfig, run: Path) -> pd.DataFrame:
    """The population of a run that is resumed.

    Raises:
        FileNotFoundError, ValueError: the table is missing, damaged, or not of this configuration.
    """
    path = run / "population.parquet"
    people = read_table(path)
    own = own_templates(read_record(run))
    check_population(people, path, None if own is None else tuple(own))
    if people.split.tolist() != list(np.repeat(SPLITS, [config.n_people, config.n_held_out])):
        counts = [int((people.split == split).sum()) for split in SPLITS]
        raise ValueError(
            f"{path} holds {counts[0]} training and {counts[1]} held-out people, and run.json asks "
            f"for {config.n_people} and then {config.n_held_out}; copy it again, or train again"
        )
    check_recorded(path)
    return people


def check_recorded(path: Path) -> None:
    """Raises a ValueError where the digest of a file differs from that recorded in run.json."""
    recorded = read_record(path.parent).get("digests", {}).get(path.name)
    if recorded and recorded != hashlib.sha256(path.read_bytes()).hexdigest():
        raise ValueError(
            f"{path} is not the file that the run was begun with; copy it again, or train again"
        )


def is_begun(config: TrainConfig, out: Path, resume: bool) -> bool:
    """Whether ``out`` holds a run of this configuration that can be resumed.

    Raises:
        ValueError: it holds one that can't or mustn't be gone on with.
    """
    path = out / "run.json"
    if path.is_file() and not resume:
        raise ValueError(
            f"{out} holds a run already; add --resume to go on with it, or choose another --out"
        )
    if not path.is_file() and resume and step_folders(out):
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
    config: TrainConfig,
    out: Path,
    people: pd.DataFrame,
    tokenizer: Tokenizer,
    command: str,
    own: dict | None = None,
) -> None:
    """Writes the files that a run folder has before its first checkpoint; run.json last. ``own``:
    digests of the CSVs of a user's own people, and the templates.
    """
    given = people.weight.to_numpy(float) if "weight" in people else None
    weights = sampling_weights(config, config.n_steps - 1, given)
    people = people.assign(sampling_weight=np.pad(weights, (0, len(people) - len(weights))))
    files = tokenizer_files(tokenizer)
    files["population.parquet"] = table_bytes(people)
    _check_free(out, files)
    for name, content in files.items():
        write_bytes(out / name, content)
    record = {
        "command": command,
        "config": asdict(config),
        "no_knowledge_baseline": no_knowledge_baseline(
            people, None if own is None else tuple(own["templates_used"])
        ),
    }
    if own is not None:
        record["own_people"] = own
    record["digests"] = digests(record, files)
    write_json(out / "run.json", record | provenance())


def digests(record: dict, files: dict[str, bytes]) -> dict[str, str]:
    """Digests of what determines a run: its configuration as recorded, its population, its
    tokenizer, and the templates of a user's own people.
    """
    found = {name: hashlib.sha256(files[name]).hexdigest() for name in _IN_DIGESTS}
    parts = [key for key in ("config", "own_people") if key in record]
    return found | {key: json_digest(record[key]) for key in parts}


def json_digest(content: dict) -> str:
    """Digest of a part of run.json, such as the configuration, which tells files of one run from
    those of another.
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_free(out: Path, files: dict[str, bytes]) -> None:
    """Raises a ValueError where beginning a run would replace a file whose contents differ from
    ``files``; equal contents were left by an interrupted start of the same run.
    """
    later = [out / "metrics.parquet", out / "resume", *step_folders(out).values()]
    others = [path for path in later if path.exists() or path.is_symlink()]
    for name, content in files.items():
        path = out / name
        if path.is_symlink() or (path.exists() and not _holds(path, content)):
            others.append(path)
    if others:
        raise ValueError(
            f"{out} holds {others[0].name} but no run.json, and a new run would overwrite it; "
            "choose another --out, or move it away"
        )


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content
