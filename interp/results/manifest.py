"""Which questions a folder of results answers, in the order in which they were asked.

``manifest.json`` records them, so that nothing depends on file times and a copied folder reads the
same. Each entry names a question, its sites, and the checkpoint that the run had at each step when
the question was last asked. An entry is written before its first result, under the folder's lock. A
killed process may leave a result without an entry, or an entry without results; both are harmless.
"""

import json
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

from interp.files import read_json, write_json
from interp.results.request import Request, canonical, file_name

_NAME = "manifest.json"


@dataclass(frozen=True)
class Entry:
    """A question, and the results that answer it."""

    question: dict
    """As ``Request.question`` gives it."""
    sites: tuple[str, ...]
    """Those asked for last come first."""
    checkpoints: dict[int, str]
    """Digest of the weights, by step."""

    def files(self, folder: Path) -> dict[str, dict[int, Path]]:
        """Result files of this entry that are in ``folder``, by site and step."""
        found: dict[str, dict[int, Path]] = {}
        for site, (step, checkpoint) in product(self.sites, self.checkpoints.items()):
            of_one = {"step": step, "site": site, "checkpoint": checkpoint}
            path = folder / file_name(self.question | of_one)
            if path.is_file():
                found.setdefault(site, {})[step] = path
        return found

    def asks_as(self, other: "Entry") -> bool:
        """Whether both ask the same question, possibly of two trainings of the run."""
        asked, wanted = self.question | {"run": ""}, other.question | {"run": ""}
        return asked == wanted


def read_manifest(folder: Path) -> list[Entry] | None:
    """The recorded questions, newest last; None where nothing was recorded.

    Raises:
        ValueError: manifest.json is damaged.
    """
    path, advice = folder / _NAME, "delete it and run the same again"
    if not path.exists():
        return None
    if not path.is_file():
        raise ValueError(f"{path} is not a file; {advice}")
    content = read_json(path, advice=advice)
    try:
        return [_entry(values) for values in content["questions"]]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); {advice}") from None


def _entry(values: dict) -> Entry:
    question, sites, checkpoints = (values[k] for k in ("question", "sites", "checkpoints"))
    if not isinstance(question, dict) or not all(isinstance(site, str) for site in sites):
        raise ValueError("an entry is not a question with its sites")
    return Entry(question, tuple(sites), {int(step): x for step, x in checkpoints.items()})


def record_requests(
    folder: Path, requests: Collection[Request], is_replaced: Callable[[int, str], bool]
) -> None:
    """Makes the question of ``requests`` the newest in ``folder``; the caller holds its lock.

    Args:
        is_replaced: whether the run now has another checkpoint at a step than the one recorded,
            which then stays in an entry of its own.
    """
    first = next(iter(requests))
    sites = tuple(dict.fromkeys(request.site for request in requests))
    question = json.loads(canonical(first.question))
    new = Entry(question, sites, {request.step: request.checkpoint for request in requests})
    entries = read_manifest(folder) or []
    alike = [entry for entry in entries if entry.question == question]
    if alike:
        kept = {
            step: x
            for step, x in alike[-1].checkpoints.items()
            if step in new.checkpoints or not is_replaced(step, x)
        }
        new = replace(
            new,
            sites=tuple(dict.fromkeys((*new.sites, *alike[-1].sites))),
            checkpoints=dict(sorted((kept | new.checkpoints).items())),
        )
    older = [_without(entry, new) if entry in alike else entry for entry in entries]
    after = [*(entry for entry in older if entry.checkpoints), new]
    if after != entries:
        write_json(folder / _NAME, {"questions": [asdict(entry) for entry in after]})


def _without(entry: Entry, new: Entry) -> Entry:
    """``entry`` without the checkpoints that ``new`` has."""
    kept = entry.checkpoints.items() - new.checkpoints.items()
    return replace(entry, checkpoints=dict(sorted(kept)))
