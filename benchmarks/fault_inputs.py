"""The folders and objects that the rows of ``benchmarks.fault_table`` start from."""

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks import fault_damage
from benchmarks.fault_runner import Ended, command, run
from benchmarks.fault_table import SMALL

SHAPE = {
    **{"n-people": 40, "n-held-out": 20, "n-layers": 2, "d-model": 32, "d-mlp": 64},
    **{"n-steps": 30, "dense-every": 10, "dense-until": 10, "checkpoint-every": 20},
    **{"precision": "fp32", "batch-size": 8},
}
PATCHED = "--sites z mlp_out --facts 6 --steps 20,30"
COLUMNS = ("clean_prompt", "corrupted_prompt", "name", "answer", "corrupted_answer", "attribute")
NAMES = ("run", "done", "other", "wide", "prompts.csv", "curves.csv")
"""What a template folder holds; a case has copies of those that it names."""


def trained(out: str, **changes: object) -> str:
    """The command line that trains a run of the template."""
    given = SHAPE | {name.replace("_", "-"): value for name, value in changes.items()}
    return f"interp-train --preset tiny --out {out} " + " ".join(
        f"--{name} {value}" for name, value in given.items()
    )


def make_template(folder: Path) -> Path:
    """``folder`` with everything in ``NAMES``."""
    folder.mkdir(parents=True)
    for line in (
        trained("run"),
        trained("other", seed=1),
        trained("wide", d_model=48, seed=2, n_first_names=6),
        f"interp-patch --ckpt other {PATCHED}",
    ):
        _must(run(command(line.split()), folder), line)
    fault_damage.copy(str(folder / "run"), str(folder / "done"))
    line = f"interp-patch --ckpt done {PATCHED}"
    _must(run(command(line.split()), folder), line)
    _must(run(_write_tables, folder), "tables")
    return folder


def _must(ended: Ended, what: str) -> None:
    if ended.code:
        raise RuntimeError(f"{what} ended with {ended.code}: {ended.said}")


def _write_tables() -> None:
    import numpy as np
    import pandas as pd

    import interp

    suite = interp.load_suite("run")
    texts = suite.facts(4).texts
    people = suite.population.set_index("id").loc[texts.person]
    names = (people["first"] + " " + people["middle"] + " " + people["last"]).to_numpy()
    texts.assign(name=names)[list(COLUMNS)].to_csv("prompts.csv", index=False)
    steps = np.arange(0, 1200, 100)
    rng = np.random.default_rng(0)
    rows = [
        {"step": step, "value": float(step > at) + 0.02 * rng.normal(), "curve": curve}
        for curve, at in (("early", 350), ("late", 750))
        for step in steps
    ]
    pd.DataFrame(rows).to_csv("curves.csv", index=False)


def mentioned(*texts: str) -> set[str]:
    """Those of ``NAMES`` that occur in the texts, and what they need."""
    found = {name for name in NAMES for text in texts if re.search(rf"\b{re.escape(name)}", text)}
    words = ("suite", "facts", "model", "result", "tree")
    if any(re.search(rf"\b{word}\b", text) for word in words for text in texts):
        found.add("run")
    return found


def words(expression: str) -> dict[str, object]:
    """What an expression can name, made as far as it does; to be called where ``run`` is."""
    import numpy as np
    import pandas as pd
    import torch
    import xarray as xr

    import interp

    made: dict[str, object] = {
        name: getattr(fault_damage, name) for name in vars(fault_damage) if name.islower()
    }
    made |= {
        "nan": np.nan,
        "inf": np.inf,
        "interp": interp,
        "np": np,
        "pd": pd,
        "torch": torch,
        "xr": xr,
    }
    made["Path"] = Path
    makers: dict[str, Callable[[], object]] = {
        "suite": lambda: interp.load_suite("run"),
        "facts": lambda: interp.load_suite("run").facts(6),
        "model": lambda: interp.load_suite("run").load(30),
        "result": lambda: _result(interp, ["z"])["z"].to_dataset().isel(step=0, drop=True),
        "tree": lambda: _result(interp, ["z"]),
        "small": lambda: interp.preset("tiny", **_small()),
        "curve": lambda: xr.DataArray(
            np.arange(12.0) > 5, dims="step", coords={"step": np.arange(12)}
        ).astype(float),
    }
    for name, make in makers.items():
        if re.search(rf"\b{name}\b", expression):
            made[name] = make()
    return made


def _small() -> dict[str, object]:
    return {name.replace("-", "_"): value for name, value in SMALL.items()}


def _result(interp, sites: list[str]):
    suite = interp.load_suite("run")
    return interp.patch_suite(suite, suite.facts(6), sites=sites, steps=[30])
