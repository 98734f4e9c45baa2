"""Patching over training: the same facts and sites at every checkpoint; finished results are
reused.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, replace
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from inspect import getsourcefile, unwrap
from os.path import relpath
from pathlib import Path

import torch
import xarray as xr

from interp.config import MOST_WORKERS, Precision, check_choice
from interp.data.facts import FactSet, check_tokens, check_vocabulary
from interp.fields import argument
from interp.files import check_writable, only_process
from interp.model.decoder import device_of
from interp.patching.act_patch import patch_sites
from interp.patching.intervention import (
    Intervention,
    check_fit,
    check_sites,
    grid_of,
    intervention,
)
from interp.process import local_workers
from interp.provenance import provenance, source_digest
from interp.results.manifest import record_requests
from interp.results.repeated_weights import repeated_weights
from interp.results.request import Request, canonical
from interp.results.store import join_steps, read_result, write_result
from interp.suite import Suite

OnStep = Callable[[int], None]
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
    on_step: OnStep = lambda n_done: None,
    **options,
) -> xr.DataTree:
    """A tree with one node per site, each a ``patch`` result with a leading ``step``.

    Args:
        sites: all that the model has by default.
        steps: all of the suite's by default.
        out: folder of result files; what is there already is reused, what is new is written as it
            is finished.
            Without it nothing is written.
        workers: checkpoints patched side by side, each in a process of its own.
        max_memory: gigabytes (10⁹ bytes) that a worker's activations may take.
        made_from: where ``facts`` come from; recorded, and a change of it recomputes.
        command: recorded in the result files.
        on_step: called with the number of checkpoints done.
        options: the fields of ``interp.patching.Intervention``.

    Raises:
        ValueError: unknown site, step or worker number; a damaged checkpoint, or one of another
            shape; facts of another vocabulary; another process works in ``out``.
    """
    how = intervention(options)
    argument("suite", suite, Suite), argument("facts", facts, FactSet)
    check_choice("precision", precision, Precision)
    device = device_of(device)
    made_from = _plain(argument("made_from", made_from, dict | None) or {})
    given = argument("steps", steps, tuple[int, ...] | None)
    steps = suite.steps if given is None else sorted(set(given))
    sites = check_sweep(suite, facts, steps, sites, how)
    compute = partial(
        _patch_one,
        facts=facts,
        how=how,
        max_memory=max_memory,
        device=device,
        precision=precision,
    )
    done = over_checkpoints(
        suite,
        steps,
        sites,
        compute,
        out=out,
        facts=facts,
        options=asdict(how),
        made_from=made_from,
        device=device,
        precision=precision,
        workers=workers,
        command=command,
        on_step=on_step,
    )
    return xr.DataTree.from_dict(
        {site: join_steps({step: done[step][site] for step in steps}) for site in sites}
    )


def check_sweep(
    suite: Suite, facts: FactSet, steps: Sequence[int], sites: Sequence[str], how: Intervention
) -> list[str]:
    """The sites of a sweep over ``steps`` of a suite, after a check that all of them can be patched
    on ``facts``; reads no weights.

    Raises:
        ValueError: they can't.
    """
    if not steps:
        raise ValueError(f"no steps to patch; choose some of {_listed(suite.steps)}")
    shape = suite.check(steps)
    check_vocabulary(facts, suite.vocabulary, str(suite.path))
    sites = check_sites(sites, parallel=shape.parallel, direction=how.direction)
    check_fit(shape, sites, how)
    if not how.whole_value:
        facts = replace(facts, answers=facts.answers[:, :1])
    grid_of(facts, how)
    check_tokens(facts, shape.d_vocab, shape.n_ctx)
    return sites


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
        compute: of a suite, a step and the names that are asked for; it is sent to the workers.
        out: folder of result files, one a (step, name), reused and written as in ``patch_suite``.
        facts, options, made_from, device, precision: all that the results depend on beside
            checkpoint, step, name, versions and source code.
    """
    workers = argument("workers", workers, int, least=1, most=MOST_WORKERS)
    folder = None if out is None else Path(argument("out", out, str, is_path=True))
    if folder is not None:
        check_writable(folder)
    tensors = {step: json.dumps(of) for step, of in checked_tensors(suite, steps).items()}
    pool = partial(_computed, suite, compute=compute, workers=workers)
    if folder is None:
        found = pool([(step, list(names)) for step in steps], on_step=on_step)
        return {step: _of_weights(results, tensors[step]) for step, results in found}
    with only_process(folder, "writing results to"):
        requests = _requests(
            suite, steps, names, compute, facts=digest_of(facts), options=options,
            made_from=made_from or {}, device=torch.device(device).type, precision=precision,
        )  # fmt: skip
        record_requests(folder, requests.values(), partial(_is_replaced, suite))
        done, work = _stored(folder, requests)
        n_stored = len(steps) - len(work)
        on_step(n_stored)
        made_by = provenance() | {"command": command, "run": relpath(suite.path, folder)}
        for step, results in pool(work, on_step=lambda n_done: on_step(n_stored + n_done)):
            for name, result in _of_weights(results, tensors[step]).items():
                done[step][name] = write_result(folder, requests[step, name], result, made_by)
    return done


def _requests(
    suite: Suite, steps: Sequence[int], names: Sequence[str], compute: Compute, **asked
) -> dict[tuple[int, str], Request]:
    """Requests by step and name."""
    computes = getsourcefile(unwrap(getattr(compute, "func", compute)))
    shared = asked | {
        "run": sha256(canonical(suite.run).encode()).hexdigest(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "default_dtype": str(torch.get_default_dtype()),
        "versions": {name: version(name) for name in ("interp", "torch")},
        "source": source_digest(Path(computes)),
    }
    return {
        (step, name): Request(step=step, site=name, checkpoint=checkpoint, **shared)
        for step, checkpoint in ((step, suite.sha256(step)) for step in steps)
        for name in names
    }


def _is_replaced(suite: Suite, step: int, checkpoint: str) -> bool:
    return step in suite.folders and suite.sha256(step) != checkpoint


def _stored(
    folder: Path, requests: dict[tuple[int, str], Request]
) -> tuple[dict[int, dict[str, xr.Dataset]], list[tuple[int, list[str]]]]:
    """Stored results by step and name, and for each step the names of missing ones."""
    done: dict[int, dict[str, xr.Dataset]] = {step: {} for step, _ in requests}
    missing: dict[int, list[str]] = {}
    for (step, name), request in requests.items():
        result = read_result(folder, request)
        if result is None:
            missing.setdefault(step, []).append(name)
        else:
            done[step][name] = result
    return done, list(missing.items())


def _of_weights(results: dict[str, xr.Dataset], tensors: str) -> dict[str, xr.Dataset]:
    return {name: result.assign_attrs(tensors=tensors) for name, result in results.items()}


def digest_of(facts: FactSet) -> str:
    """Digest of everything in a fact set: prompts, answers, roles, role names and texts."""
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
    """``made_from`` with plain JSON types."""
    try:
        return json.loads(json.dumps(made_from, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"made_from can't be recorded ({error}); give texts and numbers") from None


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps[:5])) + (", ..." if len(steps) > 5 else "")


def _computed(
    suite: Suite,
    work: list[tuple[int, list[str]]],
    *,
    compute: Compute,
    workers: int,
    on_step: OnStep,
) -> Iterator[tuple[int, dict[str, xr.Dataset]]]:
    """Results of each step's names, as they finish."""
    if workers == 1 or len(work) < 2:
        for n_done, (step, names) in enumerate(work, 1):
            yield step, compute(suite, step, names)
            on_step(n_done)
        return
    with local_workers(min(workers, len(work))) as pool:
        futures = {pool.submit(compute, suite, step, names): step for step, names in work}
        for n_done, future in enumerate(as_completed(futures), 1):
            yield futures[future], future.result()
            on_step(n_done)


def _patch_one(
    suite: Suite,
    step: int,
    sites: list[str],
    *,
    facts: FactSet,
    how: Intervention,
    max_memory: float,
    device: str,
    precision: Precision,
) -> dict[str, xr.Dataset]:
    model = suite.load(step, device=device).to(_DTYPES[precision])
    return patch_sites(model, facts, sites=sites, max_memory=max_memory, **asdict(how))
