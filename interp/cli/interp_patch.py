"""``interp-patch``. Heavy imports wait until the arguments are read."""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from interp.cli.interp_report import metrics_of, write_report
from interp.cli.shell import command_line, guarded, parse, progress
from interp.config import Corruption, PatchConfig

OF_LIBRARIES = 0.5
"""Gigabytes that a process takes before it has a model."""


def main() -> None:
    """Entry point of ``interp-patch``."""
    guarded("interp-patch", _patch)


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

    interp-patch --ckpt checkpoints/demo --sites z-v z-mlp_out mlp_out-logits --method eap

    interp-patch --ckpt checkpoints/demo --sites resid_pre --groups name_first+name_middle all

    interp-patch --ckpt checkpoints/demo --sites edge --by pos --attributes major

    interp-patch --ckpt checkpoints/demo --sites knockout --direction noising --plan

    interp-patch --ckpt checkpoints/demo --sites head_knockout --sources cue --direction noising

    interp-patch --ckpt checkpoints/demo --sites resid_pre --frozen mlp_out --layers 0 1

    interp-patch --ckpt checkpoints/demo --facts-csv mine.csv --sites resid_pre z

    interp-patch --ckpt checkpoints/demo --sites z --task-id 0 --n-tasks 11

    interp-patch --ckpt checkpoints/demo --sites z --status --n-tasks 11

    Running the same again reuses what is there. It can be stopped at any time; the next run goes on
    from the last checkpoint done.
    """
    config = parse(PatchConfig, "interp-patch", _patch.__doc__, arguments)
    from interp.files import check_page, check_writable
    from interp.results.over_checkpoints import checked_tensors
    from interp.results.store import read_other_direction
    from interp.suite import load_suite, select_steps

    suite = load_suite(config.ckpt)
    # The report shows the direction that is patched last.
    directions = ("noising", "denoising") if config.direction == "both" else (config.direction,)
    steps = select_steps(suite, config.steps)
    facts = _facts(suite, config)
    sites = _checked_sites(suite, facts, steps, config, directions)
    if config.plan:
        checked_tensors(suite, steps)
        _print_cost_estimate(suite, facts, sites, steps, config, sorted(directions))
        return
    out = Path(config.out) if config.out else suite.results_folder("patching")
    target = Path(config.report) if config.report else suite.page("patching")
    check_writable(out), check_page(target)
    metrics = metrics_of(suite.path)
    command = command_line("interp-patch", arguments)
    asked = {"sites": sites, "steps": steps, "out": out, "command": command}
    asked |= {"made_from": {"corruption": config.corruption}, **_where(config), **_options(config)}
    if config.cluster.is_part:
        print(_in_part(suite, facts, config, directions, asked))
        return
    tree = _sweep(suite, facts, config, directions, asked)
    other = read_other_direction(out, tree)
    write_report(tree, other, suite.path, metrics, target, command, name=suite.name)
    print(f"results: {out}\nreport:  {target}  (open it in a browser)")


def _checked_sites(
    suite, facts, steps: list[int], config: PatchConfig, directions: Sequence[str]
) -> list[str]:
    """The sites to patch.

    Raises:
        ValueError: a direction can't be patched as asked.
    """
    from interp.patching.intervention import Intervention
    from interp.results.sweep import check_sweep

    for direction in directions:
        how = Intervention(direction=direction, **_options(config))
        sites = check_sweep(suite, facts, steps, config.sites, how)
    return sites


def _in_part(suite, facts, config: PatchConfig, directions: Sequence[str], asked: dict) -> str:
    from interp.results.sweep import patching_sweep
    from interp.results.tasks import in_part

    sweeps = [patching_sweep(suite, facts, direction=way, **asked) for way in directions]
    with progress() as bar:
        task = bar.add_task("patching, checkpoint", total=None)
        return in_part(
            sweeps,
            config.cluster,
            workers=config.workers,
            on_step=lambda n_done: bar.update(task, completed=n_done),
        )


def _sweep(suite, facts, config: PatchConfig, directions: Sequence[str], asked: dict):
    """Runs the sweep in each of ``directions``; returns the results of the last."""
    from interp.cluster.executors import executor_of
    from interp.results.sweep import patch_suite

    n_steps, jobs = len(asked["steps"]), asked["out"] / "jobs"
    with (
        progress() as bar,
        executor_of(config.cluster, workers=config.workers, jobs=jobs) as executor,
    ):
        task = bar.add_task(
            f"patching {len(asked['sites'])} sites on {len(facts)} facts, checkpoint",
            total=n_steps * len(directions),
        )
        for i, direction in enumerate(directions):
            tree = patch_suite(
                suite,
                facts,
                direction=direction,
                workers=config.workers,
                executor=executor,
                on_step=lambda n_done, i=i: bar.update(task, completed=i * n_steps + n_done),
                **asked,
            )
    return tree


def _where(config: PatchConfig) -> dict:
    """Device, precision and memory limit of the patched model."""
    from interp.model.decoder import device_of

    return {
        "device": device_of(config.device, here=False),
        "precision": config.precision,
        "max_memory": config.max_memory,
    }


def _facts(suite, config: PatchConfig):
    """The facts that the configuration asks for; by position, those of the most common length."""
    if config.facts_csv:
        return _own_facts(suite, config, config.facts_csv)
    asked = {
        "attribute": config.attributes,
        "seed": config.seed,
        "corruption": config.corruption if config.corruption in get_args(Corruption) else "swap",
    }
    from interp.suite import facts_or_fewer

    facts = facts_or_fewer(suite, config.facts, **asked)
    if config.by == "role":
        return facts
    return facts_or_fewer(suite, config.facts, **asked, length=int(facts.lengths.mode().values))


def _own_facts(suite, config: PatchConfig, path: str):
    """Facts of a file; says how many there are, and whether a special token comes first."""
    asked = {"relations": config.attributes or (), "seed": config.seed}
    facts = suite.read_facts(path, n=config.facts, **asked)
    print(facts)
    if config.by == "role":
        return facts
    length = int(facts.lengths.mode().values)
    same = facts[facts.lengths.numpy() == length]
    print(f"by position: the {len(same)} of them with prompts of {length} tokens")
    return same


def _options(config: PatchConfig) -> dict:
    """The fields of an ``Intervention`` except its direction."""
    ablations = ("noise", "mean", "zero", "resample")
    same = (
        *("by", "method", "groups", "sources", "layers", "window", "frozen", "n_neurons"),
        *("noise_std", "noise_draws", "seed"),
    )
    return {name: getattr(config, name) for name in same} | {
        "replacement": config.corruption if config.corruption in ablations else "run"
    }


def _print_cost_estimate(
    suite,
    facts,
    sites: list[str],
    steps: list[int],
    config: PatchConfig,
    directions: Sequence[str],
) -> None:
    from interp.model.weight_files import weight_bytes
    from interp.patching.cost import plan, weight_gigabytes
    from interp.patching.intervention import Intervention

    shape, tera, megabytes = suite.shape_at(steps[0]), 0.0, 0.0
    for direction in directions:
        how = {"direction": direction, **_options(config)}
        print(Intervention(**how))
        for p in plan(shape, facts, sites=sites, max_memory=config.max_memory, **how):
            print(f"  {p}")
            tera += p.flops / 1e12 * len(steps)
            megabytes = max(megabytes, p.megabytes)
    at = "1 checkpoint" if len(steps) == 1 else f"{len(steps)} checkpoints"
    read = sum(weight_bytes(suite.step_dir(step)) for step in steps) / 1e9
    held = weight_gigabytes(shape) + megabytes / 1e3 + OF_LIBRARIES
    print(f"at {at}: {tera:.3g} TFLOP at most, {read:.3g} GB of weights to read")
    print(f"memory of a worker: {held:.1f} GB at most, half a gigabyte of it for libraries")
    print(f"pieces for tasks (--n-tasks): {len(steps)}, one a checkpoint")
