"""``interp-convert``. Heavy imports wait until the arguments are read."""

from pathlib import Path

from interp.cli.shell import guarded, parse, progress
from interp.config import ConvertConfig


def main() -> None:
    """Entry point of ``interp-convert``."""
    guarded("interp-convert", _convert)


def _convert(arguments: list[str]) -> None:
    """Write checkpoints with pickled weights (pytorch_model.bin) again as safetensors.

    Pickles are opened with torch.load(weights_only=True), which runs no code. Give one checkpoint
    or a folder of them; config.json and tokenizers are copied.

    Examples:

    interp-convert --ckpt gpt2-run --out gpt2-run-safetensors

    interp-convert --ckpt gpt2-run/checkpoint-400 --out gpt2-400

    Running the same again goes on with the first checkpoint that is not there.
    """
    config = parse(ConvertConfig, "interp-convert", _convert.__doc__ or "", arguments)
    from interp.files import check_writable
    from interp.model.convert_weights import convert_checkpoint, copy_tokenizer
    from interp.suite import load_suite, select_steps

    suite, out = load_suite(config.ckpt), Path(config.out)
    if out.resolve() in (suite.path.resolve(), Path(config.ckpt).resolve()):
        raise ValueError(f"--out is {out}, the checkpoints themselves; choose another folder")
    if suite.path.resolve() in out.resolve().parents:
        raise ValueError(
            f"--out is {out}, inside {suite.path}, where it would stand among checkpoints; choose "
            "a folder beside it"
        )
    steps = select_steps(suite, config.steps)
    folders = {suite.step_dir(step): out / _label(suite.step_dir(step), step) for step in steps}
    if list(folders) == [Path(config.ckpt).resolve()] or list(folders) == [suite.path]:
        folders = dict.fromkeys(folders, out)
    check_writable(out.parent)
    n_written = 0
    with progress() as bar:
        task = bar.add_task("converting, checkpoint", total=len(folders))
        for source, target in folders.items():
            n_written += convert_checkpoint(source, target)
            bar.advance(task)
    if out not in folders.values():
        copy_tokenizer(suite.path, out)
    there = f", {n} were there already" if (n := len(folders) - n_written) else ""
    print(f"{n_written} checkpoint{'s' * (n_written != 1)} written to {out}{there}")


def _label(folder: Path, step: int) -> str:
    """Name of a checkpoint's folder; a snapshot of the hub's cache has none that says its step."""
    return f"step{step}" if folder.parent.name == "snapshots" else folder.name
