"""Attention in whole biographies, against loops over tokens."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from interp.data.batches import evaluation_set
from interp.data.biographies import ROLES
from interp.localization.attention_statistics import STATISTICS, attention_statistics
from interp.model.decoder import DecoderConfig, HookedDecoder


@pytest.fixture(scope="module")
def biographies(suite, config):
    return evaluation_set(suite.texts, config, "held-out")


def rows_of(biographies):
    edges = np.cumsum([0, *biographies.lengths])
    for a, b in pairwise(edges):
        yield biographies.tokens[a:b], [ROLES[i] for i in biographies.roles[a:b]]


def by_loops(model, biographies):
    """(statistic, layer, head, biography), token by token."""
    out = []
    for tokens, roles in rows_of(biographies):
        _, cache = model.run_with_cache(torch.from_numpy(tokens)[None])
        cells = np.zeros((4, model.cfg.n_layers, model.cfg.n_heads))
        for layer in range(model.cfg.n_layers):
            for head in range(model.cfg.n_heads):
                pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0, head].double().numpy()
                name_to_name, to_name, to_text, even = [], [], [], []
                for dest in range(len(roles)):
                    row = pattern[dest, : dest + 1]
                    names = [s for s in range(dest + 1) if roles[s].startswith("name")]
                    text = [s for s in range(dest + 1) if roles[s] in ("cue", "punctuation")]
                    following = roles[dest + 1] if dest + 1 < len(roles) else ""
                    if roles[dest] == "name_last" and following != "name_last":
                        name_to_name.append(row[[s for s in names if s != dest]].sum())
                    if following == "value" and roles[dest] != "value":
                        to_name.append(row[names].sum())
                        to_text.append(row[text].sum())
                    if dest:
                        even.append(-(row * np.log(row)).sum() / np.log(dest + 1))
                assert len(name_to_name) == len(to_name) == 6
                means = [np.mean(x) for x in (name_to_name, to_name, to_text, even)]
                cells[:, layer, head] = means
        out.append(cells)
    return np.stack(out, -1)


def test_statistics_are_those_of_a_loop_over_tokens(model, biographies):
    found = attention_statistics(model, biographies, rows_at_once=7)
    wanted = by_loops(model, biographies)
    for i, name in enumerate(STATISTICS):
        assert found[name].dims == ("layer", "head", "biography")
        np.testing.assert_allclose(found[name].values, wanted[i], atol=2e-5)


def test_a_model_that_looks_everywhere_alike_gives_the_shares_of_tokens(suite, biographies):
    model = HookedDecoder(DecoderConfig(1, 2, 8, 8, suite.tokenizer.get_vocab_size()))
    for weight in model.parameters():
        torch.nn.init.zeros_(weight)
    found = attention_statistics(model, biographies)
    np.testing.assert_allclose(found.normalised_entropy, 1, atol=1e-5)
    _, roles = next(rows_of(biographies))
    at = [i for i in range(len(roles)) if roles[i] != "value" and roles[i + 1 : i + 2] == ["value"]]
    shares = [sum(r.startswith("name") for r in roles[: i + 1]) / (i + 1) for i in at]
    np.testing.assert_allclose(found.attribute_to_name[0, 0, 0], np.mean(shares), atol=1e-6)
