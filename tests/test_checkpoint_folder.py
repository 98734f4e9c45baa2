import json
import pickle
import shlex
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from interp.cli import interp_convert
from interp.model.checkpoint_folder import step_folders
from interp.model.checkpoint_io import read_checkpoint, write_checkpoint
from interp.model.decoder import DecoderConfig, HookedDecoder
from interp.suite import load_suite


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_the_folder_that_was_found_is_the_one_that_is_opened(copy):
    (copy / "step-000020").rename(copy / "step-20")
    suite = load_suite(copy)
    assert suite.steps == [0, 10, 20, 30] and suite.step_dir(20) == copy / "step-20"
    assert suite.load(20).blocks[0].mlp.up.weight.isfinite().all()
    assert load_suite(copy / "step-20").steps == [20]


def test_two_folders_of_one_step_are_refused(copy):
    shutil.copytree(copy / "step-000030", copy / "step-20")
    with pytest.raises(ValueError, match=r"step-000020 and .*step-20 are both step 20; rename"):
        load_suite(copy)


@pytest.mark.parametrize(
    "name",
    ["step-abc", "step-", "step-99999999999999999999", "step-1.5", "step10", "step_10", "step-٣"],
)
def test_what_is_named_like_a_checkpoint_folder_and_is_none_is_refused(copy, name):
    (copy / name).mkdir()
    with pytest.raises(ValueError, match=f"{name} is not a checkpoint folder"):
        load_suite(copy)


def test_a_file_or_a_circular_link_in_place_of_a_folder_is_refused(copy):
    (copy / "step-000040").write_text("")
    with pytest.raises(ValueError, match="step-000040 is not a checkpoint folder"):
        step_folders(copy)
    (copy / "step-000040").unlink()
    (copy / "step-000050").symlink_to(copy / "step-000050")
    with pytest.raises(ValueError, match="step-000050 is not a checkpoint folder"):
        step_folders(copy)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_link_to_nothing_and_a_pointer_to_a_large_file_are_called_that(copy, name):
    path = copy / "step-000030" / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(ValueError, match=f"{name} is a pointer of Git LFS .*; .*git lfs pull"):
        load_suite(copy).check([30])
    path.unlink()
    path.symlink_to("../../blobs/4d7a")
    with pytest.raises(FileNotFoundError, match=rf"{name} is a link to \.\./.*4d7a, which is not"):
        load_suite(copy).check([30])


def test_a_link_to_a_checkpoint_folder_is_one(copy, tmp_path):
    (copy / "step-000030").rename(tmp_path / "elsewhere")
    (copy / "step-000030").symlink_to(tmp_path / "elsewhere")
    assert load_suite(copy).load(30).cfg.n_layers == 3


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "weights.pt"])
def test_a_pickle_in_place_of_weights_is_never_opened(copy, tmp_path, name):
    folder, made = copy / "step-000030", tmp_path / "made"
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Trap(made)))
    pickle.loads((folder / name).read_bytes()).close()
    assert made.exists()  # the trap works
    made.unlink()
    with pytest.raises(
        ValueError, match=f"{name} is a pickle, which is never opened; .*convert it"
    ):
        read_checkpoint(folder)
    assert not made.exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "training_args.bin", "rng_state_3.pth"])
def test_what_a_trainer_leaves_is_not_taken_for_weights(copy, name):
    (copy / "step-000030" / "model.safetensors").unlink()
    (copy / "step-000030" / name).write_text("")
    with pytest.raises(FileNotFoundError, match=r"no model.safetensors in .*; copy the checkpoint"):
        read_checkpoint(copy / "step-000030")


def test_the_command_that_converts_a_pickle_does(model, tmp_path, monkeypatch):
    write_checkpoint(model, tmp_path / "step", dtype=torch.float32)
    weights = load_file(tmp_path / "step" / "model.safetensors")
    torch.save(weights, tmp_path / "step" / "pytorch_model.bin")
    (tmp_path / "step" / "model.safetensors").unlink()
    with pytest.raises(ValueError) as refused:
        read_checkpoint(tmp_path / "step")
    command = str(refused.value).partition("convert it with ")[2]
    monkeypatch.setattr("sys.argv", shlex.split(command))
    monkeypatch.setattr("interp.cli.shell.tune_process", lambda: None)
    interp_convert.main()
    again = read_checkpoint(tmp_path / "converted-step")
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name


def test_the_command_that_converts_a_step_converts_its_suite_beside_it(model, tmp_path):
    step = tmp_path / "pickled" / "checkpoint-5"
    write_checkpoint(model, step, dtype=torch.float32)
    torch.save(load_file(step / "model.safetensors"), step / "pytorch_model.bin")
    (step / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"is a pickle") as refused:
        read_checkpoint(step)
    suite = step.parent
    command = f"interp-convert --ckpt {suite} --out {tmp_path / 'converted-pickled'}"
    assert str(refused.value).endswith(command)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("model-00001-of-00002.safetensors", "copy model.safetensors.index.json to it"),
        ("model.fp16.safetensors", "rename it to model.safetensors if it holds all weights"),
    ],
)
def test_weights_of_another_name_are_named_with_what_to_do(copy, name, advice):
    (copy / "step-000030" / "model.safetensors").rename(copy / "step-000030" / name)
    with pytest.raises(ValueError, match=f"holds {name} but no model.safetensors; {advice}"):
        read_checkpoint(copy / "step-000030")


@pytest.mark.parametrize("name", ["adapter_config.json", "model-00002-of-00002.safetensors"])
def test_what_would_change_the_weights_is_refused(copy, name):
    (copy / "step-000030" / name).write_text("{}")
    with pytest.raises(ValueError, match=f"{name} stands beside model.safetensors"):
        read_checkpoint(copy / "step-000030")


def test_files_that_transformers_leaves_beside_a_model_do_not_matter(copy):
    for name in ("generation_config.json", "README.md", "optimizer.pt", "trainer_state.json"):
        (copy / "step-000030" / name).write_text("{}")
    assert load_suite(copy).load(30).cfg.n_layers == 3


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.update({k: x.long() for k, x in w.items()}), "is of type I64; only F64, F32"),
        (
            lambda w: w.update({"gpt_neox.extra": torch.ones(2)}),
            r"extra has shape \(2,\), .* no such weight",
        ),
        (
            lambda w: w.update({"score.weight": w.pop("embed_out.weight")}),
            "holds score.weight, which no GPTNeoXForCausalLM has; save the whole model",
        ),
        (
            lambda w: w.update({f"_orig_mod.module.{k}": w.pop(k) for k in list(w)}),
            r"holds _orig_mod.module.\w+\..*, of a wrapped model .*is called (gpt_neox|embed_out)",
        ),
        (
            lambda w: w.update({"lm_head.weight": w["embed_out.weight"].clone()}),
            "has embed_out.weight twice, under two names",
        ),
        (
            lambda w: w.update({"embed_out.weight": w["embed_out.weight"].double() + 1e300}),
            "embed_out.weight holds NaN or numbers that fp32 can't hold",
        ),
    ],
)
def test_weights_that_are_not_those_of_the_config_are_refused(copy, change, message):
    change_weights(copy / "step-000030", change)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(copy / "step-000030")


def test_half_precision_on_disk_is_the_rounded_weight(copy):
    step = copy / "step-000030"
    before = read_checkpoint(step).unembed.weight
    change_weights(step, lambda w: w.update({k: x.half() for k, x in w.items()}))
    assert torch.equal(read_checkpoint(step).unembed.weight, before.half().float())


def test_a_step_of_another_shape_is_named_with_what_differs(copy):
    config = copy / "step-000010" / "config.json"
    changed = json.loads(config.read_text()) | {"layer_norm_eps": 1e-3}
    config.write_text(json.dumps(changed))
    suite = load_suite(copy)
    with pytest.raises(ValueError, match=r"step 10 has ln_eps 0.001, step 0 1e-05; checkpoints of"):
        suite.check(suite.steps)
    assert suite.check([0, 20, 30]).n_layers == 3
    config.write_text(json.dumps(changed | {"use_parallel_residual": True}))
    for refused in (lambda: suite.check([10]), lambda: suite.load(10)):
        with pytest.raises(ValueError, match=r"step-000010 has parallel True, run.json says False"):
            refused()


def test_a_step_with_fewer_tokens_than_the_tokenizer_is_refused(copy):
    for step in load_suite(copy).folders.values():
        config = json.loads((step / "config.json").read_text())
        config["vocab_size"] -= 1
        (step / "config.json").write_text(json.dumps(config))
        for name in ("gpt_neox.embed_in.weight", "embed_out.weight"):
            change_weights(step, lambda w, name=name: w.update({name: w[name][:-1].clone()}))
    suite = load_suite(copy)
    with pytest.raises(ValueError, match=r"the tokenizer in .* has \d+ tokens, its models \d+"):
        suite.check(suite.steps)


@pytest.mark.parametrize("low", [0x4B50, 0x0280, 0x0480])
def test_weights_whose_header_begins_like_a_pickle_are_read(copy, low):
    path = copy / "step-000030" / "model.safetensors"
    content = path.read_bytes()
    n = int.from_bytes(content[:8], "little")
    longer = low + 65536 * (n > low)
    header = content[8 : 8 + n] + b" " * (longer - n)
    path.write_bytes(longer.to_bytes(8, "little") + header + content[8 + n :])
    assert path.read_bytes()[:2] in (b"PK", b"\x80\x02", b"\x80\x04")
    assert read_checkpoint(copy / "step-000030").cfg.n_layers == 3


def test_a_folder_that_is_replaced_is_whole_at_every_moment(model, copy, monkeypatch):
    folder, seen = copy / "step-000030", []
    remove = shutil.rmtree

    def watched(path, **options):
        seen.append(folder.is_dir() and len(list(folder.iterdir())) == 2)
        remove(path, **options)

    monkeypatch.setattr("interp.model.checkpoint_io.shutil.rmtree", watched)
    write_checkpoint(model, folder, dtype=torch.float32)
    assert seen and all(seen) and len(list(copy.glob(".*.tmp"))) == 0


@pytest.mark.parametrize(("d_head", "n_rotary"), [(44, 30), (10, 6), (64, 16), (98, 58)])
def test_any_rotary_share_is_read_as_it_was_written(tmp_path, d_head, n_rotary):
    cfg = DecoderConfig(1, 1, d_head, 8, 5, rotary_dim=n_rotary)
    write_checkpoint(HookedDecoder(cfg), tmp_path / "step", dtype=torch.float32)
    assert read_checkpoint(tmp_path / "step").cfg == cfg
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "step")
    assert theirs.gpt_neox.layers[0].attention.rotary_ndims == n_rotary
