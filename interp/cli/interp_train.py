"""``interp-train``. Heavy imports wait until the arguments are read."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from interp.cli.shell import command_line, guarded, parse, parse_known, progress
from interp.config import PRESETS, TrainConfig, preset
from interp.fields import check_fields, path


def main() -> None:
    """Entry point of ``interp-train``."""
    guarded("interp-train", _train)


def _train(arguments: list[str]) -> None:
    """Train a transformer on biographies, synthetic or of your own people, and keep its
    checkpoints.

    Examples:

    interp-train --preset tiny --out runs/tiny

    interp-train --preset demo --out runs/demo-1 --seed 1 --learning-rate 3e-3

    interp-train --preset tiny --people-csv people.csv --templates templates.csv --out runs/mine

    interp-train --out runs/demo-1 --resume

    A new run needs a preset: tiny (90 s), demo (minutes), deep (eight layers, less than an hour) or
    paper (hours on a GPU). Any field of it can be changed; the defaults shown are those of the
    preset given, else the paper's.
    """
    start = parse_known(_Start, "interp-train", arguments)
    given = parse(_all_of(start), "interp-train", _train.__doc__, arguments)
    if given.preset is None and not given.resume:
        raise ValueError(
            f"no preset was given; choose one with --preset, from {', '.join(PRESETS)}"
        )
    from interp.files import check_writable
    from interp.model.checkpoint_folder import step_folders
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
                    description=f"step {step}, loss {float(loss):.3f} nats per token",
                )

        train(
            config,
            given.out,
            resume=given.resume,
            command=command_line("interp-train", arguments),
            on_step=on_step,
        )
    n = len(step_folders(Path(given.out)))
    print(
        f"{given.out} holds {n} checkpoint{'s' * (n > 1)}; next: interp-patch --ckpt "
        f"{shlex.quote(given.out)}"
    )


@dataclass(frozen=True)
class _Start:
    """What decides the defaults of all other arguments."""

    out: str = ""
    preset: str | None = None
    resume: bool = False
    people_csv: str = ""
    templates: str = ""

    @property
    def config(self) -> TrainConfig:
        """The preset's configuration, with the sizes of people of one's own, or, when resuming
        without a preset, that of the run.
        """
        if self.preset is None and self.resume and self.out:
            from interp.training.run_folder import read_config

            return read_config(Path(self.out))
        config = preset(self.preset or "paper")
        if not (self.people_csv and self.templates):
            return config
        from interp.data.own_people import with_own_people

        return with_own_people(config, self.people_csv, self.templates)


def _all_of(start: _Start) -> type:
    """What ``interp-train`` takes: the fields of a configuration, and three flags beside them."""

    @dataclass(frozen=True)
    class TrainArguments:
        out: str = path()
        """The run folder to write."""
        config: TrainConfig = start.config
        preset: Literal["tiny", "demo", "deep", "paper"] | None = None
        """The configuration to start from."""
        resume: bool = False
        """Go on from the newest checkpoint in --out, with the configuration recorded there."""

        def __post_init__(self) -> None:
            check_fields(self)

    return TrainArguments
