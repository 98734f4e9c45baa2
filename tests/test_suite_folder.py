import shutil

import pytest
import torch
from foreign import as_hub_cache, save_steps, tokenizer_file
from transformers import AutoModelForCausalLM

from interp.model.suite_folder import find_checkpoints
from interp.suite import load_suite


@pytest.fixture(scope="module")
def pythia(tmp_path_factory):
    """Five steps as Pythia's revisions are named, in two shards each."""
    labels = ("step0", "step1", "step2", "step512", "step1000")
    return save_steps(tmp_path_factory.mktemp("suites") / "tiny", labels, shard="50kB")


@pytest.fixture
def folder(tmp_path):
    """Makes a folder of empty folders and files."""

    def made(names, files=()):
        for name in names:
            (tmp_path / "suite" / name).mkdir(parents=True)
        for name in files:
            (tmp_path / "suite" / name).write_text("")
        return tmp_path / "suite"

    return made


def logits(path):
    model = AutoModelForCausalLM.from_pretrained(path)
    return model(torch.arange(12)[None]).logits


def assert_loads(suite, step, path):
    assert torch.allclose(suite.load(step)(torch.arange(12)[None]), logits(path), atol=1e-5)


def test_a_folder_of_steps_in_shards_opens_and_loads(pythia):
    suite = load_suite(pythia)
    assert suite.steps == [0, 1, 2, 512, 1000] and suite.name == "tiny"
    assert len(list((pythia / "step512").glob("model-*.safetensors"))) > 1
    assert suite.check(suite.steps).n_layers == 2
    assert_loads(suite, 512, pythia / "step512")
    assert load_suite(pythia / "step512").steps == [512]
    assert load_suite(pythia / "step512").name == "tiny"


@pytest.mark.parametrize(
    ("labels", "steps"),
    [
        (("step-160000", "step-40000"), [40000, 160000]),
        (("step-000500", "step-001000"), [500, 1000]),
        (("checkpoint-500", "checkpoint-1000"), [500, 1000]),
        (("ckpt_000", "ckpt_358"), [0, 358]),
        (("step1000-tokens4B", "step10000-tokens41B"), [1000, 10000]),
        (("stage1-step1000-tokens4B", "step2000-tokens9B"), [1000, 2000]),
        (("stage2-ingredient3-step7-tokens1B",), [7]),
    ],
)
def test_each_way_of_naming_steps_is_read(folder, labels, steps):
    assert list(find_checkpoints(folder(labels)).folders) == steps


def test_what_a_trainer_and_a_hub_leave_beside_the_steps_does_not_matter(folder):
    there = find_checkpoints(
        folder(
            ("checkpoint-500", "runs", "logs", "main", ".git"),
            ("README.md", ".gitattributes", "tokenizer.json", "config.json", "model.safetensors",
             "model-00001-of-00002.safetensors", "training_args.bin", "optimizer.pt",
             "rng_state_0.pth", "trainer_state.json", "train.log"),
        )
    )  # fmt: skip
    assert list(there.folders) == [500]


@pytest.mark.parametrize(
    "name", ["step-abc", "step 5", "step1.5", "checkpoint-", "ckpt_x", "step", "stage1", "step-٣"]
)
def test_a_name_like_a_step_that_is_none_is_refused(folder, name):
    with pytest.raises(ValueError, match=f"{name} is not a checkpoint folder"):
        find_checkpoints(folder(("step1", name)))


def test_a_file_or_a_circular_link_in_place_of_a_folder_is_refused(folder):
    path = folder(("step1",), ("step2",))
    with pytest.raises(ValueError, match="step2 is not a checkpoint folder"):
        find_checkpoints(path)
    (path / "step2").unlink()
    (path / "step3").symlink_to(path / "step3")
    with pytest.raises(ValueError, match="step3 is not a checkpoint folder"):
        find_checkpoints(path)


@pytest.mark.parametrize(
    ("names", "files"),
    [(("epoch_3",), ()), ((), ("weights.safetensors",)), ((), ("pytorch_model-0.bin",))],
)
def test_what_may_be_a_checkpoint_and_is_not_understood_is_refused(folder, names, files):
    (name,) = (*names, *files)
    with pytest.raises(ValueError, match=f"{name} stands among checkpoints and is not understood"):
        find_checkpoints(folder(("step1", *names), files))


def test_two_folders_of_one_step_are_refused(folder):
    with pytest.raises(ValueError, match="checkpoint-5 and step-5 are both step 5; rename"):
        find_checkpoints(folder(("step-5", "checkpoint-5")))


def test_of_several_stages_one_is_chosen_by_a_pattern(folder):
    path = folder(("stage1-step1000-tokens4B", "stage1-step2000-tokens9B", "stage2-step1000"))
    with pytest.raises(ValueError, match=r"stage1-.* and stage2-step1000 are of different stages"):
        find_checkpoints(path)
    chosen = load_suite(path / "stage1-*")
    assert chosen.steps == [1000, 2000] and chosen.path == path and chosen.name == "suite.stage1"
    with pytest.raises(FileNotFoundError, match=r"no checkpoint stage3-\* in .*; there are stage1"):
        load_suite(path / "stage3-*")


def test_a_pattern_for_a_run_is_refused(run):
    with pytest.raises(ValueError, match=r"names steps of a run; give .*, and --steps"):
        load_suite(run / "step-*")


def test_one_folder_is_a_suite_of_step_0(pythia, tmp_path):
    shutil.copytree(pythia / "step512", tmp_path / "mine")
    suite = load_suite(tmp_path / "mine")
    assert suite.steps == [0] and suite.name == "mine"
    assert_loads(suite, 0, tmp_path / "mine")


@pytest.fixture
def cache(pythia, tmp_path):
    return as_hub_cache(pythia, tmp_path / "models--org--tiny")


def test_a_model_in_the_hubs_cache_opens_by_its_revisions(cache, pythia):
    (cache / "refs" / "main").write_text("f" * 40)
    only_attributes = cache / "snapshots" / ("f" * 40)
    only_attributes.mkdir()
    (only_attributes / ".gitattributes").write_text("")
    (cache / "refs" / "pr").mkdir()
    suite = load_suite(cache)
    assert suite.steps == [0, 1, 2, 512, 1000] and suite.name == "org--tiny"
    for step in (0, 1000):
        assert_loads(suite, step, pythia / f"step{step}")


def test_a_snapshot_of_the_hubs_cache_is_the_step_of_its_revision(cache):
    sha = (cache / "refs" / "step512").read_text()
    suite = load_suite(cache / "snapshots" / sha)
    assert suite.steps == [512] and suite.name == "org--tiny"


def test_main_alone_is_a_suite_of_step_0(cache):
    refs = sorted((cache / "refs").iterdir())
    refs[0].rename(cache / "refs" / "main")
    for ref in refs[1:]:
        ref.unlink()
    assert load_suite(cache).steps == [0]


def test_a_revision_without_snapshot_or_step_is_named(cache):
    (cache / "refs" / "step3").write_text("e" * 40 + "\n")
    with pytest.raises(FileNotFoundError, match=r"step3 names the snapshot e{40}, which is not"):
        load_suite(cache)
    (cache / "refs" / "step3").rename(cache / "refs" / "best")
    with pytest.raises(ValueError, match="refs/best is no step; delete it, or give the folder of"):
        load_suite(cache)


def test_a_blob_that_is_not_there_is_named(cache):
    (cache / "blobs" / "step512-config.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"config.json is a link to \.\./\.\./blobs/step512"
    ):
        load_suite(cache).load(512)


def test_a_folder_without_checkpoints_says_what_to_give(folder):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*; give a run folder, a"):
        load_suite(folder(("data",), ("notes.txt",)))


def test_a_suite_of_others_says_what_it_lacks_when_that_is_asked_for(pythia, tmp_path, monkeypatch):
    suite = load_suite(shutil.copytree(pythia, tmp_path / "tiny"))
    assert suite.config is None and suite.run == {} and not suite.is_run
    for ask, what in (
        (lambda: suite.population, "population"),
        (lambda: suite.texts, "biographies"),
        (lambda: suite.metrics, "metrics"),
        (lambda: suite.no_knowledge_baseline, "no-knowledge baseline"),
        (lambda: suite.facts(8), "population to draw facts from"),
    ):
        with pytest.raises(ValueError, match=rf"no run.json\), so it has no {what}; .*--facts-csv"):
            ask()
    with pytest.raises(FileNotFoundError, match=r"no tokenizer.json in .*tiny or its step folders"):
        suite.tokenizer  # noqa: B018
    assert suite.vocabulary == "" and suite.load(1).vocabulary == ""
    assert "5 checkpoints, steps 0 to 1000; not a run" in repr(suite)
    assert "not a run of interp-train" in suite._repr_html_()
    assert str(suite.results_folder("patching")) == "results/tiny/patching"
    assert str(suite.page("patching")) == "results/tiny/patching.html"


def test_the_tokenizer_is_found_in_the_suite_or_in_a_step(pythia, tmp_path):
    copy = shutil.copytree(pythia, tmp_path / "tiny")
    tokenizer_file(copy / "step512")
    suite = load_suite(copy)
    assert suite.tokenizer.token_to_id("w7") == 7 and len(suite.vocabulary) == 64
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tiny/tokenizer.json is damaged"):
        load_suite(copy).tokenizer  # noqa: B018


def test_results_of_a_run_stay_in_its_folder(suite):
    assert suite.is_run and suite.name == suite.path.name
    assert suite.results_folder("patching") == suite.path / "results" / "patching"
    assert suite.page("patching") == suite.path / "patching.html"


def test_a_digest_is_of_config_and_tensors_and_not_of_how_they_are_filed(pythia, tmp_path):
    copy = shutil.copytree(pythia, tmp_path / "tiny")
    one, two = load_suite(pythia), load_suite(copy)
    assert one.sha256(1) == two.sha256(1) == two.sha256(1, two.tensor_digests(1))
    assert len({one.sha256(step) for step in one.steps}) == 5
    with (copy / "step1" / "config.json").open("a") as file:
        file.write("\n")
    assert one.sha256(1) != two.sha256(1)
