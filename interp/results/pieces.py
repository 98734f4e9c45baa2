"""A sweep over checkpoints, and its pieces: all results of one checkpoint, computed and stored in
one process, which may be on another machine.

A piece needs nothing but the folders of the suite and of the results. Two processes that compute
the same piece write the same files; each file is written under a name of its own and renamed. So a
process that is killed loses its piece only, and no other's.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from hashlib import sha256
from importlib.metadata import version
from inspect import getsourcefile, unwrap
from os.path import relpath
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from interp.config import Precision
from interp.data.facts import FactSet
from interp.files import machine, temporary_of
from interp.provenance import provenance, source_digest
from interp.results.request import Request, canonical
from interp.results.store import write_result
from interp.suite import Suite

Compute = Callable[[Suite, int, list[str]], dict[str, xr.Dataset]]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Named results at several steps of a suite: all that they depend on, and where they are kept.

    Raises:
        ValueError: ``made_from`` can't be recorded.
    """

    suite: Suite
    steps: Sequence[int]
    names: Sequence[str]
    """Sites of patching, or questions of an analysis."""
    compute: Compute
    """Called with the suite, a step and the names to compute; it is sent to the workers."""
    out: Path | None
    """Folder of result files, one per (step, name). Without it nothing is kept."""
    facts: FactSet
    options: dict
    made_from: dict = field(default_factory=dict)
    """Where the facts come from."""
    device: str = "cpu"
    precision: Precision = "fp32"
    command: str = ""
    """Recorded in the result files; results don't depend on it."""

    def __post_init__(self) -> None:
        try:  # as JSON stores it
            plain = json.loads(json.dumps(self.made_from, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"made_from can't be recorded ({error}); give texts and numbers"
            ) from None
        object.__setattr__(self, "made_from", plain)

    @cached_property
    def question(self) -> dict:
        """What the results of all steps and names have in common; see ``Request.question``."""
        return {
            "run": sha256(canonical(self._model).encode()).hexdigest(),
            "facts": facts_digest(self.facts),
            "options": self.options,
            "made_from": self.made_from,
            "device": torch.device(self.device).type,
            "precision": self.precision,
            "matmul_precision": torch.get_float32_matmul_precision(),
            "default_dtype": str(torch.get_default_dtype()),
            **_code(self.compute),
        }

    @property
    def _model(self) -> dict:
        """What is said of the model as a whole, without reading weights: everything in run.json, or
        of checkpoints of others their shape.
        """
        return self.suite.run or asdict(self.suite.shape)

    def requests(self, step: int, tensors: dict[str, str] | None = None) -> dict[str, Request]:
        """The requests of a step, by name; ``tensors`` are its digests, if they are known."""
        checkpoint = "" if self.out is None else self.suite.sha256(step, tensors)
        return {
            name: Request(step=step, site=name, checkpoint=checkpoint, **self.question)
            for name in self.names
        }

    def piece(self, step: int, requests: dict[str, Request], tensors: dict[str, str]) -> "Piece":
        """The results of a step that are to be computed; ``tensors`` are its digests."""
        return Piece(
            self.suite, step, self.compute, requests, self.question, tensors, self.out, self.command
        )


def _code(compute: Compute) -> dict[str, Any]:
    """The code that computes a result: versions (transformers scales rotary frequencies), and a
    digest of the source.
    """
    computes = getsourcefile(unwrap(getattr(compute, "func", compute)))
    assert computes is not None, compute  # a function of this package or of analyses
    return {
        "versions": {name: version(name) for name in ("interp", "torch", "transformers")},
        "source": source_digest(Path(computes)),
    }


def facts_digest(facts: FactSet) -> str:
    """Digest of a whole fact set: prompts, answers, roles, names of roles and texts."""
    digest = sha256()
    for name, value in vars(facts).items():
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.contiguous().numpy().tobytes())
        else:
            text = value.to_json(orient="split") if name == "texts" else json.dumps(value)
            digest.update(f"{name} {text}".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Piece:
    """The results of one step that are not stored yet. Called, in any process, it computes and
    stores them.
    """

    suite: Suite
    step: int
    compute: Compute
    requests: dict[str, Request]
    """By name, of those that are missing."""
    question: dict
    """Of the requests."""
    tensors: dict[str, str]
    """Digest of each tensor of the checkpoint."""
    out: Path | None
    command: str

    def __call__(self) -> dict[str, xr.Dataset]:
        """Results by name.

        Raises:
            ValueError: this process runs other code than the one that asked for the piece.
        """
        self._check_code()
        with _settings(self.question), _marked(self.out, self.step, self.question):
            results = self.compute(self.suite, self.step, list(self.requests))
            tensors = json.dumps(self.tensors)
            results = {name: x.assign_attrs(tensors=tensors) for name, x in results.items()}
            if self.out is None:
                return results
            run = relpath(self.suite.path, self.out)
            made_by = provenance() | {"command": self.command, "run": run}
            return {
                name: write_result(self.out, self.requests[name], result, made_by)
                for name, result in results.items()
            }

    def _check_code(self) -> None:
        for name, value in _code(self.compute).items():
            if value != (asked := self.question[name]):
                raise ValueError(
                    f"a worker on {machine()} runs interp with {name} {value}, not {asked}; "
                    "install the same on both"
                )


@contextmanager
def _settings(question: dict) -> Iterator[None]:
    """torch's settings of the process that asked, in a worker."""
    precision, default = torch.get_float32_matmul_precision(), torch.get_default_dtype()
    torch.set_float32_matmul_precision(question["matmul_precision"])
    torch.set_default_dtype(getattr(torch, question["default_dtype"].removeprefix("torch.")))
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_default_dtype(default)


@contextmanager
def _marked(out: Path | None, step: int, question: dict) -> Iterator[None]:
    """Leaves a file in ``out`` while a piece is computed, for ``interp.results.tasks.status``."""
    if out is None:
        yield
        return
    marker = temporary_of(out / marker_name(step, question))
    marker.touch()
    try:
        yield
    finally:
        marker.unlink(missing_ok=True)


def marker_name(step: int, question: dict) -> str:
    """Begin of the name of a file that marks a piece as being computed."""
    return f"step-{step:06d}.{sha256(canonical(question).encode()).hexdigest()[:10]}.computing"
