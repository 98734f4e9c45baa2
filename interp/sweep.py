"""Patching over training: the same facts and sites at every checkpoint, finished ones reused."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from hashlib import sha256
from importlib.metadata import version
from multiprocessing import get_context
from os.path import relpath
from pathlib import Path

import torch
import xarray as xr

from interp.config import Precision, check_choice
from interp.facts import FactSet
from interp.files import only_process
from interp.patching.intervention import Intervention, check_sites, intervention
from interp.patching.patch import patch_sites
from interp.provenance import provenance
from interp.results import join_steps, read_result, write_result
from interp.suite import Suite

OnStep = Callable[[int], None]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class _Job:
    """What one checkpoint's patching needs; small enough to send to a worker process."""

    suite: Suite
    facts: FactSet
    step: int
    sites: list[str]
    how: Intervention
    max_memory: float
    device: str
    precision: Precision


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
    """A node a site, each a ``patch`` result with a leading ``step``.

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
        ValueError: unknown site, step or worker number; a damaged checkpoint; another process works
            in ``out``.
    """
    how = intervention(options)
    sites = check_sites(sites, parallel=suite.config.parallel, direction=how.direction)
    steps = suite.steps if steps is None else sorted(steps)
    check_choice("precision", precision, Precision)
    if workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1")
    jobs = [_Job(suite, facts, step, sites, how, max_memory, device, precision) for step in steps]
    if out is None:
        done = {
            job.step: results
            for job, results in _compute([(job, sites) for job in jobs], workers, on_step)
        }
    else:
        with only_process(Path(out), "writing results to"):
            asked = _asked(facts, how, precision, made_from or {})
            made_by = provenance() | {"command": command, "run": relpath(suite.path, out)}
            done = _reuse_or_compute(jobs, Path(out), asked, made_by, workers, on_step)
    return xr.DataTree.from_dict(
        {site: join_steps({step: done[step][site] for step in steps}) for site in sites}
    )


def _asked(facts: FactSet, how: Intervention, precision: str, made_from: dict) -> dict:
    digest = sha256()
    for tensor in (
        facts.clean,
        facts.corrupted,
        facts.lengths,
        facts.roles,
        facts.answers,
        facts.corrupted_answers,
    ):
        digest.update(str(tuple(tensor.shape)).encode() + tensor.numpy().tobytes())
    versions = {name: version(name) for name in ("interp", "torch")}
    return {
        **asdict(how),
        "precision": precision,
        "facts": digest.hexdigest(),
        "n_facts": len(facts),
        "versions": versions,
        **made_from,
    }


def _reuse_or_compute(
    jobs: list[_Job], out: Path, asked: dict, made_by: dict, workers: int, on_step: OnStep
) -> dict[int, dict[str, xr.Dataset]]:
    done, missing = {}, []
    for job in jobs:
        checkpoint = job.suite.sha256(job.step)
        requests = {
            site: {"step": job.step, "site": site, "checkpoint": checkpoint, **asked}
            for site in job.sites
        }
        stored = {site: read_result(out, request) for site, request in requests.items()}
        done[job.step] = {site: result for site, result in stored.items() if result is not None}
        if lacking := [site for site in job.sites if stored[site] is None]:
            missing.append((job, lacking))
    n_stored = len(jobs) - len(missing)
    on_step(n_stored)
    for job, results in _compute(missing, workers, lambda n_done: on_step(n_stored + n_done)):
        for site, result in results.items():
            request = {
                "step": job.step,
                "site": site,
                "checkpoint": job.suite.sha256(job.step),
                **asked,
            }
            done[job.step][site] = write_result(out, request, result, made_by)
    return done


def _compute(
    work: list[tuple[_Job, list[str]]], workers: int, on_step: OnStep
) -> Iterator[tuple[_Job, dict[str, xr.Dataset]]]:
    """Results of each job's sites, as they are finished."""
    if workers == 1 or len(work) < 2:
        for n_done, (job, sites) in enumerate(work, 1):
            yield job, _patch_one(job, sites)
            on_step(n_done)
        return
    threads = max(1, torch.get_num_threads() // workers)
    with ProcessPoolExecutor(
        min(workers, len(work)), get_context("spawn"), torch.set_num_threads, (threads,)
    ) as pool:
        futures = {pool.submit(_patch_one, job, sites): job for job, sites in work}
        try:
            for n_done, future in enumerate(as_completed(futures), 1):
                yield futures[future], future.result()
                on_step(n_done)
        finally:
            pool.shutdown(cancel_futures=True)


def _patch_one(job: _Job, sites: list[str]) -> dict[str, xr.Dataset]:
    model = job.suite.load(job.step, device=job.device).to(_DTYPES[job.precision])
    return patch_sites(model, job.facts, sites=sites, max_memory=job.max_memory, **asdict(job.how))
