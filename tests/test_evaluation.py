import numpy as np
import pytest
import torch
from torch.nn import functional as F

from interp.config import ATTRIBUTES
from interp.data.batches import evaluation_set
from interp.data.biographies import ROLES
from interp.training.evaluation import AVERAGE, by_person, evaluate
from interp.training.packing import select_rows, to_ragged


@pytest.fixture(scope="module")
def biographies(suite, config):
    return evaluation_set(suite.texts, config, "train")


def naive(model, biographies):
    """Metrics by a loop over biographies, values and tokens, with the hooked forward pass."""
    loss, accuracy, most, entropy = ({a: [] for a in ATTRIBUTES} for _ in range(4))
    start = 0
    for length in biographies.lengths:
        row = slice(start, start + length)
        tokens = torch.from_numpy(biographies.tokens[row])
        log_p = model(tokens[None])[0].log_softmax(-1)
        for i, attribute in enumerate(ATTRIBUTES):
            is_value = biographies.roles[row] == ROLES.index("value")
            at = np.flatnonzero(is_value & (biographies.attributes[row] == i))
            loss[attribute].append(sum(-log_p[t - 1, tokens[t]].item() for t in at))
            accuracy[attribute].append(all(log_p[t - 1].argmax() == tokens[t] for t in at))
            most[attribute] += [log_p[t - 1].exp().max().item() for t in at]
            entropy[attribute] += [-(log_p[t - 1].exp() * log_p[t - 1]).sum().item() for t in at]
        start += length
    return [[np.mean(m[a]) for a in ATTRIBUTES] for m in (loss, accuracy, most, entropy)]


def test_metrics_are_those_of_a_plain_loop(model, biographies):
    table = evaluate(model, biographies, rows_at_once=7).set_index("attribute").loc[[*ATTRIBUTES]]
    for column, expected in zip(
        ["loss", "accuracy", "max_probability", "entropy"], naive(model, biographies)
    ):
        np.testing.assert_allclose(table[column], expected, atol=1e-4, err_msg=column)


def test_the_average_is_over_attributes(model, biographies):
    table = evaluate(model, biographies).set_index("attribute")
    expected = table.loc[[*ATTRIBUTES], "loss"].mean()
    assert table.loc["average", "loss"] == pytest.approx(expected)


def test_a_model_of_equal_logits_scores_the_log_of_its_vocabulary(suite, biographies):
    model = suite.load(0)
    model.unembed.weight = torch.nn.Parameter(torch.zeros_like(model.unembed.weight))
    table = evaluate(model, biographies).set_index("attribute")
    log_v = np.log(suite.tokenizer.get_vocab_size())
    assert table.loc["birth_date", "loss"] == pytest.approx(3 * log_v, rel=1e-5)
    assert table.loc["major", "entropy"] == pytest.approx(log_v, rel=1e-5)
    assert table.loc["major", "max_probability"] == pytest.approx(np.exp(-log_v), rel=1e-5)


def test_by_person_its_means_are_those_over_everybody(suite, config):
    model, biographies = suite.load(30), evaluation_set(suite.texts, config, "train")
    table = by_person(model, biographies, rows_at_once=7)
    whole = evaluate(model, biographies).set_index("attribute")
    assert table.person.tolist() == biographies.people.tolist()
    assert table.loss.mean() == pytest.approx(whole.loss[AVERAGE], rel=1e-5)
    assert table.accuracy.mean() == pytest.approx(whole.accuracy[AVERAGE])
    alone = by_person(model, select_rows(biographies, 5, 6))
    assert table.loss[5] == pytest.approx(alone.loss[0], rel=1e-4)


def test_in_bf16_losses_are_fp32_sums_of_logits_in_bf16(model, biographies):
    """The cross-entropies of training, in which logits alone are rounded."""
    tokens, ragged = to_ragged(biographies, model.cfg, "cpu")
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.unembed(model.hidden(tokens, ragged))
    assert logits.dtype == torch.bfloat16
    of_token = F.cross_entropy(logits[:-1].float(), tokens[1:], reduction="none").numpy()
    is_value = biographies.roles == ROLES.index("value")
    table = evaluate(model, biographies, precision="bf16", rows_at_once=len(biographies.lengths))
    table, n = table.set_index("attribute"), len(biographies.lengths)
    for i, attribute in enumerate(ATTRIBUTES):
        at = np.flatnonzero(is_value & (biographies.attributes == i))
        assert table.loc[attribute, "loss"] == pytest.approx(of_token[at - 1].sum() / n, rel=1e-6)
    plain = evaluate(model, biographies).set_index("attribute")
    assert 1e-5 < abs(table.loss - plain.loss).max() < 0.1
