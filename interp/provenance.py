"""What made a result: versions, git commit, hardware."""

import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path


def provenance() -> dict:
    """Versions of what computes, git commit (null outside a checkout), hardware in general terms,
    date.
    """
    import torch

    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("interp", "torch", "transformer-lens")},
        "git_commit": _git_commit(),
        "hardware": {"machine": platform.machine(), "cpu_cores": os.cpu_count(), "gpu": cuda},
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def _git_commit() -> str | None:
    """Of the checkout this package is run from, with ``+`` if files have changed since."""
    root = Path(__file__).parents[1]
    if not shutil.which("git") or not (root / ".git").exists():
        return None
    commit, changed = (
        subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
        for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
    )
    if commit.returncode != 0:
        return None
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")
