import pytest
import torch
from torch.nn import functional as F

from interp.data.batches import evaluation_set
from interp.model.decoder import DecoderConfig, HookedDecoder, initialise
from interp.training.packing import next_tokens, to_ragged


@pytest.fixture
def batch(suite, config):
    biographies = evaluation_set(suite.texts, config, "held-out")
    assert len(set(biographies.lengths)) > 1
    return biographies


@pytest.fixture
def wide_model(suite):
    """In float64, so that a difference is a mistake and not rounding."""
    model = HookedDecoder(DecoderConfig(2, 4, 32, 64, suite.tokenizer.get_vocab_size()))
    initialise(model, std=0.3, seed=0)
    return model.double()


def padded(batch):
    width = batch.lengths.max()
    rows = torch.zeros(len(batch.lengths), width, dtype=torch.long)
    start = 0
    for row, length in zip(rows, batch.lengths):
        row[:length] = torch.from_numpy(batch.tokens[start : start + length])
        start += length
    return rows


def hooked_hidden(model, batch):
    """Each real token's state by the hooked forward pass, one biography at a time."""
    states = []
    for row, length in zip(padded(batch), batch.lengths):
        seen = []
        hook = ("ln_final.hook_normalized", lambda x, hook, seen=seen: seen.append(x))
        model.run_with_hooks(row[None, :length], fwd_hooks=[hook])
        states.append(seen[0][0] * model.ln_final.weight + model.ln_final.bias)
    return torch.cat(states)


def test_training_states_are_those_of_each_biography_run_alone(wide_model, batch):
    tokens, ragged = to_ragged(batch, wide_model.cfg, "cpu")
    difference = wide_model.hidden(tokens, ragged) - hooked_hidden(wide_model, batch)
    assert difference.abs().max() < 1e-9


def test_gradients_are_those_autograd_finds_for_the_hooked_forward_pass(wide_model, batch):
    tokens, ragged = to_ragged(batch, wide_model.cfg, "cpu")
    target, has_next = (torch.from_numpy(x) for x in next_tokens(batch))
    ways = []
    for hidden in (wide_model.hidden(tokens, ragged), hooked_hidden(wide_model, batch)):
        wide_model.zero_grad()
        losses = F.cross_entropy(wide_model.unembed(hidden), target, reduction="none")
        ((losses * has_next).sum() / has_next.sum()).backward()
        ways.append({name: w.grad.clone() for name, w in wide_model.named_parameters()})
    for name, gradient in ways[1].items():
        torch.testing.assert_close(ways[0][name], gradient, atol=1e-10, rtol=1e-7, msg=name)


def test_what_a_pad_holds_changes_nothing(wide_model, batch):
    tokens, ragged = to_ragged(batch, wide_model.cfg, "cpu")
    elsewhere = torch.where(ragged.real[..., 0] > 0, ragged.to_rows, ragged.to_rows.max())
    assert not torch.equal(elsewhere, ragged.to_rows)
    same = wide_model.hidden(tokens, ragged._replace(to_rows=elsewhere))
    assert torch.equal(same, wide_model.hidden(tokens, ragged))


def test_the_last_token_of_a_biography_has_no_target(batch):
    target, has_next = next_tokens(batch)
    ends = batch.lengths.cumsum() - 1
    assert has_next[ends].sum() == 0 and has_next.sum() == len(batch.tokens) - len(batch.lengths)
    assert target[ends[0] - 1] == batch.tokens[ends[0]]
