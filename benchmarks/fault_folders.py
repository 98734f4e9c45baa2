"""Damaged run folders, result files and CSVs: the rest of ``benchmarks.fault_table``'s rows."""

from dataclasses import fields
from itertools import pairwise

from benchmarks.fault_table import LOCALIZE, PATCH, RUN, STUDY, Row, says
from interp.config import TrainConfig

WEIGHTS, CONFIG = "run/step-000030/model.safetensors", "run/step-000030/config.json"
LOOKED_AT = ("run/run.json", "run/population.parquet", "run/tokenizer.json", CONFIG, WEIGHTS)
NOT_NEEDED = ("run/tokenizer_config.json", "run/special_tokens_map.json", "run/metrics.parquet")
ALL = f"{RUN} --sites z --facts 6"
REPORT = "interp-report --results done/results/patching --out report.html"
AGAIN = PATCH.replace("ckpt run", "ckpt done")
RESUME = "interp-train --out run --resume"
RESULT = "newest('done/results/patching/*30.z.*.nc')"

_WAYS = {
    "is missing": "remove('{}')",
    "is empty": "write('{}')",
    "is garbage": "garbage('{}')",
    "is half there": "cut('{}', 0.5)",
    "is a pipe": "fifo('{}')",
    "is a folder": "folder('{}')",
    "links to itself": "loop('{}')",
    "is a PNG": "write('{}', b'\\x89PNG\\r\\n\\x1a\\n' + bytes(500))",
    "is a pickle": "write('{}', b'\\x80\\x04cos\\nsystem\\n')",
}


def _name(path: str) -> str:
    return path.rpartition("/")[2]


FILES = [
    *(
        Row(f"{path} {way}", PATCH, says(_name(path)), before=change.format(path))
        for path in LOOKED_AT
        for way, change in _WAYS.items()
    ),
    *(
        Row(f"{path} {way}", PATCH, says(_name(path)), "", change.format(path))
        for path in NOT_NEEDED
        for way, change in list(_WAYS.items())[:6]
    ),
    *(
        Row(f"{path} is another run's", PATCH, "population|tokenizer|run.json|vocab|another|shape",
            before=f"copy('wide/{path[4:]}', '{path}')")
        for path in LOOKED_AT
        if "tokenizer" not in path
    ),
    *(
        Row(f"{_name(a)} and {_name(b)} change places", PATCH, f"{_name(a)}|{_name(b)}",
            before=f"move('{a}', 'x'), move('{b}', '{a}'), move('x', '{b}')")
        for a, b in pairwise(LOOKED_AT)
    ),
    *(
        Row(f"localizing where {path} {way}", LOCALIZE, says(_name(path)),
            before=change.format(path))
        for path in ("run/metrics.parquet", "run/run.json", WEIGHTS)
        for way, change in list(_WAYS.items())[1:4]
    ),
    *(
        Row(f"resuming where {path} {way}", RESUME, says(_name(path)),
            "" if path == WEIGHTS else None, change.format(path))
        for path in ("run/resume/state.safetensors", "run/run.json", "run/tokenizer.json",
                     "run/population.parquet", "run/metrics.parquet", WEIGHTS)
        for way, change in list(_WAYS.items())[:5]
    ),
]  # fmt: skip

_JSON = "run/run.json"
RECORD = [
    *(
        Row(f"run.json's {name} is {value}", PATCH, says(name.rpartition(".")[2]), right,
            f"key('{_JSON}', '{name}'{argument})")
        for name, right in (("config", None), ("no_knowledge_baseline", None), ("command", ""),
                            ("versions", ""), ("git_commit", ""), ("hardware", ""), ("date", ""))
        for value, argument in {"missing": "", "null": ", None", "a number": ", 7",
                                "a text": ", 'seven'", "a list": ", [1]"}.items()
    ),
    *(
        Row(f"run.json's config has no {f.name}", PATCH, f"{f.name}|begun with", "",
            f"key('{_JSON}', 'config.{f.name}')")
        for f in fields(TrainConfig)
    ),
    *(
        Row(f"run.json's {name} is {value!r}", PATCH, says(name), None,
            f"key('{_JSON}', 'config.{name}', {value!r})")
        for name, value in (("n_people", "forty"), ("n_people", -1), ("n_people", 1.5),
                            ("seed", None), ("seed", "0"), ("seed", -3), ("n_layers", [2]),
                            ("n_layers", True), ("d_model", {}), ("parallel", "no"),
                            ("schedule", "500:1"), ("schedule", 5), ("removed", [3]),
                            ("n_steps", 10**400), ("keep", "some"), ("nonsense", 1))
    ),
    Row("run.json has a key more", PATCH, says("nonsense"), "", f"key('{_JSON}', 'nonsense', 1)"),
    Row("run.json's learning rate is NaN", PATCH, "learning.rate|NaN", None,
        f"key('{_JSON}', 'config.learning_rate', float('nan'))"),
    Row("run.json is nested 10,000 deep", PATCH, says("run.json"), None, f"nested('{_JSON}')"),
    Row("run.json is a list", PATCH, says("run.json"), None, f"write('{_JSON}', '[1, 2]')"),
    Row("run.json is a number", PATCH, says("run.json"), None, f"write('{_JSON}', '3')"),
    Row("run.json is null", PATCH, says("run.json"), None, f"write('{_JSON}', 'null')"),
    Row("run.json has a byte order mark", PATCH, says("run.json"), "",
        f"write('{_JSON}', b'\\xef\\xbb\\xbf' + Path('{_JSON}').read_bytes())"),
    Row("run.json is in UTF-16", PATCH, says("run.json"), "",
        f"write('{_JSON}', Path('{_JSON}').read_text().encode('utf-16'))"),
    Row("a baseline is a text", STUDY + " --ckpt run", "baseline", None,
        f"key('{_JSON}', 'no_knowledge_baseline.major', 'two')"),
    Row("a baseline is NaN", STUDY + " --ckpt run", "baseline|NaN", None,
        f"key('{_JSON}', 'no_knowledge_baseline.major', float('nan'))"),
    Row("another run's seed in run.json", PATCH, "seed|population|begun with", None,
        f"key('{_JSON}', 'config.seed', 1)"),
    Row("parallel blocks in run.json, sequential in files", f"{RUN} --facts 6", "parallel|begun",
        None, f"key('{_JSON}', 'config.parallel', True)"),
    Row("localizing parallel blocks under a sequential run.json", LOCALIZE, "parallel", None,
        f"key('{CONFIG}', 'use_parallel_residual', True)"),
]  # fmt: skip

_DEFAULTS = {"rotary_pct": 0.25, "use_parallel_residual": True}
SHAPE = [
    *(
        Row(f"config.json has no {name}", PATCH,
            rf"{name}|shape|belong|parallel|num_attention_heads",
            f"key('{CONFIG}', '{name}', {_DEFAULTS[name]})" if name in _DEFAULTS else "",
            f"key('{CONFIG}', '{name}')")
        for name in ("architectures", "model_type", "dtype", "vocab_size", "hidden_size",
                     "num_hidden_layers", "num_attention_heads", "intermediate_size",
                     "max_position_embeddings", "hidden_act", "layer_norm_eps", "rotary_pct",
                     "rotary_emb_base", "use_parallel_residual", "attention_bias",
                     "tie_word_embeddings", "pad_token_id", "bos_token_id", "eos_token_id")
    ),
    *(
        Row(f"config.json's {name} is {value!r}", PATCH,
            f"{name.partition('_')[0]}|shape|belong|NaN|n_heads|num_attention_heads|takes at most",
            None,
            f"key('{CONFIG}', '{name}', {value!r})")
        for name, value in (
            ("vocab_size", "many"), ("vocab_size", -1), ("vocab_size", 10**12), ("vocab_size", 3),
            ("hidden_size", 0), ("hidden_size", 31), ("hidden_size", 1.5), ("hidden_size", None),
            ("num_hidden_layers", 10**9), ("num_hidden_layers", 0), ("num_hidden_layers", -1),
            ("num_hidden_layers", 1), ("num_hidden_layers", 3), ("num_hidden_layers", "2"),
            ("num_attention_heads", 0), ("num_attention_heads", 3), ("num_attention_heads", True),
            ("num_attention_heads", 2), ("intermediate_size", 10**12), ("hidden_act", "relu"),
            ("max_position_embeddings", 3), ("max_position_embeddings", "all"),
            ("layer_norm_eps", "tiny"), ("layer_norm_eps", -1), ("layer_norm_eps", float("nan")),
            ("rotary_pct", 2), ("rotary_pct", -1), ("rotary_pct", "all"), ("model_type", "llama"),
            ("rotary_emb_base", 0), ("rotary_emb_base", -5), ("rotary_emb_base", float("nan")),
            ("use_parallel_residual", "no"), ("attention_bias", False),
            ("tie_word_embeddings", True), ("rope_scaling", {"type": "linear", "factor": 2.0}),
            ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}), ("rope_parameters", 5),
            ("rope_parameters", {"rope_type": "dynamic", "factor": 2.0}),
            ("rope_parameters", {"rope_type": "linear", "rope_theta": 10000, "factor": 2.0}),
            ("quantization_config", {"bits": 4}), ("architectures", ["LlamaForCausalLM"]),
        )
    ),
    *(
        Row(f"config.json's {name} is {value!r}, as is usual", PATCH, name, "",
            f"key('{CONFIG}', '{name}', {value!r})")
        for name, value in (
            ("rope_scaling", None), ("transformers_version", "5.9.0"), ("use_cache", True),
            ("rope_parameters", {"rope_type": "default", "rope_theta": 10000.0,
                                 "partial_rotary_factor": 1.0}),
            ("attention_dropout", 0.0), ("torch_dtype", "float32"), ("nonsense", 1),
        )
    ),
    Row("config.json is nested 10,000 deep", PATCH, says("config.json"), None,
        f"nested('{CONFIG}')"),
    Row("config.json is a list", PATCH, says("config.json"), None, f"write('{CONFIG}', '[]')"),
]  # fmt: skip

TENSORS = [
    *(
        Row(f"a weight is {change}", PATCH, "embed_out|rank_one|model.safetensors", None,
            f"weights('{WEIGHTS}', '{change}')")
        for change in ("nan", "infinite", "int64", "transposed", "longer", "scalar", "missing",
                       "extra", "empty")
    ),
    Row("weights in half precision that no config names", PATCH, "float16", f"weights('{WEIGHTS}',"
        " 'float16')", f"weights('{WEIGHTS}', 'float16')"),
    Row("weights are another step's", PATCH, "step|same|digest", "copy('run/step-000020', "
        "'run/step-000030')", f"copy('run/step-000020/model.safetensors', '{WEIGHTS}')"),
    Row("weights are of another shape", PATCH, "shape", None,
        f"copy('wide/step-000030/model.safetensors', '{WEIGHTS}')"),
    Row("only pytorch_model.bin is there", PATCH, "pickle.*convert", None,
        f"move('{WEIGHTS}', 'run/step-000030/pytorch_model.bin')"),
    Row("weights in shards", PATCH, "safetensors", None,
        f"move('{WEIGHTS}', 'run/step-000030/model-00001-of-00002.safetensors')"),
    Row("weights and shards", PATCH, "shard|index|model-00001", "",
        "write('run/step-000030/model.safetensors.index.json', '{\"weight_map\": {}}')"),
    Row("a header longer than the file", PATCH, "model.safetensors", None,
        f"write('{WEIGHTS}', b'\\xff' * 8 + b'{{}}')"),
    Row("weights that end in bytes of no tensor", PATCH, "model.safetensors", None,
        f"write('{WEIGHTS}', Path('{WEIGHTS}').read_bytes() + bytes(64))"),
    Row("the last weights are truncated when resuming", RESUME, "model.safetensors|damaged", "",
        f"cut('{WEIGHTS}', 0.7)"),
]  # fmt: skip

_PEOPLE = "run/population.parquet"
PEOPLE = [
    *(
        Row(f"the population has no column {column}", PATCH, says(column), "" if column in (
            "id", "sampling_weight") else None, f"table('{_PEOPLE}', '{column}')")
        for column in ("id", "split", "first", "middle", "last", "major", "birth_date",
                       "sampling_weight")
    ),
    *(
        Row(f"the population's {what}", PATCH, message, right,
            f"table('{_PEOPLE}', '{column}', {value})")
        for what, column, value, message, right in (
            ("first names are null", "first", None, "first", None),
            ("majors are null", "major", None, "major", None),
            ("last names are numbers", "last", 7, "last|names", None),
            ("splits are unknown", "split", "'test'", "split|train", None),
            ("splits are null", "split", None, "split|train", None),
            ("ids are doubled", "id", 0, "id|twice|unique", None),
            ("ids are texts", "id", "'x'", r"\bid", None),
            ("weights are NaN", "sampling_weight", "float('nan')", "weight", None),
            ("weights are negative", "sampling_weight", -1.0, "weight", None),
            ("first names are empty", "first", "''", "first|name|empty", None),
            ("majors are unknown words", "major", "'Astrology'", "Astrology|vocab|begun", None),
            ("people are in another order", "id", "lambda x: x[::-1].values", "id|order|begun",
             None),
            ("people all have one name", "first", "lambda x: x.iloc[0]", "name|first|called", None),
        )
    ),
    Row("the population has no rows", PATCH, "population|people", None,
        f"pd.read_parquet('{_PEOPLE}').head(0).to_parquet('{_PEOPLE}')"),
    Row("the population has half its rows", PATCH, "population|people|rows", None,
        f"pd.read_parquet('{_PEOPLE}').head(20).to_parquet('{_PEOPLE}')"),
    Row("the population has a person twice", PATCH, "population|people|twice|id", None,
        f"pd.concat([pd.read_parquet('{_PEOPLE}')] * 2).to_parquet('{_PEOPLE}')"),
    Row("the population has a column more", PATCH, "note", "", f"table('{_PEOPLE}', 'note', 1)"),
    *(
        Row(f"the metrics have no column {column}", REPORT, column, None,
            f"table('done/metrics.parquet', '{column}')")
        for column in ("step", "split", "attribute", "loss", "accuracy")
    ),
    *(
        Row(f"the metrics' {column} is {value}", REPORT, f"{column}|metrics", None,
            f"table('done/metrics.parquet', '{column}', {value})")
        for column, value in (("loss", "float('nan')"), ("loss", "'high'"), ("step", "'x'"),
                              ("step", -5), ("split", "'test'"), ("accuracy", 7.0))
    ),
    Row("the metrics are another run's", REPORT, "metrics|another|other", None,
        "copy('other/metrics.parquet', 'done/metrics.parquet')"),
]  # fmt: skip

TOKENS = [
    *(
        Row(f"tokenizer.json {what}", PATCH, "tokenizer|vocab|unk|bos", right, before)
        for what, right, before in (
            ("has no unknown token", None, "key('run/tokenizer.json', 'model.unk_token')"),
            ("has no vocabulary", None, "key('run/tokenizer.json', 'model.vocab')"),
            ("has an empty vocabulary", None, "key('run/tokenizer.json', 'model.vocab', {})"),
            ("has no model", None, "key('run/tokenizer.json', 'model')"),
            ("is of another kind", None, "key('run/tokenizer.json', 'model.type', 'BPE')"),
            ("has an id twice", None, "key('run/tokenizer.json', 'model.vocab.was', 5)"),
            ("has an id too large", None, "key('run/tokenizer.json', 'model.vocab.was', 99999)"),
            ("has no way to split words", None, "key('run/tokenizer.json', 'pre_tokenizer', None)"),
            ("lowers every letter", None,
             "key('run/tokenizer.json', 'normalizer', {'type': 'Lowercase'})"),
            ("has no decoder", "", "key('run/tokenizer.json', 'decoder', None)"),
            ("is another run's", None, "copy('other/tokenizer.json', 'run/tokenizer.json')"),
        )
    ),
]  # fmt: skip
