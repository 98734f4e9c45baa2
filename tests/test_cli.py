import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
import xarray as xr
from own_tokenizers import rows_of, write_rows
from processes import finish
from safetensors.torch import load_file, save_file

from analyses import interp_analyse
from analyses.registry import registered
from interp.cli import (
    interp_audit,
    interp_convert,
    interp_patch,
    interp_report,
    interp_train,
    shell,
)
from interp.files import machine, write_bytes

BIN = Path(sys.executable).parent
ENTRY_POINTS = ("interp-train", "interp-patch", "interp-report", "interp-audit", "interp-convert")
COMMANDS = {
    "interp-train": interp_train.main,
    "interp-patch": interp_patch.main,
    "interp-report": interp_report.main,
    "interp-audit": interp_audit.main,
    "interp-convert": interp_convert.main,
    "interp-analyse": interp_analyse.analyse,
}
QUICK = ["--n-steps", "20", "--n-people", "40", "--dense-until", "10", "--dense-every", "10"]


def run_typed(*arguments, limit=None):
    """A command in a process of its own: (exit code, what it printed, what it said on stderr)."""
    return finish(_as_typed, list(map(str, arguments)), limit=limit)


def _as_typed(arguments):
    sys.argv, shell.tune_process = arguments, lambda: None  # done, and can't be done twice
    COMMANDS[arguments[0]]()


def run(*arguments):
    """The same in this process, a second sooner; what is warned of is pytest's."""
    name, *words = map(str, arguments)
    code, out, err = 0, StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(out), redirect_stderr(err):
        patched.setattr(sys, "argv", [name, *words])
        patched.setattr(shell, "tune_process", lambda: None)  # done, and can't be done twice
        try:
            COMMANDS[name]()
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue()


def one_line(result, message):
    """The command ended as house rules say a user's error ends."""
    code, _, said = result
    lines = [line for line in said.splitlines() if ": error: " in line]
    assert code == 2, said
    assert len(lines) == 1 and "Traceback" not in said, said
    assert message in lines[0], said


@pytest.fixture
def copy(suite, tmp_path):
    return shutil.copytree(suite.path, tmp_path / "run")


@pytest.mark.parametrize("name", [*ENTRY_POINTS, *(f"interp-analyse {x}" for x in registered())])
def test_help_has_an_example_and_no_words_of_pythons(name):
    command, *words = name.split()
    script = [BIN / command]
    if not script[0].exists():  # installed before the command was added
        module = command.replace("-", "_")
        script = [sys.executable, "-c", f"from interp.cli.{module} import main; main()"]
    done = subprocess.run([*script, *words, "--help"], capture_output=True, text=True)
    code, said = done.returncode, done.stdout
    assert code == 0 and f"\n{name}" in said.split("options")[0]
    assert "--out" in said
    assert "{None" not in said and "default: None" not in " ".join(said.split())
    assert max(map(len, said.split("\n options\n")[1].splitlines())) <= 80


def test_a_run_is_trained_patched_and_reported(tmp_path):
    code, said, _ = run("interp-train", "--preset", "tiny", "--out", tmp_path / "run", *QUICK)
    assert code == 0 and "next: interp-patch --ckpt" in said
    command = json.loads((tmp_path / "run" / "run.json").read_text())["command"]
    assert command.startswith("interp-train --preset tiny --out ")

    results = tmp_path / "elsewhere"
    code, said, _ = run_typed(
        "interp-patch",
        "--ckpt",
        tmp_path / "run",
        "--facts",
        "12",
        "--sites",
        "z",
        "--out",
        results,
    )
    assert code == 0 and str(tmp_path / "run" / "patching.html") in said
    assert len(list(results.glob("*.nc"))) == 3

    code, *_ = run("interp-report", "--results", results, "--out", tmp_path / "again.html")
    pages = [(tmp_path / name).read_text() for name in ("run/patching.html", "again.html")]
    assert code == 0 and pages[0] == pages[1]
    assert "interp-patch --ckpt" in pages[0] and "Training curves" in pages[0]


def test_resuming_a_finished_run_from_its_record_changes_nothing(copy):
    before = (copy / "step-000030" / "model.safetensors").read_bytes()
    code, *_ = run("interp-train", "--out", copy, "--resume")
    assert code == 0 and (copy / "step-000030" / "model.safetensors").read_bytes() == before


def test_the_number_of_checkpoints_told_is_of_those_that_were_kept(tmp_path, monkeypatch, capsys):
    for keep, told in (("all", "holds 3 checkpoints; next"), ("last", "holds 1 checkpoint; next")):
        words = ["--preset", "tiny", "--out", str(tmp_path / keep), "--keep", keep, *QUICK]
        monkeypatch.setattr(sys, "argv", ["interp-train", *words])
        interp_train.main()
        assert told in capsys.readouterr().out


def test_a_copied_folder_gives_the_same_report_to_the_byte(copy, tmp_path, monkeypatch, capsys):
    def page(*words):
        monkeypatch.setattr(sys, "argv", [*map(str, words), str(tmp_path / "page.html")])
        COMMANDS[words[0]]()
        return (tmp_path / "page.html").read_bytes()

    patch = ("interp-patch", "--ckpt", copy, "--facts", "6", "--sites", "z", "mlp_out")
    page(*patch, "--direction", "noising", "--report")
    first = page(*patch, "--steps", "10,30", "--report")
    assert page("interp-report", "--results", copy / "results" / "patching", "--out") == first
    for name, sign in (("forwards", 1), ("backwards", -1)):
        again = shutil.copytree(copy, tmp_path / name / "run", copy_function=shutil.copyfile)
        for i, path in enumerate(sorted(again.rglob("*.*"))):
            os.utime(path, (10**9 + sign * i, 10**9 + sign * i))
        assert page("interp-report", "--results", again / "results" / "patching", "--out") == first
    assert capsys.readouterr().err == ""


def test_options_of_patching_reach_the_results(copy, tmp_path):
    code, *_ = run(
        "interp-patch", "--ckpt", copy / "step-000020", "--sites", "mlp_out", "z", "--facts", "4",
        "--attributes", "major", "company", "--direction", "noising", "--corruption", "held-out",
        "--precision", "bf16", "--seed", "5", "--out", tmp_path / "out",
        "--report", tmp_path / "r.html",
    )  # fmt: skip
    assert code == 0
    names = sorted(path.name.rsplit(".", 2)[0] for path in (tmp_path / "out").glob("*.nc"))
    assert names == ["step-000020.mlp_out", "step-000020.z"]
    page = (tmp_path / "r.html").read_text()
    assert "noising" in page and "held-out" in page


def test_paths_are_estimated_and_the_page_says_so(copy, tmp_path):
    out, page = tmp_path / "out", tmp_path / "r.html"
    arguments = [
        "interp-patch", "--ckpt", copy, "--steps", "30", "--facts", "12", "--out", out,
        "--report", page, "--sites", "L0H1.z-v", "mlp_out-logits",
    ]  # fmt: skip
    code, *_ = run(*arguments)
    assert code == 0 and "estimated (eap)" not in page.read_text()
    code, *_ = run(*arguments, "--method", "eap")
    assert code == 0 and "estimated (eap)" in page.read_text()
    for path in ("L0H1.z-v", "mlp_out-logits"):
        found = {}
        for file in out.glob(f"*{path}*.nc"):
            with xr.open_dataset(file) as result:
                found[result.attrs["method"]] = result.load().patched
        assert sorted(found) == ["eap", "exact"]
        exact, estimate = found["exact"], found["eap"]
        assert exact.dims == estimate.dims and (exact.isnull() == estimate.isnull()).all()
        assert float(abs(exact - estimate).max()) > 1e-9


EXAMPLES = re.findall(r"^    (interp-patch .*)$", interp_patch._patch.__doc__, re.M)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_of_the_help_can_be_planned(example, suite, tmp_path, monkeypatch, capsys):
    steps = f"--steps {suite.steps[-1]}" if "--steps" in example else ""
    words = re.sub(r"checkpoints/demo(/step-\d+)?", str(suite.path), example)
    words = re.sub(r"--steps \d+", steps, words).replace("every:4", "all")
    words += "" if "--plan" in words else " --plan"
    own = [write_rows(tmp_path / "mine.csv", rows_of(suite, 12))] if "mine.csv" in words else []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [*shlex.split(words), "--facts", "12"])
    interp_patch.main()
    said = capsys.readouterr().out
    assert " cells on 12 facts; " in said and " MB at most" in said
    assert list(tmp_path.iterdir()) == own, "a plan writes nothing"


def test_both_directions_are_patched_and_stand_in_one_report(copy):
    arguments = ["--ckpt", copy, "--sites", "mlp_out", "--facts", "12", "--steps", "30"]
    code, *_ = run("interp-patch", *arguments, "--direction", "both")
    assert code == 0 and len(list((copy / "results" / "patching").glob("*.nc"))) == 2
    page = (copy / "patching.html").read_text()
    assert "Sufficient, or necessary" in page
    again = copy / "again.html"
    code, *_ = run("interp-report", "--results", copy / "results" / "patching", "--out", again)
    assert code == 0 and again.read_text() == page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["interp-patch", "--ckpt", "nowhere"], "no folder nowhere; give a run folder"),
        (["interp-patch", "--ckpt", "."], "no checkpoint in .; give a run folder"),
        (["interp-patch"], "Missing from interp-patch: ckpt"),
        (
            ["interp-patch", "--ckpt", "RUN", "--sites", "zz"],
            "no site 'zz'; there are embed, resid_pre",
        ),
        (["interp-patch", "--ckpt", "RUN", "--sites", "z-zz"], "no stop 'zz' in path 'z-zz'"),
        (["interp-patch", "--ckpt", "RUN", "--sites", "L9.z-q"], "outside the model's 3 layers"),
        (
            ["interp-patch", "--ckpt", "RUN", "--sites", "z-q", "--method", "atp"],
            "atp estimates no paths; use eap, relp or eap-ig for 'z-q'",
        ),
        (
            ["interp-patch", "--ckpt", "RUN", "--sites", "z", "--method", "eap"],
            "eap estimates paths of two stops; use atp for the site 'z'",
        ),
        (
            ["interp-patch", "--ckpt", "RUN", "--sites", "embed-v-logits", "--method", "relp"],
            "relp estimates paths of two stops; use method exact for 'embed-v-logits'",
        ),
        (
            ["interp-patch", "--ckpt", "RUN", "--groups", "name_first+nose"],
            "no role 'nose' in group 'name_first+nose'; there are bos",
        ),
        (
            ["interp-patch", "--ckpt", "RUN", "--sites", "knockout", "--direction", "both"],
            "a knockout changes the clean run; use direction noising",
        ),
        (["interp-patch", "--ckpt", "RUN", "--steps", "14"], "nearest are 10 and 20"),
        (["interp-patch", "--ckpt", "RUN", "--steps", "many"], "steps 'many' can't be read"),
        (["interp-patch", "--ckpt", "RUN", "--attributes", "pet"], "no attribute 'pet'; there are"),
        (["interp-patch", "--ckpt", "RUN", "--attributes"], "attributes is empty; name some of"),
        (["interp-patch", "--ckpt", "RUN", "--seed", "-1"], "seed is -1"),
        (["interp-patch", "--ckpt", "RUN", "--report", "/dev/null"], "/dev/null is not a file"),
        (["interp-patch", "--ckpt", "RUN", "--facts", "0"], "asked for 0 facts"),
        (["interp-patch", "--ckpt", "RUN", "--facts", "1e2"], "--facts is '1e2'; give a whole num"),
        (["interp-patch", "--ckpt", "RUN", "--fcats", "9"], "--fcats, 9; did you mean --facts?"),
        (["interp-patch", "--ckpt", "RUN", "--layers", "0,1"], "--layers is ['0,1']; give its val"),
        (
            ["interp-patch", "--ckpt", "RUN", "--facts", "9999"],
            "asked for 9999 facts, the run has 240",
        ),
        (["interp-patch", "--ckpt", "RUN", "--direction", "up"], "invalid choice 'up'"),
        (["interp-patch", "--ckpt", "RUN", "--frozen", "z"], "give one of mlp_out, attn_out"),
        (["interp-patch", "--ckpt", "RUN", "--facts"], "--facts has no value; give a whole number"),
        (["interp-patch", "--ckp", "RUN"], "give --ckpt instead of --ckp run, which is unknown"),
        (["interp-train", "--preset"], "--preset has no value; give some text"),
        (["interp-train", "--preset=tiny", "--out=x", "--n_steps=0"], "n_steps is 0"),
        (["interp-train", "--preset", "tiny", "--out", "x", "--n-step", "9"], "mean --n-steps?"),
        (["interp-train", "--preset", "tiny", "--out", "x", "--clip-norm", "a"], "is ['a']; give"),
        (["interp-patch", "--ckpt", "RUN", "--bogus"], "--bogus"),
        (["interp-patch", "--ckpt", "RUN", "--out", "FILE/x"], "can't write to FILE/x"),
        (["interp-patch", "--ckpt", "RUN", "--report", "FILE/r.html"], "can't write to FILE"),
        (["interp-patch", "--ckpt", "RUN", "--device", "cuda"], "no CUDA device"),
        (
            ["interp-train", "--preset", "huge", "--out", "x"],
            "no preset 'huge'; there are tiny, demo",
        ),
        (["interp-train", "--preset", "tiny"], "Missing from interp-train: out"),
        (["interp-train", "--out", "x"], "no preset was given; choose one"),
        (["interp-train", "--preset", "tiny", "--out", "RUN"], "holds a run already; add --resume"),
        (["interp-train", "--out", "x", "--resume"], "no run.json in x"),
        (["interp-train", "--preset", "tiny", "--out", "FILE/x"], "can't write to FILE/x"),
        (
            ["interp-train", "--preset", "tiny", "--out", "x", "--n-people", "500"],
            "532 people need",
        ),
        (
            ["interp-train", "--preset", "tiny", "--out", "x", "--n-majors", "101"],
            "n_majors is 101",
        ),
        (["interp-train", "--preset", "tiny", "--out", "x", "--d-model", "30"], "d_model 30 and"),
        (["interp-train", "--preset", "tiny", "--out", "x", "--n-steps", "0"], "n_steps is 0"),
        (["interp-report", "--results", "nowhere", "--out", "r.html"], "no results in nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_gets_one_line_and_leaves_nothing(
    copy, tmp_path, arguments, message, monkeypatch, capsys
):
    (tmp_path / "FILE").write_text("a file, not a folder")
    name, *rest = [argument.replace("RUN", "run") for argument in arguments]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *rest])
    with pytest.raises(SystemExit) as end:
        COMMANDS[name]()
    one_line((end.value.code, "", capsys.readouterr().err), message)
    assert not list(copy.rglob("*.nc")) and not list(tmp_path.glob("x/step-*"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda step: (step / "model.safetensors").write_bytes(b"\0" * 50), "is damaged"),
        (lambda step: (step / "model.safetensors").unlink(), "no model.safetensors in"),
        (lambda step: (step / "config.json").unlink(), "no config.json in"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_finished_results_are_kept(copy, damage, message):
    damage(copy / "step-000020")
    result = run("interp-patch", "--ckpt", copy, "--sites", "z", "--facts", "6")
    one_line(result, message)
    assert "step-000020" in result[2]


def test_a_full_disk_while_training_loses_nothing_and_is_resumed(suite, tmp_path):
    arguments = ["interp-train", "--preset", "tiny", "--out", tmp_path / "run", *QUICK]
    code, *_ = run(*arguments)
    size = (tmp_path / "run" / "step-000020" / "model.safetensors").stat().st_size
    state = (tmp_path / "run" / "resume" / "state.safetensors").stat().st_size
    whole = (tmp_path / "run" / "step-000020" / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "run")
    assert code == 0 and size < state
    one_line(run_typed(*arguments, limit=(size + state) // 2), "free some space and run")
    assert not list((tmp_path / "run").glob("**/.*.tmp"))
    code, *_ = run(*arguments, "--resume")
    assert code == 0
    assert (tmp_path / "run" / "step-000020" / "model.safetensors").read_bytes() == whole


def test_a_full_disk_while_patching_loses_nothing_and_is_resumed(copy):
    arguments = ["interp-patch", "--ckpt", copy, "--sites", "mlp_out", "--facts", "12"]
    one_line(run_typed(*arguments, limit=4000), "free some space and run")
    assert not list((copy / "results").glob("**/*.tmp"))
    code, *_ = run(*arguments)
    assert code == 0 and len(list((copy / "results" / "patching").glob("*.nc"))) == 4


def test_a_second_process_on_the_same_results_is_refused(copy):
    from interp.files import only_process

    with only_process(copy / "results" / "patching", "testing in"):
        one_line(
            run_typed("interp-patch", "--ckpt", copy, "--facts", "6"),
            "another process is writing results",
        )
    with only_process(copy, "testing in"):
        one_line(run("interp-train", "--out", copy, "--resume"), "another process is training in")


def test_what_a_configuration_refuses_is_said_without_its_class():
    result = run("interp-analyse", "localization", "--ckpt", "x", "--facts", "1")
    one_line(result, "interp-analyse: error: facts is 1; it must be at least 2")


def test_a_dry_run_checks_all_that_a_run_would_and_computes_nothing(copy):
    plan = ("interp-patch", "--ckpt", copy, "--sites", "z", "--facts", "12", "--plan")
    path = copy / "step-000020" / "model.safetensors"
    shutil.copy(copy / "step-000000" / "model.safetensors", path)
    code, said, notes = run_typed(*plan)
    assert code == 0 and "TFLOP at most" in said
    (note,) = [line for line in notes.splitlines() if line.startswith("interp-patch: note:")]
    assert note.endswith(
        "steps 0, 20 have identical weights; see that each is the checkpoint it says"
    )
    weights = load_file(path)
    weights["embed_out.weight"][3, 4] = torch.nan
    save_file(weights, path, {"format": "pt"})
    one_line(run_typed(*plan), "step-000020/model.safetensors: embed_out.weight holds NaN")
    (copy / "step-000030" / "config.json").write_text("{}")
    one_line(run_typed(*plan), "step-000030/config.json: model_type is None")
    assert not (copy / "results").exists() and not (copy / "patching.html").exists()


def test_results_of_another_run_are_not_joined_with_this_runs_curves(copy, tmp_path):
    results = copy / "results" / "patching"
    made = ("interp-patch", "--ckpt", copy, "--sites", "z", "--facts", "6", "--steps", "20,30")
    assert run(*made)[0] == 0
    report = ("interp-report", "--results", results, "--out", tmp_path / "page.html")
    code, _, said = run_typed(*report)
    assert code == 0 and said == ""
    assert "Training curves" in (tmp_path / "page.html").read_text()
    shutil.copy(copy / "step-000020/model.safetensors", copy / "step-000030/model.safetensors")
    code, _, said = run_typed(*report)
    assert (
        code == 0
        and "the results are of another run than the one in" in said
        and said.count("\n") == 1
    )
    assert "Training curves" not in (tmp_path / "page.html").read_text()


def test_a_report_never_replaces_a_file_that_is_no_page(copy):
    before = (copy / "run.json").read_bytes()
    patch = ("interp-patch", "--ckpt", copy, "--sites", "z", "--facts", "6")
    one_line(run(*patch, "--report", copy / "run.json"), "run.json is no HTML file; name one, such")
    assert (copy / "run.json").read_bytes() == before


def test_a_reader_that_has_seen_enough_ends_a_command_quietly(copy):
    command = f"{BIN / 'interp-patch'} --help | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stdout.startswith("usage: interp-patch") and done.stderr == ""


def test_what_a_killed_process_left_of_a_page_is_removed_when_it_is_written_again(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    mine, theirs = (
        tmp_path / f".page.html.{machine()}.{pid}.tmp" for pid in (ended.pid, os.getppid())
    )
    mine.write_text("half"), theirs.write_text("half")
    write_bytes(tmp_path / "page.html", b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [theirs.name, "page.html"]
