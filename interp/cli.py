"""The three commands. Heavy imports wait until the arguments are read; only here and in
``interp.shell`` anything is printed or exited.
"""

import json
import shlex
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from os.path import normpath
from pathlib import Path
from typing import Literal, get_args

from interp.config import PRESETS, Corruption, PatchConfig, ReportConfig, TrainConfig
from interp.fields import check_fields, path
from interp.shell import command_line, guarded, parse, progress


def train() -> None:
    """Entry point of ``interp-train``."""
    guarded("interp-train", _train)


def patch() -> None:
    """Entry point of ``interp-patch``."""
    guarded("interp-patch", _patch)


def report() -> None:
    """Entry point of ``interp-report``."""
    guarded("interp-report", _report)


def _train(arguments: list[str]) -> None:
    """Train a transformer on synthetic biographies and keep its checkpoints.

    Examples:

    interp-train --preset tiny --out runs/tiny

    interp-train --preset demo --out runs/demo-1 --seed 1 --learning-rate 3e-3

    interp-train --out runs/demo-1 --resume

    A new run needs a preset: tiny (90 s), demo (minutes) or paper (hours on a GPU). Any field of it
    can be changed; the defaults shown are those of the preset given, else the paper's.
    """
    kind = _train_arguments(_default_config(arguments))
    given = parse(kind, "interp-train", _train.__doc__, arguments)
    if given.preset is None and not given.resume:
        raise ValueError(
            f"no preset was given; choose one with --preset, from {', '.join(PRESETS)}"
        )
    from interp.files import check_writable
    from interp.training.loop import train

    config = given.config
    check_writable(Path(given.out))
    with progress() as bar:
        task = bar.add_task("starting", total=config.n_steps)

        def on_step(step: int, loss) -> None:
            if step % 10 == 0 or step == config.n_steps:
                bar.update(
                    task,
                    completed=step,
                    description=f"step {step}, loss {float(loss):.3f} nats a token",
                )

        train(
            config,
            given.out,
            resume=given.resume,
            command=command_line("interp-train", arguments),
            on_step=on_step,
        )
    print(
        f"{given.out} holds {len(config.checkpoint_steps)} checkpoints; next: interp-patch "
        f"--ckpt {shlex.quote(given.out)}"
    )


def _patch(arguments: list[str]) -> None:
    """Patch activations at every checkpoint of a run, and write results and an interactive report.

    Examples:

    interp-patch --ckpt checkpoints/demo

    interp-patch --ckpt checkpoints/demo --sites z --attributes major company --facts 64

    interp-patch --ckpt checkpoints/demo --steps every:4 --direction noising --report noising.html

    interp-patch --ckpt checkpoints/demo/step-001000 --sites q k v pattern

    interp-patch --ckpt checkpoints/demo --sites mlp_out --window 3 --corruption noise

    interp-patch --ckpt checkpoints/demo --sites z mlp_post --corruption mean --direction noising

    interp-patch --ckpt checkpoints/demo --sites resid_pre --corruption swap-last

    interp-patch --ckpt checkpoints/demo --sites attn_out mlp_out --direction both

    interp-patch --ckpt checkpoints/demo --steps 6500 --sites z-logits L0H1.z-q embed-v-logits

    interp-patch --ckpt checkpoints/demo --sites resid_pre --groups name_first+name_middle all

    interp-patch --ckpt checkpoints/demo --sites edge --by pos --attributes major

    interp-patch --ckpt checkpoints/demo --sites knockout --direction noising --plan

    interp-patch --ckpt checkpoints/demo --sites head_knockout --sources cue --direction noising

    interp-patch --ckpt checkpoints/demo --sites resid_pre --frozen mlp_out --layers 0 1

    Running the same again reuses what is there. It can be stopped at any time; the next run goes on
    from the last checkpoint done.
    """
    config = parse(PatchConfig, "interp-patch", _patch.__doc__, arguments)
    from interp.files import check_page, check_writable
    from interp.results import read_other_direction
    from interp.suite import load_suite, select_steps
    from interp.sweep import checked_tensors

    suite = load_suite(config.ckpt)
    # What is asked last, the report shows first.
    directions = ("noising", "denoising") if config.direction == "both" else (config.direction,)
    steps = select_steps(suite, config.steps)
    facts = _facts(suite, config)
    sites = _checked_sites(suite, facts, steps, config, directions)
    if config.plan:
        checked_tensors(suite, steps)
        _say_plan(suite, facts, sites, steps, config, sorted(directions))
        return
    out = Path(config.out) if config.out else suite.path / "results" / "patching"
    target = Path(config.report) if config.report else suite.path / "report.html"
    check_writable(out), check_page(target)
    metrics = _metrics(suite.path)
    command = command_line("interp-patch", arguments)
    tree = _sweep(suite, facts, sites, steps, config, directions, out, command)
    _write_report(tree, read_other_direction(out, tree), suite.path, metrics, target, command)
    print(f"results: {out}\nreport:  {target}  (open it in a browser)")


def _checked_sites(
    suite, facts, steps: list[int], config: PatchConfig, directions: Sequence[str]
) -> list[str]:
    """Raises a ValueError where a direction can't be patched as asked."""
    from interp.patching.intervention import Intervention
    from interp.sweep import check_sweep

    for direction in directions:
        how = Intervention(direction=direction, **_options(config))
        sites = check_sweep(suite, facts, steps, config.sites, how)
    return sites


def _sweep(
    suite,
    facts,
    sites: list[str],
    steps: list[int],
    config: PatchConfig,
    directions: Sequence[str],
    out: Path,
    command: str,
):
    """Results of the last direction."""
    from interp.model import device_of
    from interp.sweep import patch_suite

    with progress() as bar:
        task = bar.add_task(
            f"patching {len(sites)} sites on {len(facts)} facts, checkpoint",
            total=len(steps) * len(directions),
        )
        for i, direction in enumerate(directions):
            tree = patch_suite(
                suite,
                facts,
                sites=sites,
                steps=steps,
                direction=direction,
                **_options(config),
                max_memory=config.max_memory,
                out=out,
                device=device_of(config.device),
                precision=config.precision,
                workers=config.workers,
                command=command,
                made_from={"corruption": config.corruption},
                on_step=lambda n_done, i=i: bar.update(task, completed=i * len(steps) + n_done),
            )
    return tree


def _facts(suite, config: PatchConfig):
    """What the configuration asks for; by position, of the commonest length."""
    asked = {
        "attribute": config.attributes,
        "seed": config.seed,
        "corruption": config.corruption if config.corruption in get_args(Corruption) else "swap",
    }
    if config.by == "role":
        return suite.facts(config.facts, **asked)
    lengths = suite.facts(config.facts, **asked).lengths
    return suite.facts(config.facts, **asked, length=int(lengths.mode().values))


def _options(config: PatchConfig) -> dict:
    """The fields of an ``Intervention`` but for its direction."""
    ablations = ("noise", "mean", "zero", "resample")
    same = (
        *("by", "groups", "sources", "layers", "window", "frozen", "n_neurons"),
        *("noise_std", "noise_draws", "seed"),
    )
    return {name: getattr(config, name) for name in same} | {
        "replacement": config.corruption if config.corruption in ablations else "run"
    }


def _say_plan(
    suite,
    facts,
    sites: list[str],
    steps: list[int],
    config: PatchConfig,
    directions: Sequence[str],
) -> None:
    from interp.patching.intervention import Intervention
    from interp.patching.plan import plan

    shape, tera = suite.shape_at(steps[0]), 0.0
    for direction in directions:
        how = {"direction": direction, **_options(config)}
        print(Intervention(**how))
        for p in plan(shape, facts, sites=sites, max_memory=config.max_memory, **how):
            print(f"  {p}")
            tera += p.flops / 1e12 * len(steps)
    at = "1 checkpoint" if len(steps) == 1 else f"{len(steps)} checkpoints"
    print(f"at {at}: {tera:.2f} TFLOP at most")


def _report(arguments: list[str]) -> None:
    """Make the HTML report of a folder of results again.

    The training curves are those of the run folder that the results were made from, if it still has
    their checkpoints.

    Example:

    interp-report --results checkpoints/demo/results/patching --out report.html

    Of several questions in the folder (other facts, other options), the one asked last is shown,
    beside the other direction of it where that is there, too.
    """
    config = parse(ReportConfig, "interp-report", _report.__doc__, arguments)
    from interp.files import check_page
    from interp.results import read_folder, read_other_direction

    check_page(Path(config.out))
    folder = Path(config.results)
    results = read_folder(folder)
    made_by = json.loads(next(iter(results.values())).attrs["made_by"])
    run = folder / made_by.get("run", "../..")
    other = read_other_direction(folder, results)
    metrics = _metrics(run) if _are_of(results, run) else None
    _write_report(results, other, run, metrics, Path(config.out))
    print(f"report: {config.out}")


def _train_arguments(default: TrainConfig) -> type:
    """What ``interp-train`` takes: the fields of a configuration, and three flags beside them."""

    @dataclass(frozen=True)
    class TrainArguments:
        out: str = path()
        """The run folder to write."""
        config: TrainConfig = default
        preset: Literal["tiny", "demo", "paper"] | None = None
        """The configuration to start from."""
        resume: bool = False
        """Go on from the newest checkpoint in --out, with the configuration recorded there."""

        def __post_init__(self) -> None:
            check_fields(self)

    return TrainArguments


def _default_config(arguments: list[str]) -> TrainConfig:
    """What the other flags change: the preset's configuration or, when resuming without one, that
    of the run.
    """
    given = dict(pairwise(arguments)) | {
        k: v for k, _, v in (a.partition("=") for a in arguments) if v
    }
    name = given.get("--preset")
    if name is not None and name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    if name is None and "--resume" in arguments and "--out" in given:
        from interp.training.run_folder import read_config

        return read_config(Path(given["--out"]))
    return PRESETS[name or "paper"]


def _are_of(results, run: Path) -> bool:
    """Whether the last checkpoint of ``results`` is the one that the run folder has."""
    from interp.boundary.step_folders import step_folders
    from interp.suite import load_suite

    if not (run / "run.json").is_file() or not step_folders(run):
        return False
    suite, checkpoints = load_suite(run), next(iter(results.values())).attrs["checkpoints"]
    step, digest = max((int(step), digest) for step, digest in json.loads(checkpoints).items())
    same = step in suite.steps and suite.sha256(step) == digest
    if not same:
        warnings.warn(
            f"the results are of another run than the one in {normpath(run)}, or its checkpoints "
            "were replaced; its training curves are left out",
            stacklevel=2,
        )
    return same


def _metrics(run: Path):
    """A run's metrics table; None if its folder has none."""
    from interp.training.metrics import read_metrics

    path = run / "metrics.parquet"
    return read_metrics(path) if path.is_file() and (run / "run.json").is_file() else None


def _write_report(results, other, run: Path, metrics, target: Path, command: str = "") -> None:
    from interp.files import write_bytes
    from interp.report import build_report
    from interp.training.run_folder import read_record

    page = build_report(
        results,
        other=other,
        run=None if metrics is None else read_record(run),
        metrics=metrics,
        title=f"Where and when {run.resolve().name} recalls facts",
        command=command,
    )
    write_bytes(target, page.encode())
