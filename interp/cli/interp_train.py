"""``interp-train``. Heavy imports wait until the arguments are read."""

import shlex
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from interp.cli.shell import command_line, guarded, parse, progress
from interp.config import PRESETS, TrainConfig
from interp.fields import check_fields, path


def main() -> None:
    """Entry point of ``interp-train``."""
    guarded("interp-train", _train)


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
