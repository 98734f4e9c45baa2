"""Every key of a config.json is read, has no effect, or is refused: held against transformers."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM

from interp.model import hf_config
from interp.model.checkpoint_io import read_checkpoint, write_checkpoint
from interp.model.gpt_neox import GPT_NEOX

SMALL = dict(
    vocab_size=13,
    hidden_size=16,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=16,
)
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]])


def saved(folder, **changes):
    """A folder as transformers saves it, with weights so large that every detail matters."""
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL, initializer_range=0.5, **changes))
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight.data.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder


def rewrite(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@torch.no_grad()
def logits_of(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()(TOKENS).logits


def difference(folder):
    """Largest, between our logits and those of transformers on the same folder."""
    return float((read_checkpoint(folder)(TOKENS) - logits_of(folder)).abs().max())


ROPE = st.one_of(
    st.none(),
    st.just({}),
    st.fixed_dictionaries(
        {},
        optional={
            "rope_theta": st.sampled_from([10_000.0, 500, 1e6]),
            "partial_rotary_factor": st.sampled_from([0.25, 0.5, 1.0]),
            "rope_type": st.just("default"),
            "type": st.just("default"),
        },
    ),
)
SPELLINGS = st.fixed_dictionaries(
    {},
    optional={
        "rope_parameters": ROPE,
        "rope_scaling": ROPE,
        "rotary_emb_base": st.sampled_from([10_000, 300.0]),
        "rotary_pct": st.sampled_from([0.25, 0.75, 1.0]),
        "layer_norm_eps": st.sampled_from([1e-5, 1e-2]),
        "use_parallel_residual": st.booleans(),
    },
)


@pytest.fixture(scope="module", params=[True, False], ids=["biases", "no attention biases"])
def folder(request, tmp_path_factory):
    return saved(tmp_path_factory.mktemp("neox") / "step", attention_bias=request.param)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(spelling=SPELLINGS)
def test_logits_are_those_of_transformers_whatever_the_spelling(folder, spelling):
    def respell(config):
        for key in ("rope_parameters", "layer_norm_eps", "use_parallel_residual"):
            del config[key]
        config |= spelling

    rewrite(folder, lambda config: config.setdefault("rope_parameters", None))
    before = (folder / "config.json").read_text()
    rewrite(folder, respell)
    try:
        assert difference(folder) < 2e-5  # logits reach 13
    finally:
        (folder / "config.json").write_text(before)


@pytest.mark.parametrize("place", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 2.0, "partial_rotary_factor": 0.5},
        {"rope_type": "yarn", "factor": 4.0},
    ],
    ids=str,
)
def test_scaled_rotary_positions_are_those_of_transformers(tmp_path, place, rope):
    folder = saved(tmp_path / "step")
    plain = read_checkpoint(folder)(TOKENS)
    rewrite(folder, lambda config: config.update({"rope_parameters": None, place: rope}))
    assert difference(folder) < 2e-5
    if rope.get("rope_type") != "dynamic":  # which begins beyond the longest prompt
        assert (read_checkpoint(folder)(TOKENS) - plain).abs().max() > 0.1


@pytest.mark.parametrize("place", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize(
    ("rope", "message"),
    [
        ({"rope_type": "longrope"}, "has rope_type 'longrope', and only default, linear, dyn"),
        ({"rope_type": None, "factor": 1}, "has rope_type None, and only"),
        ({"type": "linear"}, "factor of .* is None; only a number above 0"),
        ({"type": "linear", "factor": 2, "truncate": True}, "has the key 'truncate', which is unk"),
        ({"rope_type": "yarn", "factor": 2, "truncate": 1}, "truncate of .*only true or false"),
    ],
    ids=str,
)
def test_scaling_that_is_not_understood_is_refused_by_name(tmp_path, place, rope, message):
    folder = saved(tmp_path / "step")
    rewrite(folder, lambda config: config.update({"rope_parameters": None, place: rope}))
    with pytest.raises(ValueError, match=f"config.json: .*{message}"):
        read_checkpoint(folder)


def test_scaled_rotary_positions_would_have_mattered(tmp_path):
    folder = saved(tmp_path / "step")
    plain = logits_of(folder)
    rope = {"rope_type": "linear", "factor": 4.0, "partial_rotary_factor": 0.25}
    rewrite(folder, lambda config: config.update(rope_parameters=rope))
    assert float((plain - logits_of(folder)).abs().max()) > 0.5


def test_keys_without_effect_leave_the_logits_of_transformers_as_they_are(tmp_path):
    folder = saved(tmp_path / "step")
    plain = logits_of(folder)
    odd = {
        "initializer_range": 7.0, "use_cache": False, "attention_dropout": 0.5,
        "hidden_dropout": 0.5, "classifier_dropout": 0.5, "bos_token_id": 5, "eos_token_id": 6,
        "pad_token_id": 7, "is_decoder": True, "chunk_size_feed_forward": 3, "num_labels": 9,
        "attention_probs_dropout_prob": 0.5, "hidden_dropout_prob": 0.5, "torchscript": False,
        "gradient_checkpointing": True, "problem_type": None, "temperature": 3.0, "top_k": 1,
        "repetition_penalty": 9.0, "prefix": "x", "tokenizer_class": "X",
        "transformers_version": "1",
    }  # fmt: skip
    assert odd.keys() <= hf_config.WITHOUT_EFFECT
    rewrite(folder, lambda config: config.update(odd))
    assert torch.equal(plain, logits_of(folder))
    assert difference(folder) < 2e-5


def test_a_key_that_is_left_out_counts_as_in_transformers():
    theirs, defaults = GPTNeoXConfig(), {**GPT_NEOX.sizes, **GPT_NEOX.others}
    assert {key: getattr(theirs, key) for key in defaults} == defaults
    assert theirs.rope_parameters == {
        "rope_theta": 10_000.0, "partial_rotary_factor": 0.25, "rope_type": "default"
    }  # fmt: skip


def test_every_key_that_transformers_writes_is_known():
    written = GPTNeoXConfig().to_dict().keys()
    assert written <= {
        *GPT_NEOX.sizes, *GPT_NEOX.others, *hf_config.WITHOUT_EFFECT, "rope_parameters"
    }  # fmt: skip


def test_a_config_without_an_epsilon_or_attention_biases_is_not_damaged(folder):
    before = (folder / "config.json").read_text()
    rewrite(folder, lambda config: config.pop("layer_norm_eps"))
    try:
        assert difference(folder) < 2e-5
    finally:
        (folder / "config.json").write_text(before)


def test_a_model_read_without_attention_biases_is_written_with_zeros(tmp_path):
    model = read_checkpoint(saved(tmp_path / "one", attention_bias=False))
    write_checkpoint(model, tmp_path / "two", dtype=torch.float32)
    again = read_checkpoint(tmp_path / "two")
    assert torch.equal(again(TOKENS), model(TOKENS))
    assert not again.blocks[1].attn.qkv.bias.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sliding_window": 4}, r"key 'sliding_window' \(here 4\) is unknown for gpt_neox"),
        ({"rope_theta": 500.0}, "key 'rope_theta'"),
        ({"quantization_config": {"bits": 8}}, "key 'quantization_config'"),
        ({"x" * 99: "<b>" * 99}, "is unknown for gpt_neox"),
        ({"model_type": "mamba"}, "model_type is 'mamba', and only gpt_neox, gpt2, llama, m"),
        ({"model_type": None}, "model_type is None"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; only gelu"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True; only false"),
        ({"layer_norm_eps": "1e-5"}, "layer_norm_eps is '1e-5'; only a number"),
        ({"layer_norm_eps": -1}, "layer_norm_eps is -1"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True; only a whole number"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers is 2.0"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": None}, "num_hidden_layers is None"),
        ({"num_hidden_layers": 10**7}, "has the weights of 2 layers, config.json says 10000000"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; only a whole number"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers is 1000"),
        ({"hidden_size": 10**6}, r"has shape \(13, 16\), config.json implies shape"),
        ({"num_attention_heads": 3}, "hidden_size 16 is not a multiple of num_attention_heads 3"),
        ({"architectures": "GPTNeoXForCausalLM"}, r"architectures is 'GPT.*only the list \['GPTN"),
        ({"architectures": ["GPTNeoXForSequenceClassification"]}, "architectures is .*Sequence"),
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'; only gelu .*TransformerLens's br"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True; .*TransformerLens's bridge"),
        ({"use_parallel_residual": 1}, "use_parallel_residual is 1; only true or false"),
        ({"rope_parameters": None, "rotary_pct": 9}, "the rotary share is 9; only a share up to 1"),
        ({"rope_parameters": None, "rotary_pct": 0.2}, "an even number of dimensions"),
        ({"rope_parameters": {"rope_theta": 0}}, "the rotary base is 0"),
        ({"rope_parameters": [4]}, r"rope_parameters is \[4\]; only an object"),
        ({"rope_parameters": {"factor": 4.0}}, "has the key 'factor'"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_refused_by_key_and_value(tmp_path, changes, message):
    folder = saved(tmp_path / "step")
    rewrite(folder, lambda config: config.update(changes))
    with pytest.raises(ValueError, match=message):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"layer_norm_eps": NaN}', "it holds NaN, which is no number"),
        ('{"hidden_size": 16, "hidden_size": 32}', "it holds 'hidden_size' twice"),
        ("[1, 2]", r"it holds '\[1, 2\]', not an object"),
        ("[" * 100_000 + "]" * 100_000, "config.json is damaged"),
        ("\ud800", "config.json is damaged"),
        ('{"hidden_size": ' + "9" * 5000 + "}", "config.json is damaged"),
        ("", "config.json is damaged"),
    ],
    ids=["NaN", "a key twice", "a list", "deep", "not UTF-8", "5,000 digits", "empty"],
)
def test_json_that_says_something_else_than_one_object_is_damaged(tmp_path, text, message):
    folder = saved(tmp_path / "step")
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=message):
        read_checkpoint(folder)


def test_rotary_keys_that_older_transformers_wrote_twice_are_read(tmp_path):
    folder = saved(tmp_path / "step")
    older = {"rotary_pct": 0.5, "rotary_emb_base": 300, "rope_scaling": None}
    older |= {"partial_rotary_factor": 0.5, "rope_theta": 300}
    rewrite(folder, lambda config: (config.pop("rope_parameters"), config.update(older)))
    assert difference(folder) < 2e-5
