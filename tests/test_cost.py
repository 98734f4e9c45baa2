import numpy as np
import pytest
from oracle import AFTER, GROUPED, random_model

from interp.patching import patch, recompute
from interp.patching.cost import plan, weight_gigabytes
from interp.patching.packed_weights import pack
from interp.patching.sites import SITES
from interp.patching.tensor_ops import Linear


@pytest.mark.parametrize("whole_value", [True, False])
@pytest.mark.parametrize("site", [*SITES, "z-q", "embed-v-logits", "mlp_post-mlp_out"])
def test_a_plan_bounds_what_is_computed(model, facts, site, whole_value, monkeypatch):
    computed = []

    def counted(sweep, prompts, entry, items, at, real=recompute._patched):
        computed.append(len(set(zip(*vars(items).values()))))
        return real(sweep, prompts, entry, items, at)

    monkeypatch.setattr(recompute, "_patched", counted)
    options = {"direction": "noising", "whole_value": whole_value}
    (said,) = plan(model.cfg, facts, sites=[site], **options)
    result = patch(model, facts, site=site, **options)
    assert said.n_cells == np.prod(result.patched.shape[:-1])
    assert [str(x) for x in said.axes] == list(result.patched.dims[:-1])
    # At layer 0 only name tokens differ, which the plan, made of tokens' places, does not know.
    assert 0.4 * said.n_items <= sum(computed) <= said.n_items
    assert said.n_cells == len(list(said.cells()))
    both_runs = 2 * said.flops_of_forward * said.n_facts
    # Batches are padded, of items and of changed tokens, to few sizes: each by an eighth at most.
    assert result.attrs["flops"] < 1.25 * 1.125 * said.flops + 1.5 * both_runs
    if site not in ("embed", "resid_pre", "q", "k", "v") and "-" not in site:
        assert result.attrs["flops"] > 0.7 * said.flops


def test_a_plan_reads_as_a_sentence(model, facts):
    (said,) = plan(model.cfg, facts, sites=["z"])
    assert str(said).startswith("z: 3 layers × 4 heads × 6 roles = 72 cells on 12 facts; ")
    assert said.cells().__next__() == {"layer": 0, "head": 0, "role": "bos"}
    assert 0 < said.megabytes < 2100


def test_the_plan_of_a_path_counts_its_ways(model, facts):
    (said,) = plan(model.cfg, facts, sites=["z-q"])
    assert said.axes["layer_1"] == [0, 1, 2] and said.axes["head"] == [0, 1, 2, 3]
    result = patch(model, facts, site="z-q").patched
    n_there = int(result.notnull().sum())
    n_ways = 4 * 4 * (2 + 1)  # layer 0 to layers 1 and 2, layer 1 to layer 2
    assert n_there == n_ways * int((patch(model, facts, site="mlp_out").patched[0]).notnull().sum())


@pytest.mark.parametrize("shape", [{}, GROUPED, AFTER, {"learned_positions": True}])
def test_the_memory_of_weights_is_that_of_the_model_and_its_copies(suite, shape):
    """But for biases and norms, which are small."""
    model = random_model(suite, **shape).float()
    held = {x.data_ptr(): x.numel() for x in model.parameters() if x.ndim == 2}
    packed = pack(model, 8)
    for block in packed.blocks:
        for linear in vars(block).values():
            if isinstance(linear, Linear):
                held[linear.weight.data_ptr()] = linear.weight.numel()
                held[id(linear)] = linear.weight.numel()  # laid out for oneDNN
    held[id(packed.unembed)] = packed.unembed.weight.numel()
    assert weight_gigabytes(model.cfg) == pytest.approx(4 * sum(held.values()) / 1e9, rel=1e-3)
