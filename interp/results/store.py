"""Results on disk: one netCDF file per request, reused when the request is the same.

A file's name holds step, site and a digest of the request, which its attribute ``request`` holds in
full. Its attribute ``checksum`` covers everything in the file, so that a changed byte is noticed.
The format is netCDF 3, which any netCDF reader opens, and which is read and written about 20 times
faster than netCDF 4.
"""

import hashlib
import json
import warnings
from pathlib import Path

import numpy as np
import xarray as xr

from interp.files import write_bytes
from interp.results.manifest import read_manifest
from interp.results.repeated_weights import Repeat, repeated_weights
from interp.results.request import Request, file_name, question_of


def read_result(folder: Path, request: Request) -> xr.Dataset | None:
    """The stored result of exactly this request; None where it is missing or damaged."""
    path = folder / request.file_name
    if not path.is_file():
        return None
    try:
        result = open_result(path)
    except ValueError:  # damaged: as if it were not there
        return None
    return result if result.attrs.get("request") == request.json else None


def write_result(folder: Path, request: Request, result: xr.Dataset, made_by: dict) -> xr.Dataset:
    """The stored result, with ``request`` and ``made_by`` (provenance, not part of the request) in
    its attributes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    attrs = {**result.attrs, "request": request.json, "made_by": json.dumps(made_by)}
    result = result.assign_attrs(attrs)
    result = result.assign_attrs(checksum=checksum(result))
    write_bytes(folder / request.file_name, bytes(result.to_netcdf(engine="scipy")))
    return result


def checksum(result: xr.Dataset) -> str:
    """Digest of a result's variables, coordinates and attributes except ``checksum``. It is the
    same in memory and read back from a file, which stores integers in 32 bits and booleans in 8.
    """
    attrs = {name: value for name, value in result.attrs.items() if name != "checksum"}
    digest = hashlib.sha256(_plain(attrs).encode())
    for name in sorted(map(str, result.variables)):
        variable = result.variables[name]
        about = (name, name in result.coords, variable.dims, variable.shape)
        digest.update(f"{about} {_plain(variable.attrs)}".encode())
        if variable.dtype.kind == "f":
            digest.update(np.ascontiguousarray(variable.values).tobytes())
        else:
            digest.update(_plain(variable.values).encode())
    return digest.hexdigest()


def _plain(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=_listed)


def _listed(value: object) -> object:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else repr(value)


def open_result(path: Path) -> xr.Dataset:
    """The data set in a result file.

    Raises:
        ValueError: the file is damaged, or was changed since it was written.
    """
    try:
        result = xr.load_dataset(path, engine="scipy") if path.is_file() else None
        whole = result is not None and result.attrs.get("checksum") == checksum(result)
    except Exception:  # whatever damaged bytes lead the reader to
        whole = False
    if not whole or result is None:
        raise ValueError(f"{path} is damaged; delete it and run the same again")
    return result


def read_folder(folder: Path) -> dict[str, xr.Dataset]:
    """Results of the newest question in ``folder``, joined along ``step``, by site. A warning says
    if results of another training of the run are left out.

    Raises:
        FileNotFoundError: no such folder, or no results in it.
        ValueError: the results are not of patching, or it is unknown which question is the newest.
    """
    files = _result_files(folder)
    entries = read_manifest(folder)
    if entries is None:
        return _joined(_of_only_question(folder, files))
    answered = [entry for entry in entries if entry.files(folder)]
    if not answered:
        raise FileNotFoundError(
            f"no results in {folder} for the questions in its manifest.json; run the same again"
        )
    *older, newest = answered
    alike = [entry.files(folder) for entry in older if entry.asks_as(newest)]
    if apart := {step for files in alike for paths in files.values() for step in paths}:
        warnings.warn(
            f"{folder} also holds results of another training of the run, or of checkpoints since "
            f"replaced, at steps {', '.join(map(str, sorted(apart)))}; they are left out",
            stacklevel=2,
        )
    return _joined({
        site: {step: _patching_result(path) for step, path in paths.items()}
        for site, paths in newest.files(folder).items()
    })  # fmt: skip


def _result_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("step-*.nc"))
    for path in files:
        if not path.is_file():
            raise ValueError(f"{path} is no result file; move it away")
    if not files:
        inside = sorted({path.parent for path in folder.glob("results/*/step-*.nc")})
        advice = f"give {inside[0]}" if inside else "write some with interp-patch --ckpt RUN"
        raise FileNotFoundError(f"no results in {folder}; {advice}")
    return files


def _of_only_question(folder: Path, files: list[Path]) -> dict[str, dict[int, xr.Dataset]]:
    """Results of a folder without a manifest, by site and step."""
    found: dict[str, dict[int, xr.Dataset]] = {}
    questions = []
    for path in files:
        result = _patching_result(path)
        request = json.loads(result.attrs["request"])
        of_site = found.setdefault(request["site"], {})
        questions.append(question_of(request))
        if questions[-1] != questions[0] or request["step"] in of_site:
            raise ValueError(
                f"{folder} holds results of several questions or checkpoints, and no manifest.json "
                "that says which are the newest; run the same interp-patch again"
            )
        of_site[request["step"]] = result
    return found


def _patching_result(path: Path) -> xr.Dataset:
    result = open_result(path)
    if not {"direction", "site", "request"} <= result.attrs.keys():
        raise ValueError(f"{path} is no result of interp-patch; give the folder of one")
    return result


def _joined(results: dict[str, dict[int, xr.Dataset]]) -> dict[str, xr.Dataset]:
    return {site: join_steps(of_site) for site, of_site in results.items()}


def read_other_direction(
    folder: Path, results: dict[str, xr.Dataset] | xr.DataTree
) -> dict[str, xr.Dataset] | None:
    """Results of the other direction, for the same question and checkpoints; None unless all of
    them are in ``folder``.
    """
    other: dict[str, dict[int, xr.Dataset]] = {}
    for site in results:
        attrs = results[site].attrs
        request = json.loads(attrs.get("request", "{}"))
        checkpoints = json.loads(attrs.get("checkpoints", "{}"))
        flipped = "noising" if attrs["direction"] == "denoising" else "denoising"
        request["options"] = request.get("options", {}) | {"direction": flipped}
        for step in results[site].step.values.tolist():
            of_step = {"step": step, "site": site, "checkpoint": checkpoints.get(str(step))}
            try:
                found = open_result(folder / file_name(request | of_step))
            except ValueError:  # damaged, or not there
                return None
            other.setdefault(site, {})[step] = found
    return _joined(other)


def join_steps(results: dict[int, xr.Dataset]) -> xr.Dataset:
    """Results of one site at several steps, joined along a leading ``step``."""
    steps = sorted(results)
    made = {step: json.loads(results[step].attrs.get("request", "{}")) for step in steps}
    checkpoints = {step: request["checkpoint"] for step, request in made.items() if request}
    tensors = {step: json.loads(results[step].attrs.get("tensors", "{}")) for step in steps}
    attrs = dict(results[steps[0]].attrs)
    if "flops" in attrs:
        attrs["flops"] = sum(result.attrs["flops"] for result in results.values())
    if checkpoints:
        attrs["checkpoints"] = json.dumps(checkpoints)
    if any(tensors.values()):
        attrs["tensors"] = json.dumps(tensors)
    joined = xr.concat(
        [results[step] for step in steps],
        dim="step",
        data_vars="all",
        coords="minimal",
        compat="override",
    )
    joined = joined.assign_coords(step=np.array(steps, np.int32)).transpose("step", ...)
    return joined.assign_attrs(attrs)


def repeats_in(result: xr.Dataset) -> list[Repeat]:
    """``repeated_weights`` of the checkpoints in a result with ``step``."""
    tensors = json.loads(result.attrs.get("tensors", "{}"))
    return repeated_weights({int(step): of for step, of in tensors.items()})
