"""What made a result: versions, source code, git commit, hardware."""

import hashlib
import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

_SHOWS = ("report", "cli")
"""Parts of interp that show results and change no number of theirs."""


def provenance() -> dict:
    """Versions of the software, git commit (null outside a checkout), hardware in general terms,
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


@cache
def source_digest(*others: Path) -> str:
    """Digest of the source code that computes results: interp's own, except what only displays
    them, and that of ``others``.
    """
    root, digest = Path(__file__).parent, hashlib.sha256()
    for path in (*sorted(root.rglob("*.py")), *others):
        if not path.is_relative_to(root) or path.relative_to(root).parts[0] not in _SHOWS:
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _git_commit() -> str | None:
    """Git commit of the checkout that runs, with ``+`` if files have changed since."""
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
