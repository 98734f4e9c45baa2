"""A fixed sample of the fault campaign; ``python -m benchmarks.faults`` is the whole of it.

Each test starts a process of its own, since cases are forked, and pytest's own has threads.
"""

import json
import os
import subprocess
import sys

PLANTED = """
import json, sys, time
from pathlib import Path
from benchmarks.fault_runner import judge, run

def silent(): print("done")
def traceback(): [][1]
def hang(): time.sleep(60)
def clean(): print("interp-x: error: no step 5", file=sys.stderr); sys.exit(2)
def two_lines(): print("interp-x: error: a\\ninterp-x: error: b", file=sys.stderr); sys.exit(2)
def quiet(): sys.exit(2)

kinds = {}
for call in (silent, traceback, hang, clean, two_lines, quiet):
    ended = run(call, Path(sys.argv[1]), seconds=3 if call is hang else 30)
    kinds[call.__name__] = judge(ended, "no step 5", None)[0]
    kinds[call.__name__ + " unexpected"] = judge(ended, "no step 6", False)[0]
ended = run(silent, Path(sys.argv[1]))
print(json.dumps(kinds | {"right": judge(ended, "", True)[0]}))
"""
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def test_a_sample_of_faults_ends_in_clean_errors_or_right_values():
    done = _python("-m", "benchmarks.faults", "--parts", "A", "B", "C", "--sample", "12",
                   "--kills", "1")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_planted_faults_are_classified_as_what_they_are(tmp_path):
    done = _python("-c", PLANTED, str(tmp_path))
    kinds = json.loads(done.stdout)
    assert kinds == {
        "silent": "silent",
        "silent unexpected": "silent",
        "traceback": "traceback",
        "traceback unexpected": "traceback",
        "hang": "hang",
        "hang unexpected": "hang",
        "clean": "clean error",
        "clean unexpected": "other message",
        "two_lines": "traceback",
        "two_lines unexpected": "traceback",
        "quiet": "traceback",
        "quiet unexpected": "traceback",
        "right": "right value",
    }


def _python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=ENVIRONMENT
    )
