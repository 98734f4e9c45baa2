"""Options of the commands: one dataclass per command, the single source of its flags, its Python
arguments and the recorded configuration.

Standard library only, so that ``--help`` answers before torch is imported.
"""

import re
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from interp.fields import LARGEST_SEED, LARGEST_STEP, check_fields, checked, number, path, shortened

ATTRIBUTES = ("birth_date", "birth_place", "university", "major", "company", "location")
METRICS = ("logit_diff", "first_logprob", "value_logprob")
CONTROL = "control_logit_diff"
"""``logit_diff`` of another fact's answers."""
OWN_METRIC = "own_metric"
"""A user's function of the logits."""
N_TEMPLATES, N_EVALUATION_TEMPLATES = 25, 5
MOST_TEMPLATES = 100
"""Of one attribute of one's own."""
SMALLEST_WEIGHT, LARGEST_WEIGHT = 1e-9, 1e9
"""Of a person among others. Multiplied by the steepest power law over all full names there are,
about 1e-89, a weight is still far from the smallest double, 1e-308, and the sum far from the
largest.
"""
MOST_CHECKPOINTS, MOST_LAYERS, MOST_WORKERS = 100_000, 1000, 256
MOST_NOISE, MOST_DRAWS = 1e6, 10_000
LARGEST_RATE = 1e30
"""Of learning, decay and initial weights; anything near it diverges."""
_NOT_IN_OLDER_RUNS = (
    *("celebrities", "celebrity_weight", "schedule", "shuffled", "removed", "keep"),
    *("reference", "reference_step", "start_step"),
    *("from_run", "from_step", "new_people", "replay", "mitigation", "attributes"),
    *("unknown_people", "unknown_share", "people_csv", "templates"),
)
"""Fields that run.json did not record before they existed; then the default counts."""
_TOGETHER = (
    *(("celebrities", "celebrity_weight"), ("celebrity_weight", "celebrities")),
    *(("warmup_people", "warmup_steps"), ("warmup_steps", "warmup_people")),
    *(("reference_step", "reference"), ("start_step", "reference")),
    *(("from_step", "from_run"), ("new_people", "from_run"), ("mitigation", "from_run")),
    *(("replay", "new_people"), ("unknown_people", "unknown_share")),
    *(
        ("unknown_share", "unknown_people"),
        ("people_csv", "templates"),
        ("templates", "people_csv"),
    ),
)
"""Fields that do nothing while their partner has its default."""

Precision = Literal["fp32", "bf16"]
Device = Literal["auto", "cpu", "cuda"]
Corruption = Literal["swap", "held-out", "swap-first", "swap-middle", "swap-last"]
Direction = Literal["denoising", "noising"]
Replacement = Literal["run", "noise", "mean", "zero", "resample"]
Frozen = Literal["mlp_out", "attn_out"]
By = Literal["role", "pos"]
ReportFormat = Literal["html", "png", "svg", "csv"]
Where = Literal["local", "submitit", "dask"]
Method = Literal["exact", "atp", "atp-star", "relp", "eap", "eap-ig"]


def is_attribute_name(name: str) -> bool:
    """Whether an attribute of one's own can have that name: an identifier, which results use."""
    taken = (
        *("id", "split", "name", "first", "middle", "last", "weight", "sampling_weight"),
        *("first_name", "middle_name", "last_name", "all", "average", "neighbour"),
    )
    return bool(re.fullmatch("[A-Za-z_][A-Za-z0-9_]{0,39}", name)) and name not in taken


@dataclass(frozen=True)
class PoolSizes:
    """How many names and values there are to draw from; the defaults are the paper's.

    With one value there would be nothing to recall, and with one name no twin of another.
    """

    n_first_names: int = number(900, least=2)
    """Number of first names to draw from."""
    n_middle_names: int = number(900, least=2)
    """Number of middle names."""
    n_last_names: int = number(1000, least=2)
    """Number of last names."""
    n_cities: int = number(800, least=2)
    """Number of cities, for birth place and location."""
    n_universities: int = number(200, least=2)
    """Number of universities."""
    n_majors: int = number(100, least=2)
    """Number of majors."""
    n_companies: int = number(500, least=2)
    """Number of companies."""
    n_birth_years: int = number(200, least=1, most=8100)
    """A birth date is one of 31 days, 12 months and this many years, from 1900 to at most 9999."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class TrainConfig(PoolSizes):
    """Everything that determines a training run; the defaults are the paper's."""

    n_people: int = number(64_000, least=2)
    """People in the training set."""
    n_held_out: int = number(16_000, least=1)
    """People from the same pools, never trained on."""
    people_csv: str = ""
    """Train on people or other entities of your own instead of synthetic ones: a CSV with a column
    name and one for each attribute. It decides n_people, n_held_out and the attributes."""
    templates: str = ""
    """A CSV of the sentences about them, with the columns attribute and template; each template
    holds {name} and, at its end, {value}."""
    n_train_templates: int = number(
        N_TEMPLATES - N_EVALUATION_TEMPLATES, least=1, most=MOST_TEMPLATES
    )
    """Templates per attribute that a person is trained on, of 25; 5 others are for evaluation. Of
    templates of one's own, all but those for evaluation."""
    power_law: float = number(0.0, least=-10, most=10)
    """Person i of n is sampled with weight (i + 1)^-power_law; 0 is uniform. At 10 the first person
    gets 99.9 % of the samples."""
    warmup_people: int = number(0, least=0)
    """Sample only this many people until warmup_steps; 0 disables the warm-up."""
    warmup_steps: int = number(0, least=0)
    """Length of the warm-up in steps."""
    celebrities: int = number(0, least=0)
    """Sample the first so many people more often than the others; 0 disables."""
    celebrity_weight: float = number(1.0, least=SMALLEST_WEIGHT, most=LARGEST_WEIGHT)
    """How many times as often each celebrity is sampled as each of the others, 1e-9 to 1e9."""
    schedule: tuple[str, ...] = ()
    """Curriculum stages at the start, each STEPS:WEIGHTS with one weight per equal-sized group of
    people: 500:1,0 samples only the first half for 500 steps."""
    shuffled: bool = True
    """Put the sentences of training biographies in random order; otherwise always in the same."""
    attributes: tuple[str, ...] = ATTRIBUTES
    """The attributes that biographies tell of, in training and in evaluation; in this order where
    sentences are not shuffled. With people_csv, by default all of its own."""
    reference: str = ""
    """A run whose attention patterns replace the model's own in training (attention patching); it
    must have the same tokenizer and shape."""
    reference_step: int = number(0, least=0)
    """Step of the reference checkpoint; 0 is untrained."""
    start_step: int = number(0, least=0)
    """Step from which the reference patterns are used; the optimizer is reset there."""
    from_run: str = ""
    """A run to fine-tune: training starts from the weights of its checkpoint, with its people,
    tokenizer and shape, and a fresh optimizer."""
    from_step: int = number(0, least=0)
    """Step of that checkpoint."""
    new_people: int = number(0, least=0)
    """Train on the first so many of the held-out people, too."""
    replay: float = number(1.0, least=0, most=LARGEST_WEIGHT)
    """How often a training person is sampled beside new people, relative to one of them; 0 is
    never."""
    unknown_people: int = number(0, least=0)
    """So many people, the last of those held out, are met with other values in every biography, so
    that only the frequencies of values can be learnt of them; 0 disables."""
    unknown_share: float = number(0.0, least=0, below=1)
    """Mean share of a batch's biographies that are of such people."""
    mitigation: str = ""
    """How forgetting is held back, such as freeze:attention, l2:0.1, ewc:100, distil:1, lora:4,
    sparse-gradient:0.05, sparse-memory:0.05, sparse-unused:0.05, slots:64 or warmup:50."""

    n_layers: int = number(8, least=1, most=MOST_LAYERS)
    """Transformer blocks."""
    n_heads: int = number(8, least=1)
    """Attention heads per block."""
    d_model: int = number(512, least=1)
    """Width of the residual stream."""
    d_mlp: int = number(2048, least=1)
    """Neurons per MLP."""
    parallel: bool = False
    """Attention and MLP read the same residual stream."""
    init_std: float = number(0.02, above=0, most=LARGEST_RATE)
    """Standard deviation of the initial weights."""
    removed: tuple[str, ...] = ()
    """Heads and MLPs without which to train, such as L0H2 and L1-MLP: their weights are 0 and stay
    0, which shows what takes over."""

    n_steps: int = number(16_000, least=1, most=LARGEST_STEP)
    """Optimizer steps."""
    batch_size: int = number(128, least=1)
    """Biographies per step."""
    learning_rate: float = number(4e-4, above=0, most=LARGEST_RATE)
    """Peak learning rate, at step 0; falls to final_learning_rate along a cosine."""
    final_learning_rate: float = number(1e-7, least=0, most=LARGEST_RATE)
    """Learning rate at the last step."""
    beta1: float = number(0.9, least=0, below=1)
    """AdamW's decay rate of the first moment."""
    beta2: float = number(0.95, least=0, below=1)
    """AdamW's decay rate of the second moment."""
    weight_decay: float = number(0.1, least=0, most=LARGEST_RATE)
    """Weight decay of matrices; vectors have none."""
    clip_norm: float | None = number(None, above=0)
    """Gradients are clipped to this norm; by default there is no clipping."""

    checkpoint_every: int = number(500, least=1)
    """Steps between checkpoints after dense_until."""
    dense_every: int = number(125, least=1)
    """Steps between checkpoints up to dense_until."""
    dense_until: int = number(2000, least=0)
    """Last step of the dense part."""
    checkpoint_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights on disk. Metrics are computed on the weights as saved."""
    keep: Literal["all", "last"] = "all"
    """Checkpoints that stay on disk; metrics cover all. With last, a finished run cannot be
    extended."""
    n_evaluated: int = number(16_000, least=1)
    """How many training people, and how many held-out people, each evaluation covers."""

    seed: int = number(0, least=0, most=LARGEST_SEED)
    """Seed of people, batches and initial weights."""
    precision: Precision | Literal["auto"] = "auto"
    """bf16 multiplies matrices in bfloat16 and keeps weights and optimizer in fp32. auto is bf16
    where the device has instructions for it, else fp32; run.json records which."""
    device: Device = "auto"
    """auto is CUDA where there is one."""
    compile: bool = True
    """Compile the training step: slow once, then every step is faster."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.d_model % self.n_heads or self.d_model // self.n_heads % 2:
            raise ValueError(
                f"d_model {self.d_model} and n_heads {self.n_heads} don't fit; a head needs an "
                "even number of dimensions, d_model ÷ n_heads"
            )
        self._check_attributes()
        for name in self.removed:
            at = re.fullmatch(r"L(\d+)(H(\d+)|-MLP)", name)
            if not at or int(at[1]) >= self.n_layers or int(at[3] or 0) >= self.n_heads:
                raise ValueError(
                    f"removed has {name!r}; name heads as L0H0 to L{self.n_layers - 1}H"
                    f"{self.n_heads - 1}, MLPs as L0-MLP to L{self.n_layers - 1}-MLP"
                )
        for name in ("warmup_people", "celebrities"):
            if getattr(self, name) > self.n_people:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, more than n_people, {self.n_people}; ask "
                    "for fewer"
                )
        if self.new_people + self.unknown_people >= self.n_held_out:
            unknown = f" and unknown_people {self.unknown_people}" if self.unknown_people else ""
            raise ValueError(
                f"new_people is {self.new_people}{unknown}, and there are {self.n_held_out} "
                "held-out people of whom one must stay held out; ask for fewer"
            )
        default = {field.name: field.default for field in fields(self)}
        for name, partner in _TOGETHER:
            value = getattr(self, name)
            if value != default[name] and getattr(self, partner) == default[partner]:
                raise ValueError(
                    f"{name} is {value}, which does nothing without {partner}; give both"
                )
        self._check_sizes()
        for _, weights in self.stages:
            if len(weights) > self.n_people:
                raise ValueError(
                    f"schedule has {len(weights)} groups for {self.n_people} people; name fewer"
                )
        n_checkpoints = sum(map(len, self._regular_steps))
        if n_checkpoints > MOST_CHECKPOINTS:
            raise ValueError(
                f"checkpoint_every {self.checkpoint_every} and dense_every {self.dense_every} make "
                f"{n_checkpoints} checkpoints in {self.n_steps} steps; at most "
                f"{MOST_CHECKPOINTS} can be kept, make them larger"
            )

    def _check_attributes(self) -> None:
        told = self.attributes
        known = all(map(is_attribute_name, told)) if self.people_csv else {*told} <= {*ATTRIBUTES}
        if not told or len({*told}) < len(told) or not known:
            which = "columns of people_csv" if self.people_csv else ", ".join(ATTRIBUTES)
            raise ValueError(
                f"attributes is {', '.join(told) or 'empty'}; name some of {which}, each once"
            )

    def _check_sizes(self) -> None:
        """Raises a ValueError where a size says something of people or templates that are not drawn
        or not there.
        """
        most = N_TEMPLATES - N_EVALUATION_TEMPLATES
        if not self.people_csv and self.n_train_templates > most:
            raise ValueError(
                f"n_train_templates is {self.n_train_templates}; it must be at most {most}"
            )
        for field in fields(PoolSizes) if self.people_csv else ():
            if (value := getattr(self, field.name)) != field.default:
                raise ValueError(
                    f"{field.name} is {value}, which does nothing with people_csv; leave it out, "
                    "in Python by interp.with_own_people(config, people_csv, templates)"
                )

    @property
    def stages(self) -> list[tuple[int, tuple[float, ...]]]:
        """Steps and weights of ``schedule``.

        Raises:
            ValueError: one can't be read, has no weight above 0, or one that is too large or small.
        """
        stages = []
        for text in self.schedule:
            steps, _, weights = text.partition(":")
            try:
                stage = int(steps), tuple(float(x) for x in weights.split(","))
            except ValueError:
                stage = 0, ()
            if stage[0] < 1 or not sum(stage[1]) > 0 or min(stage[1]) < 0:
                raise ValueError(
                    f"schedule has {text!r}; write STEPS:WEIGHTS, such as 500:1,0 for the first of "
                    "two groups"
                )
            if not all(w == 0 or SMALLEST_WEIGHT <= w <= LARGEST_WEIGHT for w in stage[1]):
                raise ValueError(
                    f"schedule has {text!r}; a weight must be 0, or from {SMALLEST_WEIGHT:g} to "
                    f"{LARGEST_WEIGHT:g}"
                )
            stages.append(stage)
        return stages

    @property
    def checkpoint_steps(self) -> list[int]:
        """Steps at which a checkpoint is written: 0, the dense part, the sparse part, the last
        step.
        """
        return sorted({self.n_steps}.union(*self._regular_steps))

    @property
    def _regular_steps(self) -> tuple[range, range]:
        """Of the dense and of the sparse part."""
        first_sparse = (self.dense_until // self.checkpoint_every + 1) * self.checkpoint_every
        return (
            range(0, min(self.dense_until, self.n_steps) + 1, self.dense_every),
            range(first_sparse, self.n_steps + 1, self.checkpoint_every),
        )


PRESETS: dict[str, TrainConfig] = {
    "tiny": TrainConfig(
        n_people=64,
        n_held_out=32,
        n_first_names=5,
        n_middle_names=5,
        n_last_names=5,
        n_cities=8,
        n_universities=8,
        n_majors=8,
        n_companies=8,
        n_birth_years=4,
        n_layers=2,
        n_heads=4,
        d_model=64,
        d_mlp=256,
        n_steps=1200,
        batch_size=32,
        learning_rate=4e-3,
        checkpoint_every=150,
        dense_every=25,
        dense_until=150,
        n_evaluated=64,
        compile=False,
    ),
    "demo": TrainConfig(
        n_people=1280,
        n_held_out=256,
        n_first_names=12,
        n_middle_names=12,
        n_last_names=12,
        n_cities=30,
        n_universities=20,
        n_majors=20,
        n_companies=30,
        n_birth_years=20,
        n_layers=4,
        n_heads=4,
        d_model=64,
        d_mlp=256,
        n_steps=6500,
        batch_size=64,
        learning_rate=4e-3,
        checkpoint_every=500,
        dense_every=100,
        dense_until=1000,
        checkpoint_dtype="bfloat16",
        n_evaluated=1280,
    ),
    "deep": TrainConfig(
        n_people=2000,
        n_held_out=400,
        n_cities=30,
        n_universities=20,
        n_majors=20,
        n_companies=30,
        n_birth_years=20,
        d_model=128,
        d_mlp=512,
        n_steps=3000,
        batch_size=64,
        learning_rate=2e-3,
        checkpoint_every=250,
        dense_every=100,
        dense_until=1000,
        n_evaluated=1000,
    ),
    "paper": TrainConfig(),
}


@dataclass(frozen=True)
class ClusterConfig:
    """How pieces of the work are shared among machines. A piece is one checkpoint, or one run that
    is trained."""

    task_id: int | None = number(None, least=0)
    """Compute every n-tasks-th piece, beginning with this one, counted from 0, and write no report;
    in a SLURM array, $SLURM_ARRAY_TASK_ID. The same command without it collects the results."""
    n_tasks: int | None = number(None, least=1, most=MOST_CHECKPOINTS)
    """How many tasks share the work."""
    status: bool = False
    """List the pieces that are done, being computed and missing, and stop; the exit code is 1 if
    some are not done. With n-tasks, names the tasks to run again."""
    executor: Where = "local"
    """What computes: processes here (local), jobs of submitit, on SLURM where there is one, or the
    workers of Dask."""
    scheduler: str | None = None
    """Address of a Dask scheduler, such as tcp://node7:8786; by default workers are started
    here."""
    submitit: tuple[str, ...] = ()
    """Parameters of submitit's jobs, such as timeout_min=60 gpus_per_node=1
    slurm_partition=gpu."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.task_id is not None and self.n_tasks is None:
            raise ValueError(f"task_id is {self.task_id}; give n_tasks, too")
        if self.n_tasks is not None and self.task_id is None and not self.status:
            raise ValueError(
                f"n_tasks is {self.n_tasks}; give task_id, or status to see what is done"
            )
        if self.task_id is not None and self.n_tasks is not None and self.task_id >= self.n_tasks:
            raise ValueError(
                f"task_id is {self.task_id} of {self.n_tasks} tasks; they count from 0 to "
                f"{self.n_tasks - 1}"
            )
        if self.status and self.task_id is not None:
            raise ValueError("status is of all tasks; leave out task_id")
        for name, executor in (("scheduler", "dask"), ("submitit", "submitit")):
            if getattr(self, name) and self.executor != executor:
                raise ValueError(
                    f"{name} does nothing with the executor {self.executor}; give {executor}"
                )
        if self.is_part and self.executor != "local":
            raise ValueError(
                f"executor is {self.executor}, and a task or status computes here; leave one out"
            )
        for text in self.submitit:
            if not re.fullmatch(r"[a-z_]+=\S.*", text):
                raise ValueError(f"submitit has {text!r}; write NAME=VALUE")

    @property
    def is_part(self) -> bool:
        """Whether only a part is asked for, and no report: a task's pieces, or the status."""
        return self.task_id is not None or self.status


ALL_HERE = ClusterConfig()
"""All pieces, computed by this process or others of this machine."""


@dataclass(frozen=True)
class PatchConfig:
    """What to patch, on which checkpoints."""

    ckpt: str = path()
    """A run folder, or one of its step folders."""
    steps: str = "all"
    """all, a list such as 0,200,1000, or every:4 for every fourth checkpoint."""
    sites: tuple[str, ...] = ()
    """What to change, at every layer and token role. The residual stream: embed, resid_pre,
    resid_mid, resid_post. What attention and MLP write: attn_out, mlp_out. Per head: z, q, k, v,
    rot_q, rot_k (after rotation), attn_scores and pattern (a destination's row), edge (a
    destination and a source of it). Groups of neurons: mlp_pre, mlp_post. Attention from
    destination to source cut: knockout (all heads), head_knockout (one). A path is written stop by
    stop, such as z-q, z-logits, embed-v-logits or L0H2.z-q. By default resid_pre, resid_mid,
    attn_out, mlp_out and z."""
    attributes: tuple[str, ...] | None = None
    """Which attributes the facts are about; by default all of the run's."""
    facts: int = 128
    """How many (person, attribute) pairs, spread evenly over the attributes; of a file at most so
    many."""
    facts_csv: str | None = path(None)
    """A file of facts of your own instead of the run's: a CSV with the columns prompt, subject,
    answer and, if wanted, relation, counterfactual_prompt or counterfactual_subject, and
    counterfactual_answer; or the JSON of CounterFact, known_1000 or LRE. Attributes are then
    relations of the file, by default all."""
    corruption: Corruption | Literal["noise", "mean", "zero", "resample"] = "swap"
    """Where the other activations come from. A corrupted run: with the name of another training
    person (swap), of one who differs in one name part (swap-first, swap-middle, swap-last), of a
    held-out person, or with noise on the name's embeddings. Ablations, noising only: the role's
    mean, 0, or another fact's token of that role (resample)."""
    method: Method = "exact"
    """exact: a forward pass per patch. The others estimate all patches from a few gradients:
    attribution patching of sites (atp), AtP* (atp-star), edge attribution patching of paths of two
    stops (eap), and of both RelP (relp) and integrated gradients (eap-ig)."""
    direction: Direction | Literal["both"] = "denoising"
    """denoising: corrupted run ← clean activation; noising: clean run ← corrupted activation;
    both: one after the other, in one report."""
    by: By = "role"
    """Patch all tokens of a role together, or single positions of prompts of the most common
    length."""
    groups: tuple[str, ...] = ()
    """Roles or positions patched together, such as name_first+name_last, or all; by default each is
    patched alone."""
    sources: tuple[str, ...] = ()
    """Sources of edge, knockout and head_knockout, in the form of groups; by default the groups."""
    layers: tuple[int, ...] = number((), least=0, most=MOST_LAYERS)
    """Layers to patch, one at a time; by default all."""
    window: int = number(1, least=1, most=MOST_LAYERS)
    """Layers patched together, starting at layer − window ÷ 2 (rounded down)."""
    frozen: Frozen | None = None
    """With embed or resid_pre: the component whose output stays as in the unpatched run at the
    patched tokens in all later layers, so that the patch acts through the other one only."""
    n_neurons: int = number(16, least=1)
    """Neurons per group of mlp_post and mlp_pre."""
    noise_std: float = number(3.0, above=0, most=MOST_NOISE)
    """Size of the noise, in standard deviations of the name embeddings."""
    noise_draws: int = number(5, least=1, most=MOST_DRAWS)
    """Samples of noise; results are averaged over them."""
    out: str | None = path(None)
    """Folder of the results; by default results/patching in the run folder, or for checkpoints of
    others results/NAME/patching in the current one."""
    report: str | None = path(None)
    """The HTML report; by default patching.html in the run folder, or in results/NAME."""
    device: Device = "auto"
    """auto is CUDA where there is one."""
    precision: Precision = "fp32"
    """Precision of the patched model."""
    seed: int = number(0, least=0, most=LARGEST_SEED)
    """Seed of the sampled facts."""
    workers: int = number(1, least=1, most=MOST_WORKERS)
    """Checkpoints patched in parallel, each in its own process."""
    max_memory: float = number(2.0, above=0)
    """Gigabytes for the activations of a worker."""
    plan: bool = False
    """Print a cost estimate and the number of pieces, and stop (dry run)."""
    cluster: ClusterConfig = ALL_HERE

    def __post_init__(self) -> None:
        check_fields(self)
        if self.attributes == ():
            raise ValueError("attributes is empty; name some of the run's, or leave it out")
        if self.facts_csv and self.corruption in get_args(Corruption)[1:]:
            raise ValueError(
                f"corruption is {self.corruption!r}, which is about names of a run's people; with "
                "facts_csv the file says what the corrupted prompts are, leave it out"
            )


@dataclass(frozen=True)
class ReportConfig:
    """Which results to show, and where."""

    results: str = path()
    """Folder of the results, for example checkpoints/demo/results/patching."""
    out: str = path()
    """The HTML file to write; for the other formats a folder, which then has a file of each figure
    or table."""
    format: ReportFormat = "html"
    """html: one page. png, svg: an image of each figure at the last step, drawn in a browser. csv:
    a table of each site, a row for each step, patch and attribute."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class AuditConfig:
    """Which checkpoints to examine."""

    ckpt: str = path()
    """A run folder, a folder of checkpoints of any kind, the folder of a model in the Hugging Face
    hub's cache, or one checkpoint."""
    steps: str = "all"
    """all, a list such as 0,200,1000, or every:4 for every fourth checkpoint."""
    out: str | None = path(None)
    """A CSV to write, with file, shape, type and digest of every tensor at every step."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class ConvertConfig:
    """Which checkpoints to convert, and where to."""

    ckpt: str = path()
    """A checkpoint with pytorch_model.bin, or a folder of such checkpoints."""
    out: str = path()
    """The folder to write: the checkpoint, or the folder of checkpoints."""
    steps: str = "all"
    """all, a list such as 0,200,1000, or every:4 for every fourth checkpoint."""

    def __post_init__(self) -> None:
        check_fields(self)


def train_config(values: object) -> TrainConfig:
    """The training configuration recorded in a run.json, whose lists become tuples again.

    Raises:
        ValueError: a field is unknown, missing, or has a value that it can't have.
    """
    if not isinstance(values, dict):
        raise ValueError(f"config is {shortened(values)}; it must be an object")
    known = [field.name for field in fields(TrainConfig)]
    if unknown := [name for name in values if name not in known]:
        raise ValueError(f"config has the unknown field {unknown[0]!r}")
    required = [name for name in known if name not in _NOT_IN_OLDER_RUNS]
    if missing := [name for name in required if name not in values]:
        raise ValueError(f"config lacks the field {missing[0]!r}")
    return TrainConfig(**checked(TrainConfig, values))


def preset(name: str, **changes: Any) -> TrainConfig:
    """The named configuration with some fields changed.

    Raises:
        ValueError: no such preset or field; the message lists the known ones.
    """
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    known = {field.name for field in fields(TrainConfig)}
    for field in changes.keys() - known:
        raise ValueError(
            f"no field {field!r} in a training configuration; there are {', '.join(sorted(known))}"
        )
    return replace(PRESETS[name], **changes)
