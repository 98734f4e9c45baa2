"""The command-line reference and the API reference as Markdown, made from the configuration
dataclasses, the registered analyses and the public modules.
"""

import ast
import pkgutil
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from importlib import import_module
from inspect import cleandoc, getdoc, getsource
from itertools import pairwise
from textwrap import dedent
from types import ModuleType, NoneType, UnionType
from typing import Literal, Union, get_args, get_origin

import interp
from analyses.registry import registered
from interp.cli import interp_audit, interp_convert, interp_patch, interp_report, interp_train
from interp.config import PRESETS, AuditConfig, ConvertConfig, PatchConfig, ReportConfig

WORDS = {int: "whole number", float: "number", str: "text", bool: "no value"}


def commands() -> str:
    """A section per command: its help and a table of its options."""
    trained = interp_train._all_of(interp_train._Start())
    parts = [
        _command("interp-train", interp_train._train.__doc__, trained),
        _presets(),
        _command("interp-patch", interp_patch._patch.__doc__, PatchConfig),
        _command("interp-report", interp_report._report.__doc__, ReportConfig),
        _command("interp-audit", interp_audit._audit.__doc__, AuditConfig),
        _command("interp-convert", interp_convert._convert.__doc__, ConvertConfig),
    ]
    for name, analysis in registered().items():
        parts.append(_command(f"interp-analyse {name}", analysis.description, analysis.config))
    return "\n\n".join(parts)


def _command(name: str, said: str, config: type) -> str:
    rows = [
        f"| `{_flag(field)}` | {_takes(field)} | {_default(field)} | {_cell(text)} |"
        for field, text in _options(config)
    ]
    head = "| option | takes | default | |\n|---|---|---|---|"
    return "\n".join([f"## {name}", "", _help(name, said), "", head, *rows])


def _help(name: str, said: str) -> str:
    """The help text; its example commands are set as code."""
    command = name.split()[0]
    lines = cleandoc(said).splitlines()
    return "\n".join(f"    {line}" if line.startswith(f"{command} ") else line for line in lines)


def _options(config: type) -> Iterator[tuple[Field, str]]:
    """Fields that are options, and the text below each; those of a nested dataclass too."""
    texts = _texts(config)
    for field in fields(config):
        if is_dataclass(field.type):
            yield from _options(field.type)
        else:
            yield field, texts[field.name]


def _texts(config: type) -> dict[str, str]:
    """The text below each field, by name."""
    texts = {}
    for kind in reversed(config.__mro__[:-1]):
        (parsed,) = ast.parse(dedent(getsource(kind))).body
        for field, said in pairwise(parsed.body):
            if isinstance(field, ast.AnnAssign) and isinstance(said, ast.Expr):
                texts[field.target.id] = cleandoc(said.value.value)
    return texts


def _flag(field: Field) -> str:
    return f"--{field.name.replace('_', '-')}"


def _takes(field: Field) -> str:
    kind, several = field.type, False
    if get_origin(kind) is tuple:
        kind, several = get_args(kind)[0], True
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    kinds = [k for k in kinds if k is not NoneType]
    if any(get_origin(k) is tuple for k in kinds):
        kinds, several = [get_args(kinds[0])[0]], True
    choices = [c for k in kinds if get_origin(k) is Literal for c in get_args(k)]
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    bounds = field.metadata
    said = [WORDS[kinds[0]]]
    names = {"least": "from", "most": "to", "above": "above", "below": "below"}
    said += [f"{word} {bounds[x]:,}" for x, word in names.items() if bounds.get(x) is not None]
    return f"{'several: ' if several else ''}{' '.join(said)}"


def _default(field: Field) -> str:
    if field.default is MISSING:
        return "required"
    if field.default is None or field.default in ((), ""):
        return ""
    if isinstance(field.default, bool):
        return "on" if field.default else "off"
    shown = field.default if isinstance(field.default, tuple) else (field.default,)
    return " ".join(f"`{value}`" for value in shown)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|").replace("*", r"\*").replace("<", "&lt;")


def _presets() -> str:
    """A table of the presets' settings that are not the paper's."""
    paper, others = PRESETS["paper"], [name for name in PRESETS if name != "paper"]
    rows = []
    for field in fields(paper):
        values = [getattr(PRESETS[name], field.name) for name in (*others, "paper")]
        if len(set(values)) > 1:
            rows.append(f"| `{_flag(field)}` | {' | '.join(map(str, values))} |")
    head = f"| option | {' | '.join((*others, 'paper'))} |\n|---|{'---|' * len(PRESETS)}"
    return "\n".join(["### Presets", "", "What differs between the presets:", "", head, *rows])


def api_index() -> str:
    """The functions of ``interp`` itself, and a link to the page of each module and to classes."""
    parts = ["## Functions", *(f"::: {path}" for path in _top_functions())]
    homes = [f"{home}.{name}" for name, home in interp._HOMES.items()]
    classes = [path for path in homes if path not in _top_functions()]
    parts += ["## Classes", *(f"- [`{path.split('.')[-1]}`][{path}]" for path in classes)]
    modules = (f"- [`interp.{name}`](api/{name}.md): {_line(m)}" for name, m in _modules().items())
    return "\n\n".join([*parts, "## Modules", "\n".join(modules)])


def _top_functions() -> list[str]:
    found = {f"{home}.{name}": getattr(interp, name) for name, home in interp._HOMES.items()}
    return [path for path, one in found.items() if not isinstance(one, type)]


def api_pages() -> list[str]:
    """Addresses of the pages of modules."""
    return [f"api/{name}.md" for name in _modules()]


def api_page(uri: str) -> str:
    """The page of a module; of a package, with what it exports and what its modules have."""
    name = uri.removeprefix("api/").removesuffix(".md")
    module = _modules()[name]
    parts = [f"# interp.{name}", getdoc(module)]
    if not hasattr(module, "__path__"):
        return "\n\n".join([*parts, *_members(module, level=2)])
    exported = [f"[`{x}`][{_home(module, x)}]" for x in module.__all__]
    parts.append(f"Imported from `interp.{name}`: {', '.join(exported)}.")
    for within in _within(module):
        if members := _members(within, level=3):
            parts += [f"## {within.__name__}", getdoc(within), *members]
    return "\n\n".join(parts)


def _modules() -> dict[str, ModuleType]:
    return {name: import_module(path) for name, path in interp._MODULES.items()}


def _within(package: ModuleType) -> list[ModuleType]:
    found = pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
    return [import_module(one.name) for one in found]


def _line(module: ModuleType) -> str:
    return " ".join(getdoc(module).split("\n\n")[0].split())


def _home(package: ModuleType, name: str) -> str:
    """Where what ``package`` exports is defined."""
    found = getattr(package, name)
    homes = [x for x in _within(package) if getattr(x, name, None) is found]
    return f"{getattr(found, '__module__', homes[0].__name__)}.{name}"


def _members(module: ModuleType, *, level: int) -> list[str]:
    """A directive for each public function, class and described constant that ``module`` defines,
    but for functions of ``interp`` itself.
    """
    shown = _top_functions()
    paths = [f"{module.__name__}.{name}" for name in _defined(module) if name[0] != "_"]
    return [
        f"::: {path}\n    options:\n      heading_level: {level}"
        for path in paths
        if path not in shown
    ]


def _defined(module: ModuleType) -> Iterator[str]:
    """Names in the order of the source: functions, classes, constants with a text below them."""
    body = ast.parse(getsource(module)).body
    for one, following in pairwise([*body, ast.Pass()]):
        if isinstance(one, ast.FunctionDef | ast.ClassDef):
            yield one.name
        elif isinstance(following, ast.Expr) and isinstance(one, ast.Assign | ast.AnnAssign):
            target = one.targets[0] if isinstance(one, ast.Assign) else one.target
            if isinstance(target, ast.Name):
                yield target.id
