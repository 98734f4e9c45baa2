import errno
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from interp import files
from interp.files import (
    check_writable,
    machine,
    only_process,
    temporary_of,
    write_bytes,
    write_json,
)

HOLD = """
import sys, time
from pathlib import Path
from interp.files import only_process
with only_process(Path(sys.argv[1]), "training in"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_write_bytes_replaces_the_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "run.json"
    write_bytes(path, b"old and longer")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["run.json"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("call", [(os, "fsync"), (Path, "replace")], ids=["fsync", "replace"])
def test_a_write_that_fails_midway_leaves_the_old_file_alone(tmp_path, monkeypatch, call, error):
    def fail(*_):
        raise error

    path = tmp_path / "run.json"
    path.write_bytes(b"old")
    monkeypatch.setattr(*call, fail)
    with pytest.raises(type(error)):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["run.json"]


def test_the_bytes_are_on_disk_before_the_name_changes(tmp_path, monkeypatch):
    path, seen = tmp_path / "run.json", []
    path.write_bytes(b"old")

    def look(fd):
        seen.append((os.fstat(fd).st_size, path.read_bytes()))

    monkeypatch.setattr(os, "fsync", look)
    write_bytes(path, b"newer")
    assert seen == [(5, b"old")]


def test_json_is_indented_keeps_its_letters_and_ends_with_a_newline(tmp_path):
    write_json(tmp_path / "a.json", {"name": "Zoë", "steps": [1]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text == '{\n  "name": "Zoë",\n  "steps": [\n    1\n  ]\n}\n'


def test_check_writable_makes_the_folder_and_leaves_it_empty(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert os.listdir(tmp_path / "a" / "b") == []


def test_check_writable_names_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / "file" / "results"
    with pytest.raises(ValueError, match=f"can't write to {folder} .Not a directory.; choose"):
        check_writable(folder)


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(ValueError, match=f"another process is training in {tmp_path}; wait"),
            only_process(tmp_path, "training in"),
        ):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with only_process(tmp_path, "training in"):
        assert holder.returncode == -9


def test_a_folder_is_let_go_after_an_error_inside(tmp_path):
    with pytest.raises(KeyError), only_process(tmp_path / "new", "training in"):
        raise KeyError
    with only_process(tmp_path / "new", "training in"):
        assert (tmp_path / "new").is_dir()


def test_only_what_interp_left_is_removed_from_a_folder(tmp_path):
    mine, theirs = tmp_path / ".notes.tmp", tmp_path / f".step-000100.{machine()}.999999999.tmp"
    mine.write_text("mine"), theirs.mkdir()
    with only_process(tmp_path, "testing in"):
        assert mine.exists() and not theirs.exists()


def test_a_temporary_file_is_of_one_process_on_one_machine(tmp_path, monkeypatch):
    here = temporary_of(tmp_path / "run.json").name
    assert here == f".run.json.{machine()}.{os.getpid()}.tmp"
    monkeypatch.setattr(socket, "gethostname", lambda: "node7.cluster")
    assert temporary_of(tmp_path / "run.json").name == f".run.json.node7-cluster.{os.getpid()}.tmp"


@pytest.mark.parametrize("remove", ["write", "lock"])
def test_another_machines_temporary_files_are_left_until_they_are_a_week_old(tmp_path, remove):
    """This machine knows no processes of others: a number that runs nowhere here says nothing."""
    week = 7 * 24 * 3600
    made = {}
    for where, age in (("node7", week - 60), ("node8", week + 60), (machine(), 0)):
        path = tmp_path / f".page.html.{where}.999999999.tmp"
        path.write_text("half")
        os.utime(path, (time.time() - age,) * 2)
        made[where] = path
    if remove == "write":
        write_bytes(tmp_path / "page.html", b"whole")
    else:
        with only_process(tmp_path, "testing in"):
            pass
    assert made["node7"].exists() and not made["node8"].exists() and not made[machine()].exists()


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.FileLock, "acquire", refuse)
    with (
        pytest.warns(UserWarning, match=f"the file system of {tmp_path} has no locks; see that no"),
        only_process(tmp_path, "testing in"),
    ):
        pass
