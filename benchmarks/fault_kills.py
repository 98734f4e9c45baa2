"""Parts C, D and E: commands killed at random moments, on a full disk, and two at once; then the
same command again, whose end must be that of one that was never disturbed.
"""

import os
import random
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from time import monotonic, sleep

from benchmarks.fault_inputs import PATCHED, trained
from benchmarks.fault_runner import (
    Digests,
    Ended,
    Findings,
    agree,
    command,
    error_line,
    finish,
    kill_after,
    last_line,
    leftovers,
    new_folder,
    numbers,
    run,
    start,
)

TRAIN = f"{trained('new')} --resume"
PATCH = f"interp-patch --ckpt run {PATCHED}"
LOCALIZE = "interp-analyse localization --ckpt run --facts 12 --people 20 --workers 1 --steps 20,30"
STUDY = "interp-analyse phases --preset smoke --workers {}"
REPORT = "interp-report --results done/results/patching --out report.html"
KILLED = (TRAIN, PATCH, LOCALIZE, TRAIN, STUDY.format(1), PATCH, TRAIN, LOCALIZE, STUDY.format(2))
"""In turn: training is resumed by the same words."""
MOST_KILLS = 4
"""In a row, before a command is let to its end."""
_Whole = tuple[Digests, float]


def killed(n_kills: int, seed: int, template: Path, place: Path, found: Findings) -> Iterable[None]:
    """Part C: adds a finding a command that was killed one or more times; yields after a kill."""
    rng, whole, n_done, turn = random.Random(seed), {}, 0, 0
    while n_done < n_kills:
        line = KILLED[turn % len(KILLED)]
        turn += 1
        if line not in whole:
            whole[line] = _undisturbed(line, template, place)
        wanted, seconds = whole[line]
        folder, moments = new_folder(place, template, {"run"}), []
        for _ in range(min(MOST_KILLS, n_kills - n_done)):
            moment = rng.uniform(0, seconds)
            if not kill_after(command(line.split()), folder, moment):
                break
            moments.append(f"{moment:.2f}")
            n_done += 1
            yield
        if not moments:
            continue
        sleep(0.3)  # until workers of the killed process have gone, too
        ended = run(command(line.split()), folder)
        what = f"{_short(line)}; killed after {', '.join(moments)} of {seconds:.2f} s"
        found.add("C", what, *_right_end(ended, folder, wanted))


def _short(line: str) -> str:
    """A command without its flags."""
    return line.partition(" --")[0]


def _undisturbed(line: str, template: Path, place: Path) -> _Whole:
    folder, begin = new_folder(place, template, {"run"}), monotonic()
    ended = run(command(line.split()), folder)
    if ended.code:
        raise RuntimeError(f"{line} ended with {ended.code}: {ended.said}")
    return numbers(folder), monotonic() - begin


def _right_end(ended: Ended, folder: Path, wanted: Digests) -> tuple[str, str]:
    """Whether a command ended as one that was never disturbed."""
    if ended.hung:
        return "hang", last_line(ended)
    if ended.code:
        return "data lost", f"exit {ended.code}: {last_line(ended)}"
    got = numbers(folder)
    if not agree(got, wanted):
        other = [name for name in wanted if got.get(name) != wanted[name]]
        return "data lost", f"{len(other)} of {len(wanted)} differ, {other[0]} first"
    if left := leftovers(folder):
        return "data lost", f"left behind: {', '.join(left)}"
    return "right value", ""


FULL = {"train": TRAIN, "patch": PATCH, "report": REPORT}
SHARES = (0.02, 0.3, 0.6, 0.9, 0.98)


def full_disks(template: Path, place: Path, found: Findings) -> Iterable[None]:
    """Part D: adds a finding a (command, share of the disk it would need); yields after each. The
    disk is a tmpfs where mounting is permitted, else files are limited in size.
    """
    mounted = _can_mount(place)
    for name, line in FULL.items():
        names = {"done"} if name == "report" else {"run"}
        folder = new_folder(place, template, names)
        before = _size(folder)
        ended = run(command(line.split()), folder)
        wanted, needed = numbers(folder), _size(folder) - before
        for share in SHARES:
            new_folder(place, template, names)
            if mounted:
                kind, got = _on_small_disk(line, place, before, int(share * needed), wanted)
            else:
                largest = max(4096, int(share * needed / 4))
                ended = run(command(line.split()), place, file_size=largest)
                kind, got = _after_full(ended, line, place, wanted)
            found.add("D", f"{_short(line)} with {share:.0%} of the room it needs", kind, got)
            yield


def _can_mount(place: Path) -> bool:
    place.mkdir(parents=True, exist_ok=True)
    if os.geteuid() or not shutil.which("mount"):
        return False
    tried = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", str(place)], capture_output=True
    )
    if tried.returncode == 0:
        subprocess.run(["umount", str(place)], check=True)
    return tried.returncode == 0


def _on_small_disk(
    line: str, place: Path, before: int, room: int, wanted: Digests
) -> tuple[str, str]:
    disk = place.with_name("disk")
    disk.mkdir(exist_ok=True)
    pages = before + room
    options = f"size={pages}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], check=True)
    try:
        shutil.copytree(place, disk, dirs_exist_ok=True)
        ended = run(command(line.split()), disk)
        if ended.code == 0:
            return _right_end(ended, disk, wanted)
        subprocess.run(["mount", "-o", "remount,size=256M", str(disk)], check=True)
        return _after_full(ended, line, disk, wanted)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def _after_full(ended: Ended, line: str, folder: Path, wanted: Digests) -> tuple[str, str]:
    """Whether a command stopped with one line, and went on to the right end."""
    said = error_line(ended)
    if ended.code and (said is None or ended.hung):
        return ("hang" if ended.hung else "traceback"), last_line(ended)
    kind, got = _right_end(run(command(line.split()), folder), folder, wanted)
    if kind != "right value" or said is None:
        return kind, got
    return ("clean error" if "space" in said or "full" in said else "other message"), said


def _size(folder: Path) -> int:
    """Bytes on a disk of pages of 4 KiB."""
    return sum(4096 * -(-path.stat().st_size // 4096) + 4096 for path in folder.rglob("*"))


BOTH = (TRAIN, PATCH, LOCALIZE, STUDY.format(1))
DELAYS = (0.0, 0.05, 0.3, 1.0)


def two_at_once(template: Path, place: Path, found: Findings) -> Iterable[None]:
    """Part E: adds a finding a (command, seconds between the two); yields after each."""
    for line in BOTH:
        wanted, _ = _undisturbed(line, template, place)
        for delay in DELAYS:
            folder, pids = new_folder(place, template, {"run"}), []
            for label in ("1", "2"):
                pids.append(start(command(line.split()), folder, label))
                sleep(delay if label == "1" else 0)
            ends = [finish(pid, folder, label) for pid, label in zip(pids, ("1", "2"))]
            found.add("E", f"{_short(line)}, twice, {delay} s apart", *_both(ends, folder, wanted))
            yield


def _both(ends: list[Ended], folder: Path, wanted: Digests) -> tuple[str, str]:
    lines = [error_line(end) for end in ends]
    for end, said in zip(ends, lines):
        if end.hung or (end.code and said is None):
            return ("hang" if end.hung else "traceback"), last_line(end)
    ended = [end for end in ends if end.code == 0]
    if not ended:
        return "other message", f"both refused: {lines}"
    kind, got = _right_end(ended[0], folder, wanted)
    refused = [said for said in lines if said is not None]
    if kind != "right value" or not refused:
        return kind, got
    known = "another process" in refused[0] or "holds a run already" in refused[0]
    return ("clean error" if known else "other message"), refused[0]
