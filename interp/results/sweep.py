"""Patching over training: the same facts and sites at every checkpoint; stored results are kept."""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from inspect import getsourcefile, unwrap
from os.path import relpath
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from interp.config import MOST_WORKERS, Precision
from interp.data.facts import FactSet, check_vocabulary
from interp.fields import argument
from interp.files import check_writable, only_process
from interp.jupyter import OnStep, progress_bar
from interp.model.decoder import DecoderConfig, device_of
from interp.patching.act_patch import patch_sites
from interp.patching.intervention import Intervention, check_sites, intervention, prepared
from interp.process import local_workers
from interp.provenance import provenance, source_digest
from interp.results.manifest import record_requests
from interp.results.repeated_weights import repeated_weights
from interp.results.request import Request, canonical
from interp.results.store import join_steps, read_result, write_result
from interp.suite import Suite

Compute = Callable[[Suite, int, list[str]], dict[str, xr.Dataset]]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def patch_suite(
    suite: Suite,
    facts: FactSet,
    *,
    sites: Sequence[str] = (),
    steps: Sequence[int] | None = None,
    out: str | Path | None = None,
    device: str = "cpu",
    precision: Precision = "fp32",
    workers: int = 1,
    max_memory: float = 2.0,
    made_from: dict | None = None,
    command: str = "",
    on_step: OnStep | None = None,
    **options,
) -> xr.DataTree:
    """One node per site, each a ``patch`` result with a leading ``step``.

    Args:
        sites: the default sites of the model, if none are given.
        steps: all steps of the suite, if none are given.
        out: folder of result files. Those that are there already are reused, new ones are written
            as soon as they are finished. Without it nothing is written.
        workers: how many checkpoints are patched in parallel, each in a process of its own.
        max_memory: gigabytes (10⁹ bytes) that a worker's activations may take.
        made_from: where ``facts`` come from; recorded, and a change of it recomputes.
        command: recorded in the result files.
        on_step: called with the number of checkpoints done; by default a progress bar is drawn in
            a notebook or a terminal.
        options: the fields of ``interp.patching.Intervention``.

    Raises:
        ValueError: unknown site, step or worker number; a damaged checkpoint, or one of another
            shape; facts of another vocabulary; another process works in ``out``.
        KeyboardInterrupt: it was stopped; the message says what is kept and how to go on.
    """
    how = intervention(options)
    argument("suite", suite, Suite), argument("facts", facts, FactSet)
    argument("precision", precision, Precision)
    device = device_of(device)
    given = argument("steps", steps, tuple[int, ...] | None)
    steps = suite.steps if given is None else sorted(set(given))
    sites = check_sweep(suite, facts, steps, sites, how)
    where: dict[str, Any] = {"facts": facts, "device": device, "precision": precision}
    compute = partial(_patch_one, max_memory=max_memory, **where, **asdict(how))
    named: dict[str, Any] = {"options": asdict(how), "made_from": made_from, "command": command}
    with progress_bar(len(steps), f"patching {', '.join(sites)}", on_step) as on_step:
        at: dict[str, Any] = {"out": out, "workers": workers, "on_step": on_step}
        done = over_checkpoints(suite, steps, sites, compute, **named, **at, **where)
    return xr.DataTree.from_dict(
        {site: join_steps({step: done[step][site] for step in steps}) for site in sites}
    )


def check_sweep(
    suite: Suite, facts: FactSet, steps: Sequence[int], sites: Sequence[str], how: Intervention
) -> list[str]:
    """The sites of a sweep over ``steps`` of a suite; reads no weights.

    Raises:
        ValueError: a site can't be patched in this way at these steps on ``facts``.
    """
    shape = check_steps(suite, steps, facts)
    sites = check_sites(sites, parallel=shape.parallel, direction=how.direction)
    prepared(shape, sites, facts, how)
    return sites


def check_steps(suite: Suite, steps: Sequence[int], facts: FactSet) -> DecoderConfig:
    """The shape that the models at ``steps`` have in common; reads no weights.

    Raises:
        ValueError: there are no steps; a checkpoint is damaged, or of another shape; ``facts`` are
            of another vocabulary.
    """
    if not steps:
        known = ", ".join(map(str, suite.steps[:5])) + (", ..." if len(suite.steps) > 5 else "")
        raise ValueError(f"steps is empty; choose some of {known}")
    shape = suite.check(steps)
    check_vocabulary(facts, suite.vocabulary, str(suite.path))
    return shape


def checked_tensors(suite: Suite, steps: Sequence[int]) -> dict[int, dict[str, str]]:
    """``Suite.tensor_digests`` by step; warns of weights that steps share but should not.

    Raises:
        ValueError: a checkpoint is damaged, or a weight is not finite.
    """
    tensors = {step: suite.tensor_digests(step) for step in steps}
    for repeat in repeated_weights(tensors):
        warnings.warn(f"{suite.path}: {repeat}", stacklevel=3)
    return tensors


def over_checkpoints(
    suite: Suite,
    steps: Sequence[int],
    names: Sequence[str],
    compute: Compute,
    *,
    out: str | Path | None,
    facts: FactSet,
    options: dict,
    made_from: dict | None = None,
    device: str = "cpu",
    precision: Precision = "fp32",
    workers: int = 1,
    command: str = "",
    on_step: OnStep = lambda n_done: None,
) -> dict[int, dict[str, xr.Dataset]]:
    """Named results at every step, computed checkpoint by checkpoint.

    Args:
        compute: called with a suite, a step and the names to compute; it is sent to the workers.
        out: folder of result files, one per (step, name), reused and written as in ``patch_suite``.
        facts, options, made_from, device, precision: all that the results depend on besides
            checkpoint, step, name, versions and source code.

    Raises:
        KeyboardInterrupt: it was stopped; the message says what is kept and how to go on.
    """
    workers = argument("workers", workers, int, least=1, most=MOST_WORKERS)
    made_from = _plain(argument("made_from", made_from, dict | None) or {})
    folder = None if out is None else Path(argument("out", out, str, is_path=True))
    if folder is not None:
        check_writable(folder)
    tensors = checked_tensors(suite, steps)
    computed = partial(_computed, suite, tensors=tensors, compute=compute, workers=workers)
    if folder is None:
        work = [(step, list(names)) for step in steps]
        with _stoppable(None, len(steps), on_step) as on_step:
            return dict(computed(work, on_step=on_step))
    with (
        only_process(folder, "writing results to"),
        _stoppable(folder, len(steps), on_step) as on_step,
    ):
        requests = _requests(
            suite, tensors, names, compute, facts=facts_digest(facts), options=options,
            made_from=made_from, device=torch.device(device).type, precision=precision,
        )  # fmt: skip
        record_requests(folder, requests.values(), partial(_is_replaced, suite))
        done, work = _stored(folder, requests)
        n_stored = len(steps) - len(work)
        on_step(n_stored)
        made_by = provenance() | {"command": command, "run": relpath(suite.path, folder)}
        for step, results in computed(work, on_step=lambda n_done: on_step(n_stored + n_done)):
            for name, result in results.items():
                done[step][name] = write_result(folder, requests[step, name], result, made_by)
    return done


@contextmanager
def _stoppable(folder: Path | None, n_steps: int, on_step: OnStep) -> Iterator[OnStep]:
    """``on_step``, counted, so that an interrupt can end with one line that says what is kept."""
    n_finished = 0

    def counted(n_done: int) -> None:
        nonlocal n_finished
        n_finished = n_done
        on_step(n_done)

    try:
        yield counted
    except KeyboardInterrupt:
        done = f"stopped with {n_finished} of {n_steps} checkpoints done"
        kept = (
            "they are not kept; give out=FOLDER to keep those that are finished"
            if folder is None
            else f"they are in {folder}; run the same again to go on"
        )
        raise KeyboardInterrupt(f"{done}, {kept}") from None


def _requests(
    suite: Suite,
    tensors: dict[int, dict[str, str]],
    names: Sequence[str],
    compute: Compute,
    **asked,
) -> dict[tuple[int, str], Request]:
    """Requests by step and name; ``tensors`` has the steps, and the digests of their weights."""
    computes = getsourcefile(unwrap(getattr(compute, "func", compute)))
    assert computes is not None, compute  # a function of this package or of analyses
    shared = asked | {
        "run": sha256(canonical(suite.run).encode()).hexdigest(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "default_dtype": str(torch.get_default_dtype()),
        "versions": {name: version(name) for name in ("interp", "torch")},
        "source": source_digest(Path(computes)),
    }
    return {
        (step, name): Request(step=step, site=name, checkpoint=checkpoint, **shared)
        for step, digests in tensors.items()
        for checkpoint in [suite.sha256(step, digests)]
        for name in names
    }


def _is_replaced(suite: Suite, step: int, checkpoint: str) -> bool:
    return step in suite.folders and suite.sha256(step) != checkpoint


def _stored(
    folder: Path, requests: dict[tuple[int, str], Request]
) -> tuple[dict[int, dict[str, xr.Dataset]], list[tuple[int, list[str]]]]:
    """Stored results by step and name, and for each step the names of those that are missing."""
    done: dict[int, dict[str, xr.Dataset]] = {step: {} for step, _ in requests}
    missing: dict[int, list[str]] = {}
    for (step, name), request in requests.items():
        result = read_result(folder, request)
        if result is None:
            missing.setdefault(step, []).append(name)
        else:
            done[step][name] = result
    return done, list(missing.items())


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


def _plain(made_from: dict) -> dict:
    """``made_from`` as JSON stores it."""
    try:
        return json.loads(json.dumps(made_from, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"made_from can't be recorded ({error}); give texts and numbers") from None


def _computed(
    suite: Suite,
    work: list[tuple[int, list[str]]],
    *,
    tensors: dict[int, dict[str, str]],
    compute: Compute,
    workers: int,
    on_step: OnStep,
) -> Iterator[tuple[int, dict[str, xr.Dataset]]]:
    """Results of each step's names, as they are finished, with the digests of its tensors."""
    with local_workers(max(1, min(workers, len(work)))) as pool:
        if pool is None:
            found = ((step, compute(suite, step, names)) for step, names in work)
        else:
            futures = {pool.submit(compute, suite, step, names): step for step, names in work}
            found = ((futures[future], future.result()) for future in as_completed(futures))
        for n_done, (step, results) in enumerate(found, 1):
            digests = json.dumps(tensors[step])
            yield step, {name: x.assign_attrs(tensors=digests) for name, x in results.items()}
            on_step(n_done)


def _patch_one(
    suite: Suite, step: int, sites: list[str], *, device: str, precision: Precision, **options
) -> dict[str, xr.Dataset]:
    model = suite.load(step, device=device).to(_DTYPES[precision])
    return patch_sites(model, sites=sites, **options)
