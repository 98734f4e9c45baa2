import numpy as np
import pytest

from interp.config import SITES
from interp.patching import engine, patch
from interp.patching.plan import plan


@pytest.mark.parametrize("whole_value", [True, False])
@pytest.mark.parametrize("site", SITES)
def test_a_plan_bounds_what_is_computed(model, facts, site, whole_value, monkeypatch):
    computed = []
    monkeypatch.setattr(
        engine.Engine,
        "_changed",
        lambda self, entry, rows, at, real=engine.Engine._changed: (
            computed.append(len(rows)) or real(self, entry, rows, at)
        ),
    )
    options = {"direction": "noising", "whole_value": whole_value}
    (said,) = plan(model.cfg, facts, sites=[site], **options)
    result = patch(model, facts, site=site, **options)
    assert said.n_cells == np.prod(result.patched.shape[:-1])
    # At layer 0 only name tokens differ, which the plan, made of tokens' places, does not know.
    assert 0.4 * said.n_live <= sum(computed) <= said.n_live
    both_runs = 2 * said.flops_of_forwards / said.n_cells
    assert result.attrs["flops"] < 1.25 * said.flops + 1.5 * both_runs
    if site not in ("embed", "resid_pre", "q", "k", "v"):
        assert result.attrs["flops"] > 0.7 * said.flops


def test_a_plan_reads_as_a_sentence(model, facts):
    (said,) = plan(model.cfg, facts, sites=["z"])
    assert str(said).startswith("z: 3 layers × 4 heads × 6 roles = 72 cells on 12 facts; ")
