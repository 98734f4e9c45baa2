import os
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from builders import one_result, result_with_shares
from scipy.stats import bootstrap

from interp.results.metrics import effect, interval, of_metric, recovered
from interp.results.request import Request
from interp.results.store import (
    checksum,
    join_steps,
    open_result,
    read_folder,
    read_other_direction,
    read_result,
    write_result,
)

CLEAN, CORRUPTED = [5.0, 4.0, 3.0], [1.0, -2.0, 1.0]
PATCHED = [
    [[2.0, 1.0, 1.5], [3.0, np.nan, 2.5]],
    [[0.0, -3.0, 1.0], [9.0, 4.0, 3.0]],
]
REQUEST = Request(
    step=200, site="attn_out", checkpoint="ab12", run="ef56", facts="cd34",
    options={"direction": "denoising"}, made_from={}, device="cpu", precision="fp32",
    matmul_precision="highest", default_dtype="torch.float32", versions={}, source="0a",
)  # fmt: skip
SHARES = np.array([[0.0, 0.3, 0.9], [0.1, 0.2, 0.7]])


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_recovered_is_mean_gain_over_mean_gap_of_the_facts_that_have_the_cell(direction):
    share = recovered(one_result(PATCHED, CLEAN, CORRUPTED, direction=direction))
    assert share.dims == ("layer", "role")
    np.testing.assert_allclose(share, [[4.5 / 12, 3.5 / 6], [-2 / 12, 16 / 12]], rtol=1e-6)


def test_recovered_is_nan_where_no_fact_has_the_cell():
    result = one_result(PATCHED, CLEAN, CORRUPTED)
    result.patched[0, 1] = np.nan
    assert recovered(result).isnull().values.tolist() == [[False, True], [False, False]]


def test_effect_of_denoising_is_what_was_gained_over_the_corrupted_run():
    gained = effect(one_result(PATCHED, CLEAN, CORRUPTED))
    assert gained.sel(layer=0, role="name_first").values.tolist() == [1.0, 3.0, 0.5]
    assert gained.attrs["units"] == "nats"


def test_effect_of_noising_is_negative_where_patching_took_away_from_the_clean_run():
    lost = effect(one_result(PATCHED, CLEAN, CORRUPTED, direction="noising"))
    assert lost.sel(layer=0, role="name_first").values.tolist() == [-3.0, -3.0, -1.5]


def test_a_metric_is_read_from_its_own_variables():
    result = one_result(PATCHED, CLEAN, CORRUPTED)
    for metric, shift in (("logit_diff", 0), ("first_logprob", 10), ("value_logprob", 20)):
        values = of_metric(result, metric)
        assert values.clean.values.tolist() == [5 - shift, 4 - shift, 3 - shift]
        assert values.corrupted.values.tolist() == [1 - shift, -2 - shift, 1 - shift]
        assert values.patched[1, 1].values.tolist() == [9 - shift, 4 - shift, 3 - shift]
        assert values.attrs == result.attrs


def test_shares_effects_and_intervals_are_of_the_metric_asked_for():
    result = one_result(PATCHED, CLEAN, CORRUPTED)
    result["patched_value_logprob"] = result.clean_value_logprob.broadcast_like(result.patched)
    assert (recovered(result, "value_logprob") == 1).all()
    assert (interval(result, "value_logprob").high == 1).all()
    assert effect(result, "value_logprob")[0, 0].values.tolist() == [4.0, 6.0, 2.0]


def test_an_unknown_metric_is_refused_and_the_known_ones_listed():
    with pytest.raises(ValueError, match="no metric 'loss'; there are logit_diff, first_logprob"):
        of_metric(one_result(PATCHED, CLEAN, CORRUPTED), "loss")


def naive_interval(values: xr.Dataset, n_resamples: int, seed: int) -> list[float]:
    """Low and high of one cell, by counting out each resample."""
    n = values.sizes["fact"]
    patched, clean, corrupted = (values[name].values for name in ("patched", "clean", "corrupted"))
    shares = []
    for counts in np.random.default_rng(seed).multinomial(n, [1 / n] * n, size=n_resamples):
        gained = gap = 0.0
        for i in range(n):
            if not np.isnan(patched[i]):
                gained += counts[i] * (patched[i] - corrupted[i])
                gap += counts[i] * (clean[i] - corrupted[i])
        shares.append(gained / gap)
    return np.quantile(shares, [0.025, 0.975]).tolist()


def test_interval_is_the_naive_loops_over_resampled_facts():
    heads = np.stack((SHARES, SHARES[::-1] + 0.2), 1)
    steps = {s: result_with_shares(heads, n=8, seed=s, site="z") for s in (100, 300)}
    steps[300].patched[0, 1, 2, :3] = np.nan
    result = join_steps(steps)
    found = interval(result, n_resamples=50, seed=3)
    assert found.low.dims == found.estimate.dims == ("step", "layer", "head", "role")
    for cell in (
        {"step": 300, "layer": 0, "head": 1, "role": "final"},
        {"step": 100, "layer": 1, "head": 0, "role": "name_last"},
    ):
        here = found.sel(cell)
        low, high = naive_interval(result.sel(cell), 50, 3)
        assert [float(here.low), float(here.high)] == pytest.approx([low, high], abs=1e-5)


def test_interval_is_about_scipys_percentile_bootstrap():
    result = result_with_shares(SHARES, n=60)
    cell = result.isel(layer=1, role=1)
    gained, gap = (cell.patched - cell.corrupted).values, (cell.clean - cell.corrupted).values
    theirs = bootstrap(
        (gained, gap), lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True, n_resamples=2000,
        method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    ours = interval(result, n_resamples=2000).isel(layer=1, role=1)
    tenth = 0.1 * (theirs.high - theirs.low)
    np.testing.assert_allclose([ours.low, ours.high], [theirs.low, theirs.high], atol=tenth)


def test_interval_holds_the_estimate_which_is_recovered():
    result = result_with_shares(SHARES)
    found = interval(result)
    xr.testing.assert_equal(found.estimate, recovered(result))
    assert ((found.low < found.estimate) & (found.estimate < found.high)).all()


def test_interval_shrinks_with_the_root_of_the_number_of_facts():
    few, many = (interval(result_with_shares(SHARES, n=n)) for n in (30, 480))
    ratio = (few.high - few.low).mean() / (many.high - many.low).mean()
    assert float(ratio) == pytest.approx(4, rel=0.3)


def test_a_lower_confidence_gives_a_narrower_interval():
    result = result_with_shares(SHARES)
    half, most = (interval(result, confidence=c) for c in (0.5, 0.95))
    ratio = (half.high - half.low).mean() / (most.high - most.low).mean()
    assert float(ratio) == pytest.approx(0.674 / 1.96, rel=0.15)


def test_interval_of_equal_facts_is_a_point():
    found = interval(one_result(np.full((1, 2, 9), 2.5), [5.0] * 9, [1.0] * 9))
    np.testing.assert_allclose(found.to_dataarray(), 1.5 / 4, rtol=1e-6)


def test_interval_depends_on_its_seed_only():
    result = result_with_shares(SHARES)
    np.random.seed(7)
    xr.testing.assert_identical(interval(result, seed=1), interval(result, seed=1))
    assert (interval(result, seed=1).low != interval(result, seed=2).low).all()


def test_a_result_read_back_is_the_one_written(tmp_path):
    result = one_result(PATCHED, CLEAN, CORRUPTED, prompt="Zoë «a» was")
    result.answer[1] = ""
    written = write_result(tmp_path / "new", REQUEST, result, {"git_commit": None})
    back = read_result(tmp_path / "new", REQUEST)
    xr.testing.assert_identical(back, written)
    assert back.clean_prompt.values.tolist() == [f"Zoë «a» was {i}" for i in range(3)]
    assert back.role.values.tolist() == ["name_first", "name_last"]
    assert back.attrs["made_by"] == '{"git_commit": null}'
    xr.testing.assert_equal(back, result)


def test_a_results_file_tells_step_and_site(tmp_path):
    write_result(tmp_path, REQUEST, one_result(PATCHED, CLEAN, CORRUPTED), {})
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("step-000200.attn_out.") and path.suffix == ".nc"


def test_a_changed_request_has_no_result(tmp_path):
    write_result(tmp_path, REQUEST, one_result(PATCHED, CLEAN, CORRUPTED), {})
    assert read_result(tmp_path, replace(REQUEST, made_from={"corruption": "swap"})) is None
    assert read_result(tmp_path, replace(REQUEST)) is not None


def test_a_file_that_answers_another_request_is_not_taken(tmp_path):
    write_result(tmp_path, REQUEST, one_result(PATCHED, CLEAN, CORRUPTED), {})
    other = replace(REQUEST, source="0b")
    (tmp_path / REQUEST.file_name).rename(tmp_path / other.file_name)
    assert read_result(tmp_path, other) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: b"not netCDF",
    ],
    ids=["empty", "half", "last byte missing", "other content"],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path, damage):
    write_result(tmp_path, REQUEST, one_result(PATCHED, CLEAN, CORRUPTED), {})
    path = tmp_path / REQUEST.file_name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=f"^{path} is damaged; delete it and run the same"):
        open_result(path)


def test_a_file_cut_anywhere_is_called_damaged(tmp_path):
    write_result(tmp_path, REQUEST, one_result(PATCHED, CLEAN, CORRUPTED), {})
    path = tmp_path / REQUEST.file_name
    content = path.read_bytes()
    for length in range(0, len(content), 29):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is damaged"):
            open_result(path)


def write_at(folder, request, offset=0.0):
    shifted = np.array(PATCHED) + offset
    write_result(folder, request, one_result(shifted, CLEAN, CORRUPTED, site=request.site), {})


def test_a_folder_is_read_by_site_with_its_steps_in_order(tmp_path):
    for step in (1000, 0, 200):
        for site in ("attn_out", "mlp_out"):
            write_at(tmp_path, replace(REQUEST, step=step, site=site), offset=step)
    results = read_folder(tmp_path)
    assert set(results) == {"attn_out", "mlp_out"}
    for result in results.values():
        assert result.patched.dims == ("step", "layer", "role", "fact")
        assert result.step.values.tolist() == [0, 200, 1000]
        assert result.patched[:, 1, 1, 0].values.tolist() == [9.0, 209.0, 1009.0]


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_a_folder_without_results_is_refused(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=r"no results in .*interp-patch --ckpt RUN"):
        read_folder(tmp_path / folder)


def test_a_run_folder_in_place_of_its_results_is_told_where_they_are(tmp_path):
    write_at(tmp_path / "results" / "patching", REQUEST)
    with pytest.raises(FileNotFoundError, match=r"no results in .*; give .*results/patching$"):
        read_folder(tmp_path)


def test_joined_steps_keep_each_steps_own_clean_and_corrupted_scores():
    later = one_result(PATCHED, [6.0, 5.0, 4.0], CORRUPTED)
    joined = join_steps({300: later, 100: one_result(PATCHED, CLEAN, CORRUPTED)})
    assert joined.clean.dims == ("step", "fact")
    assert joined.clean.values.tolist() == [CLEAN, [6.0, 5.0, 4.0]]
    assert joined.answer.dims == ("fact",)


def test_a_damaged_stored_result_is_computed_again(tmp_path):
    write_at(tmp_path, REQUEST)
    assert read_result(tmp_path, REQUEST) is not None
    path = tmp_path / REQUEST.file_name
    path.write_bytes(path.read_bytes()[:200])
    assert read_result(tmp_path, REQUEST) is None


def test_a_whole_tree_is_not_one_result():
    tree = xr.DataTree.from_dict({"attn_out": one_result(PATCHED, CLEAN, CORRUPTED)})
    with pytest.raises(ValueError, match="not the result of one site; give one, such as"):
        recovered(tree)
    assert recovered(tree["attn_out"]).equals(recovered(one_result(PATCHED, CLEAN, CORRUPTED)))


def test_a_single_fact_has_an_estimate_and_no_interval():
    bounds = interval(one_result([[[3.0]]], [4.0], [1.0]))
    assert np.isfinite(bounds.estimate).all() and np.isnan([bounds.low, bounds.high]).all()


def test_the_other_direction_is_that_of_the_same_checkpoints(tmp_path):
    def store(direction, checkpoint, shift=0.0):
        result = result_with_shares(SHARES + shift, direction=direction)
        options = {"direction": direction}
        request = replace(REQUEST, step=5, checkpoint=checkpoint, options=options)
        return write_result(tmp_path, request, result, {})

    denoised = {"attn_out": join_steps({5: store("denoising", "now")})}
    store("noising", "before", shift=0.3)
    (tmp_path / "step-000005.attn_out.dead.nc").write_bytes(b"no result")
    assert read_other_direction(tmp_path, denoised) is None
    noised = store("noising", "now")
    found = read_other_direction(tmp_path, denoised)["attn_out"]
    np.testing.assert_array_equal(found.patched.sel(step=5), noised.patched)


def test_the_checksum_is_the_same_in_memory_and_from_the_file(tmp_path):
    result = one_result(PATCHED, CLEAN, CORRUPTED, prompt="Zoë “x” ☃").assign(
        flag=("fact", np.array([True, False, True])), count=("fact", np.arange(3))
    )
    written = write_result(tmp_path, REQUEST, result, {"run": "../.."})
    again = open_result(tmp_path / REQUEST.file_name)
    assert checksum(written) == checksum(again) == again.attrs["checksum"]


@pytest.mark.parametrize(
    "change",
    [
        lambda result: result.patched.values.__setitem__((0, 0, 0), 9.0),
        lambda result: result.attrs.update(direction="noising"),
        lambda result: result.patched.attrs.update(units="bits"),
        lambda result: result.update({"extra": ("fact", np.zeros(3))}),
        lambda result: result.__delitem__("clean"),
    ],
    ids=["a number", "an attribute", "a unit", "one variable more", "one less"],
)
def test_a_result_that_was_changed_is_computed_anew(tmp_path, change):
    write_result(tmp_path, REQUEST, one_result(PATCHED, CLEAN, CORRUPTED), {})
    path = tmp_path / REQUEST.file_name
    result = open_result(path)
    change(result)
    path.write_bytes(bytes(result.to_netcdf(engine="scipy")))
    assert read_result(tmp_path, REQUEST) is None
    with pytest.raises(ValueError, match="is damaged; delete it and run the same again"):
        open_result(path)


def test_one_flipped_bit_is_noticed_or_changes_nothing(tmp_path):
    written = write_result(tmp_path, REQUEST, one_result(PATCHED, CLEAN, CORRUPTED), {})
    path, rng, noticed = tmp_path / REQUEST.file_name, np.random.default_rng(0), 0
    content = path.read_bytes()
    for place in rng.integers(len(content), size=150):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        result = read_result(tmp_path, REQUEST)
        noticed += result is None
        assert result is None or result.identical(written)  # a byte that pads a name
    assert noticed > 75  # the others: bytes that align names and numbers


def test_a_pipe_among_the_results_is_no_result(tmp_path):
    write_result(tmp_path, REQUEST, one_result(PATCHED, CLEAN, CORRUPTED), {})
    os.mkfifo(tmp_path / "step-000300.z.0123456789.nc")
    with pytest.raises(ValueError, match=r"0123456789.nc is no result file; move it away"):
        read_folder(tmp_path)
    with pytest.raises(ValueError, match=r"0123456789.nc is damaged"):
        open_result(tmp_path / "step-000300.z.0123456789.nc")


def test_operations_of_several_steps_are_added_up():
    results = {
        step: one_result(PATCHED, CLEAN, CORRUPTED).assign_attrs(flops=3.0) for step in (0, 10)
    }
    assert join_steps(results).attrs["flops"] == 6.0


def test_a_metric_that_was_not_scored_is_refused_in_one_line():
    names = [f"{end}_value_logprob" for end in ("patched", "clean", "corrupted")]
    result = one_result(PATCHED, CLEAN, CORRUPTED).drop_vars(names)
    with pytest.raises(ValueError, match="no metric 'value_logprob'; there are logit_diff, first"):
        effect(result, "value_logprob")
