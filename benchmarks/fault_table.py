"""Bad input on command lines: what it is, the command, what its one line must say.

A row's command runs in a folder with copies of those of these that it names: ``run`` (4
checkpoints), ``done`` (the same, patched), ``other`` (another seed, patched), ``wide`` (another
shape), ``prompts.csv`` and ``curves.csv``. Rows on damaged folders are in
``benchmarks.fault_folders`` and ``fault_files``, calls from Python in ``fault_calls``.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One bad input."""

    what: str
    """In a sentence."""
    where: str
    """A command line, or a Python expression over ``interp``, ``suite``, ``facts``, ``model``,
    ``result``, ``tree`` and the words of ``benchmarks.fault_damage``."""
    message: str = ""
    """A regular expression that the error must match; empty where there must be none."""
    right: str | None = None
    """Where the right result will do as well: of a command, what is done to the reference's folder
    before the same command runs there (nothing, if empty); of an expression, its value's repr."""
    before: str = ""
    """What is done to the folder, in the words of ``benchmarks.fault_damage``."""


def says(*parts: str) -> str:
    """A pattern for a message with all of the parts, in any order; - in a part is any separator."""
    escaped = (re.escape(part).replace(r"\-", "[-_ ]?") for part in parts)
    return "".join(f"(?=.*{part})" for part in escaped)


SMALL = {
    **{"n-people": 20, "n-held-out": 10, "n-layers": 1, "d-model": 16, "d-mlp": 32, "n-steps": 4},
    **{"dense-every": 2, "dense-until": 4, "checkpoint-every": 2, "precision": "fp32"},
}
RUN, PATCH = "interp-patch --ckpt run", "interp-patch --ckpt run --sites z --facts 6 --steps 30"
LOCALIZE = "interp-analyse localization --ckpt run --facts 12 --people 20 --workers 1 --steps 30"
EMERGE = "interp-analyse emergence --curves curves.csv"
STUDY = "interp-analyse phases --preset smoke --workers 1"


def train(flags: str = "", out: str = "new", preset: str = "--preset tiny") -> str:
    """A short training with some flags of its own."""
    given = re.findall(r"--([\w-]+)", flags)
    rest = " ".join(f"--{name} {value}" for name, value in SMALL.items() if name not in given)
    return f"interp-train {preset} --out {out} {rest} {flags}"


def bad_numbers(command, flags: dict[str, str], *, also: str = "") -> list[Row]:
    """A row a flag and value; ``command`` makes a command line of a text of flags."""
    return [
        Row(f"--{flag} {value!r}", command(f"--{flag} {value} {also}"), says(flag))
        for flag, values in flags.items()
        for value in values.split()
    ]


_COUNT, _HUGE = "-1 0 nan 1.5 x", "1000000000000"
NUMBERS = [
    *bad_numbers(
        train,
        {
            **dict.fromkeys(("n-heads", "d-mlp", "n-held-out", "n-train-templates"), "-1 0 nan"),
            **dict.fromkeys(("checkpoint-every", "dense-every", "n-evaluated"), "-3 0 1e3"),
            "init-std": "-1 0 nan inf 1e308",
            "learning-rate": "-1 0 nan inf 1e308 x",
            "final-learning-rate": "-1 nan inf 1e308",
            **dict.fromkeys(("beta1", "beta2"), "1 -0.1 nan inf"),
            "weight-decay": "-1 nan inf 1e308",
            "clip-norm": "-1 0 nan x",
            "power-law": "nan inf 1e308 x",
            "seed": "-1 1.5 99999999999999999999999 nan",
            "n-birth-years": f"0 -1 {_HUGE}",
            "n-cities": "0 -5 99999999",
            "n-first-names": "0 -5 99999999",
            "n-steps": f"{_COUNT} 100000000000 {_HUGE}",
            "n-layers": f"{_COUNT} 100000 {_HUGE}",
            "d-model": f"{_COUNT} 4000000 15 {_HUGE}",
            "d-mlp": f"-1 0 nan {_HUGE}",
            "batch-size": f"{_COUNT} 100000000 {_HUGE}",
            "n-people": f"{_COUNT} {_HUGE}",
        },
    ),
    *bad_numbers(train, {"celebrity-weight": "-1 0 nan inf 1e308 x"}, also="--celebrities 2"),
    *bad_numbers(train, {"celebrities": "-1 21 nan 1.5"}, also="--celebrity-weight 3"),
    *bad_numbers(train, {"warmup-people": "-1 21 x"}, also="--warmup-steps 2"),
    *bad_numbers(
        lambda flags: f"{RUN} --sites z --steps 30 {flags}",
        {
            "facts": f"-1 0 nan 2.5 {_HUGE}",
            "seed": "-1 nan 99999999999999999999999.5",
            "workers": "-1 0 x",
            "max-memory": "-1 0 nan x",
        },
    ),
    *bad_numbers(
        lambda flags: f"{PATCH} {flags}",
        {
            "window": f"-1 0 1.5 nan {'9' * 30}",
            "noise-std": "-1 0 nan inf x",
            "noise-draws": "-1 0 1.5 nan",
            "layers": "-1 2 99 x 1.5",
        },
    ),
    *bad_numbers(lambda flags: f"{RUN} --sites mlp_post {flags}", {"n-neurons": "-1 0 7 nan 65"}),
    *bad_numbers(
        lambda flags: f"interp-analyse localization --ckpt run --steps 30 {flags}",
        {
            "facts": "-1 0 1 nan 2.5",
            "people": "-1 0 1 x",
            "workers": "-1 0 x",
            "max-memory": "-1 0 nan",
            "seed": "-1 x 1.5",
        },
    ),
    *bad_numbers(
        lambda flags: f"{EMERGE} {flags}",
        {"confidence": "-1 0 1 2 nan inf x", "seed": "-1 x 0.5"},
    ),
    *bad_numbers(
        lambda flags: f"interp-analyse curriculum --preset smoke {flags}",
        {"people": "-1 0 5 nan", "steps": "-1 0 3 x"},
    ),
    *bad_numbers(lambda flags: f"interp-analyse scaling {flags}", {"workers": "-1 0 nan"}),
    Row("steps in full-width digits", train("--n-steps ４"), says("n-steps"), ""),
    Row("facts in Arabic digits", f"{RUN} --sites z --steps 30 --facts ٦", says("facts"), ""),
    Row("a step in superscript", f"{RUN} --sites z --facts 6 --steps ³", says("steps", "³")),
    Row("every 0th step", f"{RUN} --sites z --facts 6 --steps every:0", says("every:0")),
    Row("a step of 23 digits", f"{RUN} --steps 99999999999999999999999", says("9999999")),
    Row("a negative step", f"{RUN} --steps -10", says("steps")),
    Row("memory without end", f"{PATCH} --max-memory inf", says("max-memory"), ""),
    Row("a large, valid memory", f"{PATCH} --max-memory 1e9", says("max-memory"), ""),
]

UNKNOWN = [
    *(
        Row(f"an unknown {flag[2:]}: {value}", f"{command} {flag} {value}", says(value))
        for command, flag, value in (
            (PATCH.replace("--sites z", ""), "--sites", "zz"),
            (PATCH.replace("--sites z", ""), "--sites", "z-zz"),
            (PATCH.replace("--sites z", ""), "--sites", "L9.z-q"),
            (PATCH.replace("--sites z", ""), "--sites", "Z"),
            (PATCH, "--attributes", "shoe_size"),
            (PATCH, "--corruption", "swapp"),
            (PATCH, "--direction", "up"),
            (PATCH, "--by", "word"),
            (PATCH, "--groups", "nose"),
            (PATCH, "--groups", "name_first+nose"),
            (PATCH, "--frozen", "z"),
            (PATCH, "--device", "tpu"),
            (PATCH, "--precision", "fp8"),
            (PATCH, "--nonsense", "3"),
            (PATCH.replace("--steps 30", ""), "--steps", "many"),
            (PATCH.replace("--steps 30", ""), "--steps", "0,,10"),
            (PATCH.replace("--steps 30", ""), "--steps", "14"),
            (LOCALIZE, "--attributes", "shoe_size"),
            (LOCALIZE, "--device", "tpu"),
            (LOCALIZE, "--nonsense", "3"),
            (EMERGE, "--nonsense", "3"),
            (STUDY, "--device", "tpu"),
            ("interp-analyse phases --workers 1", "--preset", "huge"),
            (train(), "--checkpoint-dtype", "int8"),
            (train(), "--keep", "some"),
            (train(), "--precision", "fp8"),
            (train(), "--device", "tpu"),
            (train(), "--removed", "L9H0"),
            (train(), "--removed", "H0"),
            (train(), "--schedule", "500"),
            (train(), "--schedule", "5:"),
            (train(), "--schedule", "5:0,0"),
            (train(), "--schedule", "5:nan,1"),
            (train(), "--schedule", "5:inf,1"),
            (train(), "--schedule", "-5:1,1"),
            (train(), "--schedule", "x:1,1"),
            (train(), "--reference", "nowhere"),
            (train(), "--nonsense", "3"),
            ("interp-report --results done/results/patching --out r.html", "--nonsense", "3"),
        )
    ),
    Row("an unknown preset", train(preset="--preset huge"), says("huge", "tiny")),
    Row("an unknown preset, with =", train(preset="--preset=huge"), says("huge", "tiny")),
    Row("no preset", train(preset=""), says("preset", "tiny")),
    Row("an unknown analysis", "interp-analyse astrology", says("astrology", "localization")),
    Row("nothing given to interp-patch", "interp-patch", says("ckpt")),
    Row("nothing given to interp-train", "interp-train", says("out")),
    Row("nothing given to interp-report", "interp-report", says("results")),
    Row("no run to localize", "interp-analyse localization", says("ckpt")),
    Row("no curves to time", "interp-analyse emergence", says("curves")),
    Row("a flag without its value", "interp-patch --ckpt", says("ckpt")),
    Row("a word that belongs nowhere", f"{PATCH} please", says("please")),
    Row("an attribute twice", f"{LOCALIZE} --attributes major major", says("attributes")),
    Row("too many facts", f"{RUN} --steps 30 --sites z --facts 9999", says("9999", "fewer")),
]

EMPTY = [
    Row("an empty --out for training", train(out="''"), says("out")),
    Row("an empty --out, with =", train().replace("--out new", "--out="), says("out")),
    Row("an empty --ckpt for patching", "interp-patch --ckpt ''", says("ckpt")),
    Row("an empty --ckpt to localize", "interp-analyse localization --ckpt ''", says("ckpt")),
    Row("an empty --ckpt of a study", f"{STUDY} --ckpt ''", says("ckpt")),
    Row("--ckpt of a study without a value", f"{STUDY} --ckpt", says("ckpt")),
    Row("an empty list of steps", f"{RUN} --sites z --facts 6 --steps ''", says("steps")),
    Row("an empty site", f"{RUN} --facts 6 --steps 30 --sites ''", says("site")),
    Row("no attributes", f"{PATCH} --attributes", says("attributes")),
    Row("an empty attribute", f"{PATCH} --attributes ''", says("attribute")),
    Row("an empty group", f"{PATCH} --groups ''", says("group")),
    Row("an empty report", f"{PATCH} --report ''", says("report")),
    Row("an empty folder for results", f"{PATCH} --out ''", says("out")),
    Row("an empty --results", "interp-report --results '' --out r.html", says("results")),
    Row(
        "an empty --out of a page",
        "interp-report --results done/results/patching --out ''",
        says("out"),
    ),
    Row("empty --curves", "interp-analyse emergence --curves ''", says("curves")),
    Row("an empty --out of times", f"{EMERGE} --out ''", says("out")),
    Row("an empty --out of a study", f"{STUDY} --out ''", says("out")),
    Row("an empty analysis", "interp-analyse ''", says("analysis")),
    Row("an empty preset", train(preset="--preset ''"), says("preset", "tiny")),
    Row("an empty preset, with =", train(preset="--preset="), says("preset")),
    Row("an empty schedule stage", train("--schedule ''"), says("schedule")),
    Row("an empty reference with a step", train("--reference '' --reference-step 2"), says("ref")),
    Row("a blank --ckpt", "interp-patch --ckpt ' '", says("folder")),
]

UNFIT = [
    Row("celebrities without a weight", train("--celebrities 2"), says("celebrit", "weight")),
    Row("a weight without celebrities", train("--celebrity-weight 2"), says("celebrities")),
    Row("a warm-up without steps", train("--warmup-people 5"), says("warmup-steps")),
    Row("a warm-up without people", train("--warmup-steps 5"), says("warmup-people")),
    Row("a start step without a reference", train("--start-step 2"), says("reference")),
    Row("heads that don't fit", train("--n-heads 3"), says("n-heads", "d-model")),
    Row("heads of odd width", train("--n-heads 16"), says("n-heads", "d-model")),
    Row("more groups than people", train("--schedule 3:" + ",".join("1" * 21)), says("20")),
    Row("a reference of another shape", train("--reference wide"), says("wide")),
    Row("a reference of another seed", train("--seed 5 --reference run"), says("run")),
    Row(
        "a reference step that is not there",
        train("--reference run --reference-step 5"),
        says("5", "10"),
    ),
    Row("resuming nothing", "interp-train --out new --resume", says("new")),
    Row("resuming a file", "interp-train --out curves.csv --resume", says("curves.csv")),
    Row("training where a run is", train(out="run"), says("run", "resume")),
    Row("resuming with another width", train("--resume", out="run"), says("run")),
    Row("resuming with one other field", "interp-train --out run --resume --seed 3", says("seed")),
    Row("denoising by knockout", f"{RUN} --facts 6 --sites knockout", says("noising")),
    Row("both directions of a knockout", f"{RUN} --sites knockout --direction both", "noising"),
    Row("denoising by a mean", f"{PATCH} --corruption mean", says("mean", "noising")),
    Row("a frozen head", f"{PATCH} --frozen mlp_out", says("frozen")),
    Row("sources of heads", f"{PATCH} --sources cue", says("sources")),
    Row("a window of a path", f"{RUN} --facts 6 --sites z-q --window 2", says("window")),
    Row("layers of a path", f"{RUN} --facts 6 --sites z-q --layers 0", says("layer")),
    Row("a path against the layers", f"{RUN} --facts 6 --sites L1.z-L0.q", says("L1.z-L0.q")),
    Row("the mean of patterns", f"{RUN} --sites pattern --corruption mean --direction noising",
        says("pattern")),
    Row("a window of mlp_post that is too wide to be", f"{PATCH} --window 99999999", "window", ""),
    Row("a role by position", f"{PATCH} --by pos --groups name_first", says("name_first")),
    Row("a position that is not there", f"{PATCH} --by pos --groups 99", says("99")),
    Row("a plan and nothing else", f"{PATCH} --plan", "", ""),
    Row("CUDA where there is none", f"{PATCH} --device cuda", "cuda|gpu"),
    Row("training on CUDA where there is none", train("--device cuda"), "cuda|gpu"),
    Row("few resamples for a confidence of 0.999999999", f"{EMERGE} --confidence 0.999999999",
        says("confidence")),
    Row("a study of a file", f"{STUDY} --ckpt curves.csv", says("curves.csv")),
    Row("a study of one run twice", f"{STUDY} --ckpt run run", "twice|differ|same"),
    Row("a study of two shapes", f"{STUDY} --ckpt run wide", "differ|shape|d_model"),
    Row("times written over their curves", f"{EMERGE} --out curves.csv", says("curves.csv")),
    Row("a report over population.parquet", f"{PATCH} --report run/population.parquet",
        says("population.parquet")),
    Row("a report over run.json", f"{PATCH} --report run/run.json", says("run.json")),
]  # fmt: skip
