"""Every site, window and replacement against hooks on whole forward passes, in float64."""

from functools import partial

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import HOOKS, inputs, metrics, random_model, unpatched

from interp.data.facts import PROMPT_ROLES
from interp.patching import Intervention, patch, patch_sites, recompute
from interp.patching.act_patch import patch_together
from interp.patching.recompute import Recompute
from interp.patching.sites import SITES as ALL_SITES

SITES = tuple(ALL_SITES)
HEAD_SITES = (
    "z",
    "q",
    "k",
    "v",
    "rot_q",
    "rot_k",
    "attn_scores",
    "pattern",
    "edge",
    "head_knockout",
)
EDGES = ("edge", "knockout", "head_knockout")
NEURON_SITES = ("mlp_pre", "mlp_post")
N_NEURONS = 8


@pytest.fixture(scope="module")
def wide(suite):
    return random_model(suite)


@pytest.fixture(scope="module")
def few(suite):
    return suite.facts(6, seed=3)


def change(x, hook, *, site, source, part, positions, sources):
    """``x`` with one cell changed: what a user would write as a hook. A bridge hands its MLP alone
    a new ``resid_mid``, so that is changed in place.
    """
    x = x if site == "resid_mid" else x.clone()
    if "knockout" in site:
        for dest in positions:
            x[:, slice(None) if site == "knockout" else part, dest, sources] = -torch.inf
        return x
    new = source[hook.name]
    if site in ("attn_scores", "pattern", "edge"):
        for dest in positions:
            src = sources if site == "edge" else slice(None)
            x[:, part, dest, src] = new[:, part, dest, src]
    elif site in NEURON_SITES:
        units = slice(part * N_NEURONS, (part + 1) * N_NEURONS)
        x[:, positions, units] = new[:, positions, units]
    elif site in HEAD_SITES:
        x[:, positions, part] = new[:, positions, part]
    else:
        x[:, positions] = new[:, positions]
    return x


def by_hooks(model, fact, tokens, source, cell, window, hooks=()):
    site, layer, part, group, src = cell
    at = [[p for p, role in enumerate(fact.roles) if role == label] for label in (group, src)]
    if not at[0] or (site in EDGES and (not at[1] or at[1][0] > at[0][-1])):
        return [np.nan] * 3
    start = layer - window // 2
    layers = range(max(0, start), min(model.cfg.n_layers, start + window))
    hook = partial(change, site=site, source=source, part=part, positions=at[0], sources=at[1])
    hooks = [*hooks, *((HOOKS[site].format(i), hook) for i in layers if site != "embed" or not i)]
    if "knockout" in site:  # a destination without any source attends to nothing
        hooks += [(HOOKS["pattern"].format(i), lambda x, hook: x.nan_to_num(0.0)) for i in layers]
    logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
    return metrics(logits, fact)


def ours(result, cell, fact):
    site, layer, part, group, src = cell
    place = {"layer": layer} | ({"dest": group, "src": src} if site in EDGES else {"role": group})
    if site in HEAD_SITES:
        place["head"] = part
    if site in NEURON_SITES:
        place["neuron"] = part * N_NEURONS
    names = ("patched", "patched_first_logprob", "patched_value_logprob")
    return [float(result[name].sel(place)[fact]) for name in names]


def cells_of(site, model, result):
    """All cells of ``site``, as (site, layer, part, group, source)."""
    roles = result[("dest" if site in EDGES else "role")].values.tolist()
    n_parts = model.cfg.n_heads if site in HEAD_SITES else 1
    if site in ("k", "v", "rot_k"):
        n_parts = model.cfg.n_key_value_heads or n_parts
    n_parts = model.cfg.d_mlp // N_NEURONS if site in NEURON_SITES else n_parts
    n_layers = 1 if site == "embed" else model.cfg.n_layers
    sources = roles if site in EDGES else roles[:1]
    return [
        (site, layer, part, group, src)
        for layer in range(n_layers)
        for part in range(n_parts)
        for group in roles
        for src in sources
    ]


@torch.no_grad()
def compare(model, facts, site, results, chosen, direction, window=1, atol=1e-6):
    worst = 0.0
    for cell, i in chosen:
        base, source = inputs(facts[i], direction)
        _, cache = unpatched(model, source)
        theirs = by_hooks(model, facts[i], base, cache, cell, window)
        np.testing.assert_allclose(
            ours(results[site], cell, i), theirs, atol=atol, err_msg=f"{cell}, fact {i}"
        )
        gap = np.abs(np.array(theirs) - metrics(unpatched(model, base)[0], facts[i]))
        worst = max(worst, np.nanmax(gap, initial=0.0))
    return worst


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize(
    ("site", "direction"),
    [
        (site, way)
        for site in SITES
        for way in ("denoising", "noising")
        if "knockout" not in site or way == "noising"
    ],
)
def test_every_site_is_what_hooks_on_a_whole_forward_pass_give(wide, few, site, direction, window):
    results = patch_sites(
        wide, few, sites=[site], direction=direction, window=window, n_neurons=N_NEURONS
    )
    rng = np.random.default_rng(0)
    cells = cells_of(site, wide, results[site])
    chosen = [(cells[i], int(rng.integers(len(few)))) for i in rng.permutation(len(cells))[:24]]
    assert compare(wide, few, site, results, chosen, direction, window) > 1e-3


@settings(max_examples=10, deadline=None)
@given(
    site=st.sampled_from(SITES),
    shape=st.tuples(st.integers(1, 4), st.sampled_from([1, 2, 4]), st.booleans()),
    window=st.integers(1, 5),
    seed=st.integers(0, 99),
    tokens_at_once=st.sampled_from([1, 40, 8192]),
    max_memory=st.sampled_from([2.0, 2e-4]),
    data=st.data(),
)
def test_random_models_windows_and_portions_agree_with_hooks(
    suite, site, shape, window, seed, tokens_at_once, max_memory, data
):
    n_layers, n_heads, parallel = shape
    if site == "resid_mid" and parallel:
        site = "resid_post"
    model = random_model(
        suite, n_layers=n_layers, n_heads=n_heads, seed=seed, parallel=parallel, rotary_dim=2
    )
    facts = suite.facts(5, seed=seed)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(recompute, "TOKENS_AT_ONCE", tokens_at_once)
        results = patch_sites(
            model, facts, sites=[site], direction="noising", window=window,
            n_neurons=N_NEURONS, max_memory=max_memory,
        )  # fmt: skip
    cells = cells_of(site, model, results[site])
    pairs = st.tuples(st.sampled_from(cells), st.integers(0, len(facts) - 1))
    chosen = data.draw(st.lists(pairs, min_size=6, max_size=6))
    compare(model, facts, site, results, chosen, "noising", window)


@pytest.mark.parametrize("frozen", ["mlp_out", "attn_out"])
@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("site", ["embed", "resid_pre"])
def test_what_is_frozen_stays_the_base_runs_at_the_changed_tokens(
    wide, few, site, direction, frozen
):
    options = {"direction": direction, "frozen": frozen}
    results = patch_sites(wide, few, sites=["embed", "resid_pre"], **options)
    free = patch(wide, few, site=site, direction=direction)
    for i, fact in enumerate(few):
        base, source = inputs(fact, direction)
        (_, own), (_, cache) = unpatched(wide, base), unpatched(wide, source)
        for layer in range(1 if site == "embed" else wide.cfg.n_layers):
            for group in ("name_first", "name_last", "final"):
                positions = [p for p, role in enumerate(fact.roles) if role == group]

                def hold(x, hook, own=own, positions=positions):
                    x = x.clone()
                    x[:, positions] = own[hook.name][:, positions]
                    return x

                later = range(layer, wide.cfg.n_layers)
                hooks = [(HOOKS[frozen].format(at), hold) for at in later]
                cell = (site, layer, 0, group, group)
                theirs = by_hooks(wide, fact, base, cache, cell, 1, hooks)
                np.testing.assert_allclose(ours(results[site], cell, i), theirs, atol=1e-6)
    assert float(abs(free.patched - results[site].patched).max()) > 1e-2


def test_sources_are_groups_of_their_own(wide, few):
    groups, sources = ("name_last", "final"), ("name_first+name_middle",)
    every = {"direction": "noising", "groups": (*groups, *sources)}
    for site in ("edge", "knockout", "head_knockout"):
        part = patch(wide, few, site=site, direction="noising", groups=groups, sources=sources)
        assert part.dest.values.tolist() == list(groups)
        assert part.src.values.tolist() == list(sources)
        whole = patch(wide, few, site=site, **every)
        there = whole.patched.sel(dest=list(groups), src=list(sources))
        np.testing.assert_allclose(part.patched, there, atol=1e-9)
    with pytest.raises(ValueError, match="sources go with edge, knockout, head_knockout, not wi"):
        patch(wide, few, site="z", sources=sources)


def test_some_layers_are_those_of_all(wide, few):
    for site in ("resid_pre", "mlp_out", "z", "knockout"):
        options = {"direction": "noising", "window": 2}
        part = patch(wide, few, site=site, layers=(2, 0), **options)
        assert part.layer.values.tolist() == [0, 2]
        whole = patch(wide, few, site=site, **options).sel(layer=[0, 2])
        np.testing.assert_array_equal(part.patched, whole.patched)
        assert part.flops < patch(wide, few, site=site, **options).flops
    with pytest.raises(ValueError, match="no layer 3 in a model of 3 layers; count from 0"):
        patch(wide, few, site="z", layers=(3,))


def test_the_control_is_the_logit_difference_of_another_facts_answers(wide, suite):
    facts = suite.facts(24, seed=3, attribute=["company", "major"])
    result = patch(wide, facts, site="z", control=True, seed=5)
    i = 7
    base, source = inputs(facts[i])
    _, cache = wide.run_with_cache(source)
    hook = partial(change, site="z", source=cache, part=2, positions=[len(facts[i].clean) - 1],
                   sources=[])  # fmt: skip
    final = wide.run_with_hooks(base, fwd_hooks=[(HOOKS["z"].format(1), hook)])[0]
    final = final[len(facts[i].clean) - 1]
    of = {
        (int(f.answer[0]), int(f.corrupted_answer[0])): f.text["attribute"]
        for f in facts
        if not {int(f.answer[0]), int(f.corrupted_answer[0])}
        & {int(facts[i].answer[0]), int(facts[i].corrupted_answer[0])}
    }
    mine = float(result.patched_control_logit_diff.sel(layer=1, head=2, role="final")[i])
    close = [
        attribute
        for (right, other), attribute in of.items()
        if abs(float(final[right] - final[other]) - mine) < 1e-6
    ]
    assert close == [facts[i].text["attribute"]]
    plain = patch(wide, facts, site="z", seed=5)
    np.testing.assert_array_equal(plain.patched, result.patched)
    with pytest.raises(ValueError, match="no control for the major of fact 0"):
        patch(wide, facts[:1], site="z", control=True)


def role_means(model, facts, name):
    """Mean activation over all facts' tokens of each role, and 0 for pads."""
    seen = {role: [] for role in PROMPT_ROLES}
    for fact in facts:
        _, cache = unpatched(model, inputs(fact, "noising")[0])
        for pos, role in enumerate(fact.roles):
            seen[role].append(cache[name][0, pos])
    return {role: torch.stack(values).mean(0) for role, values in seen.items() if values}


@pytest.mark.parametrize("replacement", ["mean", "zero"])
@pytest.mark.parametrize("site", [s for s in SITES if s not in ("attn_scores", "pattern", *EDGES)])
def test_ablations_paste_the_mean_of_the_role_or_nothing(wide, few, site, replacement):
    result = patch(
        wide, few, site=site, direction="noising", replacement=replacement, n_neurons=N_NEURONS
    )
    rng = np.random.default_rng(1)
    cells = cells_of(site, wide, result)
    for cell in (cells[i] for i in rng.permutation(len(cells))[:12]):
        name = HOOKS[site].format(cell[1])
        means = role_means(wide, few, name)
        i = int(rng.integers(len(few)))
        base, _ = inputs(few[i], "noising")
        _, cache = unpatched(wide, base)
        source = torch.zeros_like(cache[name])
        if replacement == "mean":
            source[0, : len(few[i].roles)] = torch.stack([means[r] for r in few[i].roles])
        theirs = by_hooks(wide, few[i], base, {name: source}, cell, 1)
        np.testing.assert_allclose(ours(result, cell, i), theirs, atol=1e-6, err_msg=str(cell))


def test_resampling_pastes_another_facts_token_of_the_same_role(wide, few):
    result = patch(wide, few, site="mlp_out", direction="noising", replacement="resample", seed=4)
    runs = [wide.run_with_cache(inputs(fact, "noising")[0])[1] for fact in few]
    name, group = HOOKS["mlp_out"].format(1), "name_last"
    for i, fact in enumerate(few):
        seen = []
        for j, other in enumerate(few):
            source = runs[i][name].clone()
            source[0, fact.roles.index(group)] = runs[j][name][0, other.roles.index(group)]
            cell = ("mlp_out", 1, 0, group, group)
            base, _ = inputs(fact, "noising")
            seen.append(by_hooks(wide, fact, base, {name: source}, cell, 1)[0])
        mine = float(result.patched.sel(layer=1, role=group)[i])
        nearest = int(np.argmin(np.abs(np.array(seen) - mine)))
        assert abs(seen[nearest] - mine) < 1e-6 and nearest != i


def test_noise_is_added_to_the_embeddings_of_name_tokens(wide, few):
    options = dict(replacement="noise", noise_draws=1, seed=7, noise_std=2.0)
    result = patch(wide, few, site="resid_mid", **options)
    weight = wide.embed.weight.detach()
    named = [[p for p, role in enumerate(f.roles) if role.startswith("name")] for f in few]
    used = torch.cat([f.clean[at] for f, at in zip(few, named)]).unique()
    for i, fact in enumerate(few):
        rng = np.random.default_rng([7, 5, 0, i])
        noise = torch.zeros(1, len(fact.clean) + len(fact.answer) - 1, 16, dtype=torch.float64)
        noise[0] = torch.from_numpy(rng.standard_normal(noise.shape[1:])) * 2 * weight[used].std()
        keep = torch.zeros(noise.shape[1], 1)
        keep[named[i]] = 1
        hook = ("hook_embed", lambda x, hook, add=noise * keep: x + add)
        clean = inputs(fact, "noising")[0]
        noised = metrics(wide.run_with_hooks(clean, fwd_hooks=[hook]), fact)
        assert float(result.corrupted[i]) == pytest.approx(noised[0], abs=1e-6)
        _, cache = wide.run_with_cache(clean)
        cell = ("resid_mid", 1, 0, "name_middle", "")
        theirs = by_hooks(wide, fact, clean, cache, cell, 1, hooks=[hook])
        np.testing.assert_allclose(ours(result, cell, i), theirs, atol=1e-6)


def later_draw(seed, generator, draw):
    """Of noise, whose seed has four parts."""
    return generator([*seed[:2], draw, seed[3]] if len(seed) == 4 else seed)


def test_several_draws_of_noise_are_averaged(wide, few):
    one, three = (
        patch(wide, few, site="z", replacement="noise", noise_draws=n, seed=7) for n in (1, 3)
    )
    assert not np.allclose(one.corrupted, three.corrupted)
    drawn = []
    for draw in range(3):  # a single draw, each time the next one
        with pytest.MonkeyPatch.context() as patched:
            drawing = partial(later_draw, generator=np.random.default_rng, draw=draw)
            patched.setattr(np.random, "default_rng", drawing)
            drawn.append(patch(wide, few, site="z", replacement="noise", noise_draws=1, seed=7))
    for name in ("patched", "corrupted"):
        mean = np.mean([result[name] for result in drawn], 0)
        np.testing.assert_allclose(three[name], mean, atol=1e-6)


@pytest.mark.parametrize("site", ["embed", "resid_pre", "resid_mid", "resid_post"])
def test_every_position_of_the_residual_stream_together_restores_the_clean_run(wide, few, site):
    roles = torch.where(few.roles >= 0, 2, few.roles)
    together = type(few)(**{**vars(few), "roles": roles})
    result = patch(wide, together, site=site).isel(role=0)
    if site == "resid_mid":  # the value's own tokens are beyond the prompt
        result = result.isel(fact=[len(fact.answer) == 1 for fact in few])
    np.testing.assert_allclose(
        result.patched, result.clean.broadcast_like(result.patched), atol=1e-6
    )


@pytest.mark.parametrize(
    ("site", "window"),
    [
        ("embed", 1),
        ("resid_pre", 1),
        ("resid_mid", 1),
        ("resid_post", 1),
        ("attn_out", 3),
        ("z", 3),
    ],
)  # fmt: skip
@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_everything_patched_is_the_other_run(suite, few, site, window, direction):
    """All positions, and all layers of what attention writes: names differ in the embeddings only,
    so at ``final`` that is all there is to patch. One head, so that a cell is all heads.
    """
    model = random_model(suite, n_heads=1)
    options = {"groups": ("all",), "direction": direction, "whole_value": False}
    result = patch(model, few, site=site, window=window, **options)
    whole = result.patched.isel(layer=slice(1, 2) if window > 1 else slice(None), role=0)
    other = result.clean if direction == "denoising" else result.corrupted
    np.testing.assert_allclose(whole.squeeze(), other.broadcast_like(whole).squeeze(), atol=1e-6)
    part = patch(model, few, site=site, window=window, **options | {"groups": ("name_last",)})
    assert float(abs(part.patched - result.patched.values).max()) > 1e-2


@pytest.mark.parametrize("site", ["resid_mid", "z", "mlp_post", "edge", "z-q"])
def test_groups_are_their_members_changed_together(wide, few, site):
    groups = ("name_last", "name_first+name_last", "all")
    result = patch(wide, few, site=site, groups=groups)
    alone = patch(wide, few, site=site)
    by = "dest" if site == "edge" else "role"
    assert result[by].values.tolist() == list(groups)
    one = {"dest": "name_last", "src": "name_last"} if site == "edge" else {"role": "name_last"}
    np.testing.assert_allclose(result.patched.sel(one), alone.patched.sel(one), atol=1e-9)
    merged = torch.where((few.roles == 2) | (few.roles == 4), 2, few.roles)
    together = patch(wide, type(few)(**{**vars(few), "roles": merged}), site=site)
    both = {name: "name_first+name_last" for name in one}
    first = {name: "name_first" for name in one}
    np.testing.assert_allclose(result.patched.sel(both), together.patched.sel(first), atol=1e-9)


def test_positions_are_changed_together_too(wide, suite):
    facts = suite.facts(4, length=11, seed=2)
    result = patch(wide, facts, site="attn_out", by="pos", groups=("3", "3+4", "all"))
    alone = patch(wide, facts, site="attn_out", by="pos")
    assert result.pos.values.tolist() == ["3", "3+4", "all"]
    np.testing.assert_allclose(result.patched.sel(pos="3"), alone.patched.sel(pos=3), atol=1e-9)
    with pytest.raises(ValueError, match="no pos '11' in group '3\\+11'; there are 0, 1"):
        patch(wide, facts, site="attn_out", by="pos", groups=("3+11",))


@pytest.mark.parametrize("replacement", ["run", "noise", "mean", "zero", "resample"])
def test_results_do_not_depend_on_how_facts_and_rows_are_portioned(wide, suite, replacement):
    facts = suite.facts(4, seed=3)
    options = {"direction": "noising", "replacement": replacement, "n_neurons": N_NEURONS}
    options |= {"noise_draws": 2} if replacement == "noise" else {}
    sites = ["resid_mid", "mlp_post", "k"]
    whole = patch_sites(wide, facts, sites=sites, **options)
    pieces = patch_sites(wide, facts, sites=sites, max_memory=3e-4, **options)
    for site in sites:
        for name in whole[site].data_vars:
            np.testing.assert_allclose(whole[site][name], pieces[site][name], atol=1e-6)


def test_a_sweep_that_leaves_out_a_change_says_so(wide, few, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(recompute._Paster, "__call__", lambda self, name, x: x)
        with pytest.raises(RuntimeError, match=r"site 'mlp_out', layer 1: 0 of \d+ changes appl"):
            patch(wide, few, site="mlp_out", window=2)
    monkeypatch.setattr(recompute, "put", lambda *_: 0)
    with pytest.raises(RuntimeError, match=r"0 of \d+ changes were applied"):
        patch(wide, few, site="mlp_out")


def test_an_intervention_reads_as_a_sentence():
    assert str(Intervention()) == "denoising by role: corrupted run ← clean activation"
    windows = Intervention(direction="noising", replacement="zero", window=3)
    assert str(windows) == "noising by role: clean run ← 0, 3 layers together"


def test_an_ablation_needs_the_clean_run(wide, few, suite):
    for replacement in ("mean", "zero", "resample"):
        with pytest.raises(ValueError, match="changes the clean run; use direction noising"):
            patch(wide, few, site="z", replacement=replacement)
    with pytest.raises(ValueError, match="a knockout changes the clean run"):
        patch(wide, few, site="knockout")
    with pytest.raises(ValueError, match="frozen goes with embed and resid_pre, not with 'z'"):
        patch(wide, few, site="z", frozen="mlp_out")
    with pytest.raises(ValueError, match="site 'edge' of different prompts can't be compared"):
        patch(wide, few, site="edge", direction="noising", replacement="mean")
    with pytest.raises(
        ValueError, match="site 'attn_scores' can't be 0, which would let attention"
    ):
        patch(wide, few, site="attn_scores", direction="noising", replacement="zero")
    with pytest.raises(ValueError, match="n_neurons is 5, which doesn't divide the 32 neurons"):
        patch(wide, few, site="mlp_post", n_neurons=5)
    with pytest.raises(ValueError, match="'resample' needs another fact, got 1; ask for 2"):
        patch(wide, few[:1], site="z", direction="noising", replacement="resample")
    with pytest.raises(ValueError, match="there are no facts to patch"):
        patch(wide, few[:0], site="z")
    with pytest.raises(ValueError, match=r"max_memory is 0\.0; it must be positive"):
        patch(wide, few, site="z", max_memory=0.0)
    with pytest.raises(ValueError, match="a Linear has no hooks; give a HookedDecoder"):
        patch(torch.nn.Linear(1, 1), few, site="z")
    context = suite.facts(4, n_context=1)
    with pytest.raises(ValueError, match="leaves it to be read in the context"):
        patch(wide, context, site="z", replacement="noise")
    with pytest.raises(ValueError, match="window is 0; it must be at least 1"):
        patch(wide, few, site="z", window=0)


def test_sweeps_that_share_runs_give_what_each_gives_alone(wide, few, monkeypatch):
    swept = [
        {"sites": ["z", "resid_pre"], "frozen": None},
        {"sites": ["resid_pre"], "frozen": "mlp_out"},
        {"sites": ["attn_out"], "replacement": "mean"},
        {"sites": ["mlp_out"], "replacement": "resample", "window": 2},
        {"sites": ["embed"], "replacement": "noise", "noise_draws": 2},
        {"sites": ["knockout"], "groups": ("final",)},
    ]
    swept = [{"direction": "noising"} | options for options in swept]
    alone = [patch_sites(wide, few, **options) for options in swept]
    runs, run = [], Recompute.run
    counted = lambda self, *given: runs.append(given) or run(self, *given)  # noqa: E731
    monkeypatch.setattr(Recompute, "run", counted)
    together = patch_together(wide, few, swept)
    assert len(runs) == 2 + 1 + 1 + 2  # clean, corrupted; the mean's, the giver's, the noise's own
    for mine, theirs in zip(together, alone, strict=True):
        assert mine.keys() == theirs.keys()
        for site, result in mine.items():
            xr.testing.assert_identical(result.drop_attrs(), theirs[site].drop_attrs())
            assert result.attrs["intervention"] == theirs[site].attrs["intervention"]


@pytest.mark.parametrize("other", [{"whole_value": False}, {"seed": 1}, {"method": "atp"}], ids=str)
def test_sweeps_scored_in_different_ways_share_no_runs(wide, few, other):
    with pytest.raises(ValueError, match="only sweeps of method exact with the same by"):
        patch_together(wide, few, [{"sites": ["z"]}, {"sites": ["z"], **other}])
