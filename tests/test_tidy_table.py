"""Every number of a tidy table against a loop over facts in float64, and against the figures'."""

import numpy as np
import pandas as pd
import pytest

from interp.results.metrics import interval
from interp.results.store import join_steps
from interp.results.sweep import patch_suite
from interp.results.tidy_table import tidy_table


@pytest.fixture(scope="module")
def results(suite, facts):
    """Of one site in both directions, with a gap that every step has, so that shares are large."""
    found = {}
    for direction in ("denoising", "noising"):
        result = patch_suite(suite, facts, sites=["z"], steps=(10, 30), direction=direction)["z"]
        found[direction] = result.to_dataset().assign(clean=result.corrupted + 1 + result.step / 10)
    return found


def by_loop(result, row):
    """Mean and n of a row, fact by fact."""
    part, whole, n = 0.0, 0.0, 0
    at = {"step": row.step, "layer": row.layer, "head": row["head"], "role": row.role}
    for fact in range(result.sizes["fact"]):
        if row.attribute not in ("all", str(result.attribute.values[fact])):
            continue
        patched = float(result.patched.sel(at)[fact])
        ends = [float(result[end].sel(step=row.step)[fact]) for end in ("clean", "corrupted")]
        if not np.isnan(patched):
            part, whole, n = part + patched - ends[1], whole + ends[0] - ends[1], n + 1
    share = part / whole if n else np.nan
    return (share if row.direction == "denoising" else 1 - share), n


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_every_row_is_what_a_loop_over_facts_gives(results, direction):
    result = results[direction]
    table = tidy_table(result)
    there = result.patched.notnull().any("fact").sum().item()
    assert (table.attribute == "all").sum() == there
    assert set(table.attribute) == {"all", *result.attribute.values}
    assert set(table.direction) == {direction} and set(table.metric) == {"logit_diff"}
    units = {"denoising": "share recovered", "noising": "share lost"}[direction]
    assert set(table.units) == {units}
    for _, row in table.iterrows():
        mean, n = by_loop(result, row)
        assert row["mean"] == pytest.approx(mean, rel=1e-4, abs=1e-6)  # results are in fp32
        assert row.n == n > 0


def test_bounds_are_those_of_the_figures_and_change_places_when_noising(results):
    for direction, result in results.items():
        bounds = interval(result).to_dataframe(dim_order=["step", "layer", "head", "role"])
        table = tidy_table(result).query("attribute == 'all'")
        bounds = bounds.loc[list(zip(table.step, table.layer, table["head"], table.role))]
        low, high = bounds.low.to_numpy(), bounds.high.to_numpy()
        if direction == "noising":
            low, high = 1 - high, 1 - low
        np.testing.assert_array_equal(table.low, low)
        np.testing.assert_array_equal(table.high, high)
        assert (table.low <= table.high).all() and (table.low < table.high).any()


def test_a_steps_rows_say_whether_the_runs_can_be_told_apart(results):
    result = results["denoising"]
    apart = result.clean.where(result.step != 10, result.corrupted)
    table = tidy_table(result.assign(clean=apart)).query("attribute == 'all'")
    assert not table[table.step == 10].distinguishable.any()
    assert table[table.step == 30].distinguishable.all()


def test_one_fact_has_no_interval(results):
    alone = results["denoising"].isel(fact=[0])
    table = tidy_table(alone)
    assert set(table.n) == {1} and table.low.isna().all() and table["mean"].notna().all()


def test_a_table_survives_being_written_and_read(results, tmp_path):
    hostile = ['=cmd|" /C calc"!A0', 'two\nlines, "quoted"', "<script>alert(1)</script>"]
    result = results["denoising"]
    names = np.array([hostile[i % 3] for i in range(result.sizes["fact"])], object)
    table = tidy_table(result.assign_coords(attribute=("fact", names)))
    table.to_csv(tmp_path / "z.csv", index=False)
    read = pd.read_csv(tmp_path / "z.csv")
    assert set(read.attribute) == {"all", *hostile}
    for name in ("mean", "low", "high"):
        wanted = table[name].to_numpy()
        np.testing.assert_array_equal(read[name].to_numpy().astype(wanted.dtype), wanted)


def test_results_at_one_step_have_a_table_too(results):
    result = results["denoising"].isel(step=0, drop=True)
    table = tidy_table(join_steps({7: result}))
    assert set(table.step) == {7}
