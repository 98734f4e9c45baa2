"""Results on disk: one netCDF file a (checkpoint, question), reused when what made it is the same;
and what is read off them.

A file holds in its attribute ``request`` everything that determines its content. A different
request has another file name, so a changed checkpoint, question, option, version, source or seed
recomputes, and nothing else does. Its attribute ``checksum`` is of all that the file holds, so that
a changed byte is noticed. The format is netCDF 3, which any netCDF reader opens, and which
is read and written about 20 times faster than netCDF 4.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import xarray as xr

from interp.files import write_bytes
from interp.results.repeated_weights import Repeat, repeated_weights


def file_of(folder: Path, request: dict) -> Path:
    """Where the result of ``request`` belongs; the name tells step and site, and a digest of the
    rest.
    """
    digest = hashlib.sha256(_canonical(request).encode()).hexdigest()[:10]
    return folder / f"step-{request['step']:06d}.{request['site']}.{digest}.nc"


def read_result(folder: Path, request: dict) -> xr.Dataset | None:
    """The stored result of exactly this request, or None."""
    path = file_of(folder, request)
    if not path.is_file():
        return None
    try:
        result = open_result(path)
    except ValueError:  # damaged: as if it were not there
        return None
    path.touch()  # the question asked last is the newest
    return result if result.attrs.get("request") == _canonical(request) else None


def write_result(folder: Path, request: dict, result: xr.Dataset, made_by: dict) -> xr.Dataset:
    """Stores ``result`` under ``request``, with ``made_by`` (provenance, not part of the request)
    in its attributes; returns it so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    attrs = {**result.attrs, "request": _canonical(request), "made_by": json.dumps(made_by)}
    result = result.assign_attrs(attrs)
    result = result.assign_attrs(checksum=checksum(result))
    write_bytes(file_of(folder, request), bytes(result.to_netcdf(engine="scipy")))
    return result


def checksum(result: xr.Dataset) -> str:
    """Digest of a result's variables, coordinates and attributes but for its own; the same in
    memory and read back from a file, which holds whole numbers in 32 bits and booleans in 8.
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
    """A result file in memory.

    Raises:
        ValueError: the file is damaged, or was changed since it was written.
    """
    try:
        result = xr.load_dataset(path, engine="scipy") if path.is_file() else None
        whole = result is not None and result.attrs.get("checksum") == checksum(result)
    except Exception:  # whatever damaged bytes lead the reader to
        whole = False
    if not whole:
        raise ValueError(f"{path} is damaged; delete it and run the same again")
    return result


def read_folder(folder: Path) -> dict[str, xr.Dataset]:
    """Every result in ``folder`` of its newest question, joined along ``step``, by site.

    Raises:
        FileNotFoundError: no such folder, or no results in it.
        ValueError: they are not of patching.
    """
    files = list(folder.glob("step-*.nc"))
    for path in files:
        if not path.is_file():
            raise ValueError(f"{path} is no result file; move it away")
    files.sort(key=lambda path: path.stat().st_mtime_ns)
    if not files:
        inside = sorted({path.parent for path in folder.glob("results/*/step-*.nc")})
        advice = f"give {inside[0]}" if inside else "write some with interp-patch --ckpt RUN"
        raise FileNotFoundError(f"no results in {folder}; {advice}")
    newest = open_result(files[-1])
    if "direction" not in newest.attrs or "site" not in newest.attrs:
        raise ValueError(f"{files[-1]} is no result of interp-patch; give the folder of one")
    return _of_question(files, _question(newest))


def read_other_direction(
    folder: Path, results: dict[str, xr.Dataset] | xr.DataTree
) -> dict[str, xr.Dataset] | None:
    """The same question's results of the other direction on the same checkpoints, if all of them
    are in ``folder``.
    """
    other = {}
    for site in results:
        attrs = results[site].attrs
        steps = json.loads(attrs.get("checkpoints", "{}"))
        flipped = "noising" if attrs["direction"] == "denoising" else "denoising"
        found = {}
        for step in results[site].step.values.tolist():
            request = json.loads(attrs.get("request", "{}")) | {"step": step, "direction": flipped}
            path = file_of(folder, request | {"checkpoint": steps.get(str(step))})
            try:
                found[step] = open_result(path)
            except ValueError:  # damaged, or not there
                return None
        other[site] = join_steps(found)
    return other


def _of_question(files: list[Path], question: str) -> dict[str, xr.Dataset]:
    """What answers ``question``, joined along ``step``, by site; the newest of each step."""
    chosen: dict[tuple[str, int], xr.Dataset] = {}
    for result in map(open_result, files):
        if _question(result) == question:
            request = json.loads(result.attrs["request"])
            chosen[request["site"], request["step"]] = result
    sites = dict.fromkeys(site for site, _ in chosen)
    return {
        site: join_steps({step: r for (s, step), r in chosen.items() if s == site})
        for site in sites
    }


def join_steps(results: dict[int, xr.Dataset]) -> xr.Dataset:
    """Results of one site at several steps as one, with a leading ``step``."""
    steps = sorted(results)
    made = {step: json.loads(results[step].attrs.get("request", "{}")) for step in steps}
    checkpoints = {step: request["checkpoint"] for step, request in made.items() if request}
    tensors = {step: json.loads(results[step].attrs.get("tensors", "{}")) for step in steps}
    joined = xr.concat(
        [results[step] for step in steps],
        dim="step",
        data_vars="all",
        coords="minimal",
        compat="override",
    )
    return (
        joined.assign_coords(step=np.array(steps, np.int32))
        .transpose("step", ...)
        .assign_attrs(results[steps[0]].attrs)
        .assign_attrs({"checkpoints": json.dumps(checkpoints)} if checkpoints else {})
        .assign_attrs({"tensors": json.dumps(tensors)} if any(tensors.values()) else {})
    )


def repeats_in(result: xr.Dataset) -> list[Repeat]:
    """``repeated_weights`` of the checkpoints that a result with ``step`` is of."""
    tensors = json.loads(result.attrs.get("tensors", "{}"))
    return repeated_weights({int(step): of for step, of in tensors.items()} if tensors else {})


def _question(result: xr.Dataset) -> str:
    request = json.loads(result.attrs.get("request", "{}"))
    return _canonical(
        {key: value for key, value in request.items() if key not in ("step", "site", "checkpoint")}
    )


def _canonical(request: dict) -> str:
    return json.dumps(request, sort_keys=True)
