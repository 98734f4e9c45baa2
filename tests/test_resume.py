import pytest
import torch
from safetensors.torch import load_file

from interp.bios.batches import training_batch
from interp.training.loop import make_step
from interp.training.resume import read_state, write_state
from interp.training.trainee import make_trainee


def trained(suite, config, n_steps):
    trainee = make_trainee(config, suite.tokenizer.get_vocab_size())
    step = make_step(config, trainee)
    for i in range(n_steps):
        step(training_batch(suite.texts, config, i))
    return trainee


def test_state_holds_weights_moments_and_place(suite, config, tmp_path):
    trainee = trained(suite, config, 3)
    write_state(trainee, tmp_path)
    again = make_trainee(config, suite.tokenizer.get_vocab_size())
    read_state(again, tmp_path)
    assert (again.step, again.tokens_seen) == (3, trainee.tokens_seen)
    for (name, ours), theirs in zip(again.model.named_parameters(), trainee.model.parameters()):
        assert torch.equal(ours, theirs), name
        for moment in ("exp_avg", "exp_avg_sq", "step"):
            old, new = trainee.optimizer.state[theirs][moment], again.optimizer.state[ours][moment]
            assert torch.equal(old, new), (name, moment)


def test_state_of_an_untrained_model_has_zero_moments(suite, config, tmp_path):
    write_state(trained(suite, config, 0), tmp_path)
    state = load_file(tmp_path / "state.safetensors")
    assert state["exp_avg.embed.weight"].abs().sum() == 0


def test_a_damaged_state_says_what_to_do(suite, config, tmp_path):
    write_state(trained(suite, config, 0), tmp_path)
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="delete the folder resume to start the run again"):
        read_state(trained(suite, config, 0), tmp_path)
