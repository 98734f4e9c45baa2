"""What made a result: versions, git commit, hardware."""

import os
import platform
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
    here = Path(__file__).parent
    git = subprocess.run(
        ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    return git.stdout.strip() if git.returncode == 0 else None
