"""``interp-analyse NAME``: lists the registered analyses and runs one."""

from inspect import cleandoc
from textwrap import fill

from analyses.registry import Analysis, registered
from interp.cli.shell import command_line, guarded, parse, progress


def analyse() -> None:
    """Entry point of ``interp-analyse``."""
    guarded("interp-analyse", _analyse)


def _analyse(arguments: list[str]) -> None:
    name, *rest = arguments or ["--help"]
    analyses = registered()
    if name in ("-h", "--help"):
        print(_help(analyses))
        return
    if name not in analyses:
        raise ValueError(f"no analysis {name!r}; there are {', '.join(analyses)}")
    analysis = analyses[name]
    config = parse(analysis.config, f"interp-analyse {name}", analysis.description, rest)
    with progress() as bar:
        said = analysis.run(config, command=command_line("interp-analyse", arguments), bar=bar)
    print(said)


def _help(analyses: dict[str, Analysis]) -> str:
    listed = {trains: "" for trains in (False, True)}
    for name, analysis in analyses.items():
        text = fill(f"{name}: {analysis.question}", 80, subsequent_indent="    ")
        listed[bool(analysis.study)] += f"{text}\n\n"
    examples = "\n\n".join(f"interp-analyse {x.examples[0]}" for x in analyses.values())
    return cleandoc(_HELP).format(reads=listed[False], trains=listed[True], examples=examples)


_HELP = """
    usage: interp-analyse NAME [...]

    Answers a scientific question. NAME is one of:

    {reads}These train runs, or read those they trained before:

    {trains}Examples:

    {examples}

    interp-analyse localization --help
"""
