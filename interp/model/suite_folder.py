"""Folders of checkpoints that other programs wrote: which steps there are, and where.

A suite is a folder of step folders (``step-N``, ``stepN``, ``checkpoint-N``, ``ckpt_N``,
``stage1-step1000-tokens4B``), the folder of a model in the Hugging Face hub's cache, or a single
checkpoint. What is not understood in it is refused by name.
"""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from interp.fields import LARGEST_STEP

_LABEL = re.compile(
    r"(?P<stage>stage[0-9]+-(?:ingredient[0-9]+-)?)?"
    r"(?:step|checkpoint|ckpt)[-_]?(?P<step>[0-9]+)(?:-tokens[0-9]+B)?"
)
_LIKE_A_LABEL = re.compile(r"(step|checkpoint|ckpt)([-_ ]|[0-9]|$)|stage[-_ ]?[0-9]")
_FOLDERS = frozenset(
    (
        *("main", "runs", "logs", "log", "wandb", "tensorboard", "tb_logs", "lightning_logs"),
        *("mlruns", "results", "resume", "eval", "evals", "data", "code", "scripts", "configs"),
        *("figures", "plots", "__pycache__"),
    )
)
"""Folders beside checkpoints that are known not to hold steps; ``main`` is a copy of one."""
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".gguf")
_TRAINERS = re.compile(
    r"model(-[0-9]+-of-[0-9]+)?\.safetensors|pytorch_model(-[0-9]+-of-[0-9]+)?\.bin"
    r"|(training_args|optimizer|scheduler)\.(bin|pt)|rng_state(_[0-9]+)?\.pth|scaler\.pt"
)
"""Files of the model at the end of training, which a Trainer writes beside the step folders."""
_HUB = frozenset(("blobs", "refs", "snapshots", "trees"))


@dataclass(frozen=True)
class Layout:
    """Where the checkpoints of a suite are."""

    path: Path
    """Folder of the suite."""
    name: str
    folders: dict[int, Path]
    """Of each checkpoint, by its step, sorted."""


def find_checkpoints(path: Path) -> Layout:
    """The checkpoints at ``path``: a folder of step folders, a model in the hub's cache, one
    checkpoint, or some of the first two chosen by a pattern, such as OLMo-2/stage1-*.

    A checkpoint without a step in its name counts as step 0.

    Raises:
        FileNotFoundError: there is none.
        ValueError: two of one step, several stages, or something that is not understood.
    """
    if "*" in path.name and not path.is_dir():
        return _chosen(path.parent, path.name)
    if (path / "refs").is_dir() and (path / "snapshots").is_dir():
        return Layout(path, _name(path), _by_step(_revisions(path)))
    real = path.resolve()
    if real.parent.name == "snapshots":
        steps = [s for s, at in _revisions(real.parents[1]).items() if at == real]
        step = _step(steps[0]) if steps else 0
        return Layout(path, _name(real.parents[1]), {step: path})
    if _LABEL.fullmatch(real.name):
        return Layout(real.parent, _name(real.parent), {_step(real.name): real})
    if found := _step_folders(path):
        return Layout(path, _name(path), _by_step(found))
    if (path / "config.json").exists():
        return Layout(path, _name(path), {0: path})
    raise FileNotFoundError(
        f"no checkpoint in {path}; give a run folder, a folder of checkpoints (step-N, stepN, "
        "checkpoint-N, ...), the folder of a model in the hub's cache, or one checkpoint"
    )


def _chosen(path: Path, pattern: str) -> Layout:
    hub = (path / "refs").is_dir() and (path / "snapshots").is_dir()
    found = _revisions(path) if hub else _step_folders(path)
    chosen = {label: folder for label, folder in found.items() if fnmatchcase(label, pattern)}
    if not chosen:
        there = ", ".join(sorted(found)[:3]) or "none"
        raise FileNotFoundError(f"no checkpoint {pattern} in {path}; there are {there}")
    words = "-".join(re.findall(r"[\w.]+", pattern))
    return Layout(path, f"{_name(path)}.{words}" if words else _name(path), _by_step(chosen))


def _name(path: Path) -> str:
    """Name of the model or run in a folder, without the hub cache's prefix."""
    return path.resolve().name.removeprefix("models--") or "suite"


def _step(label: str) -> int:
    match = _LABEL.fullmatch(label)
    assert match, label
    return int(match["step"])


def _by_step(found: dict[str, Path]) -> dict[int, Path]:
    """Folders by step, sorted; ``found`` has them by label."""
    stages: dict[str, str] = {}
    folders: dict[int, tuple[str, Path]] = {}
    for label, folder in sorted(found.items()):
        match = _LABEL.fullmatch(label)
        assert match, label
        step = int(match["step"])
        stages.setdefault(match["stage"] or "stage1-", label)
        if step > LARGEST_STEP:
            raise ValueError(f"{label} has a step above {LARGEST_STEP}; rename it")
        if len(stages) > 1:
            one, two = list(stages.values())[:2]
            raise ValueError(
                f"{one} and {two} are of different stages, whose steps count separately; choose "
                f"one with a pattern in quotes: '{folder.parent.name}/{next(iter(stages))}*'"
            )
        if step in folders:
            raise ValueError(
                f"{folders[step][0]} and {label} are both step {step}; rename or move one of them"
            )
        folders[step] = label, folder
    return {step: folder for step, (_, folder) in sorted(folders.items())}


def _step_folders(path: Path) -> dict[str, Path]:
    """Step folders in ``path`` by name.

    Raises:
        ValueError: something that is not understood.
    """
    found, others = {}, []
    for entry in sorted(path.iterdir()) if path.is_dir() else []:
        name = entry.name
        if _LABEL.fullmatch(name) and entry.is_dir():
            found[name] = entry
        elif _LIKE_A_LABEL.match(name):
            raise ValueError(
                f"{entry} is not a checkpoint folder; rename it, or make it a folder such as "
                f"step-N with N up to {LARGEST_STEP}"
            )
        elif not name.startswith(".") and name not in _FOLDERS:
            others.append(entry)
    for entry in others if found else []:
        unknown = entry.is_dir() or (
            entry.suffix in _WEIGHTS and not _TRAINERS.fullmatch(entry.name)
        )
        if unknown or (entry.is_symlink() and not entry.exists()):
            raise ValueError(
                f"{entry} stands among checkpoints and is not understood; move it away, or name "
                "it as a checkpoint"
            )
    return found


def _revisions(path: Path) -> dict[str, Path]:
    """Snapshot folders of a model in the hub's cache, by the name of the revision. ``main`` counts,
    as step 0, only where it is alone.

    Raises:
        FileNotFoundError, ValueError: a revision has no snapshot, or is no step.
    """
    for entry in sorted(path.iterdir()):
        if entry.name not in _HUB and not entry.name.startswith("."):
            raise ValueError(f"{entry} is not part of the hub's cache; move it away")
    found: dict[str, Path] = {}
    main = None
    for ref in sorted((path / "refs").iterdir()):
        if ref.name.startswith(".") or ref.name == "pr":  # proposed changes, no steps
            continue
        if ref.is_dir() or (ref.name != "main" and not _LABEL.fullmatch(ref.name)):
            raise ValueError(
                f"{ref} is no step; delete it, or give the folder of its snapshot alone"
            )
        snapshot = path / "snapshots" / ref.read_text().strip()
        if not snapshot.is_dir():
            raise FileNotFoundError(
                f"{ref} names the snapshot {snapshot.name}, which is not there; download it again"
            )
        if ref.name == "main":
            main = snapshot
        else:
            found[ref.name] = snapshot
    return {"step-0": main} if main and not found else found
