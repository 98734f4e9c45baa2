"""Checkpoints as other programs leave them: tiny random models that transformers saves, whose
weights move on from step to step by a random walk.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
)

D_VOCAB = 60


def config_of(family: str) -> PretrainedConfig:
    if family == "gpt2":
        return GPT2Config(vocab_size=D_VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=32)
    shared = {
        "vocab_size": D_VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "max_position_embeddings": 32,
    }  # fmt: skip
    if family == "llama":
        return LlamaConfig(**shared, num_key_value_heads=2)
    return GPTNeoXConfig(**shared)


def random_model(family: str, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config_of(family))


def walk(model: PreTrainedModel, seed: int, size: float = 0.3) -> None:
    """Moves every matrix by ``size`` of its norm, vectors by as much per number."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            scale = size * weight.norm() / weight.numel() ** 0.5 if weight.ndim > 1 else 0.01
            weight += scale * torch.randn(weight.shape, generator=generator)


def save_steps(
    folder: Path,
    labels: Sequence[str],
    *,
    family: str = "gpt_neox",
    shard: str = "5GB",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """A checkpoint a label; ``shard`` is the size of a file of weights."""
    model = random_model(family, seed)
    for i, label in enumerate(labels):
        walk(model, 1000 * seed + i) if i else None
        saved = AutoModelForCausalLM.from_config(model.config)
        saved.load_state_dict(model.state_dict())
        saved.to(dtype).save_pretrained(folder / label, max_shard_size=shard)
    return folder


def tokenizer_file(folder: Path) -> Path:
    """tokenizer.json of a word-level tokenizer without special tokens."""
    words = {f"w{i}": i for i in range(D_VOCAB)}
    (folder / "tokenizer.json").write_text(Tokenizer(models.WordLevel(words, "w0")).to_str())
    return folder / "tokenizer.json"


def as_hub_cache(folder: Path, cache: Path) -> Path:
    """The checkpoints in ``folder`` as revisions in the hub's cache: files in blobs/, links to them
    in snapshots/, and the snapshot of each revision in refs/.
    """
    for name in ("blobs", "refs", "snapshots"):
        (cache / name).mkdir(parents=True)
    for i, step in enumerate(sorted(folder.iterdir())):
        sha = f"{i:040x}"
        (cache / "refs" / step.name).write_text(sha)
        (cache / "snapshots" / sha).mkdir()
        for file in step.iterdir():
            blob = cache / "blobs" / f"{step.name}-{file.name}"
            shutil.copyfile(file, blob)
            link = cache / "snapshots" / sha / file.name
            link.symlink_to(os.path.relpath(blob, link.parent))
    return cache
