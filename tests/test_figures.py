import numpy as np
import pandas as pd
import pytest
import xarray as xr
from builders import LABELS, one_result, result_with_shares, sweep

from interp.dynamics.plateau import Phases
from interp.patching import patch
from interp.report.figures import (
    cell_label,
    effect_over_training,
    enough_and_needed,
    patch_heatmap,
    patch_heatmaps,
    training_curves,
)
from interp.results.metrics import interval, recovered

SHARES = np.array([[0.0, 0.3, 0.9], [0.1, 0.2, 0.7]])
HEADS = np.stack((SHARES, SHARES[::-1] - 0.45), 1)


def lines(figure):
    """Traces with a name, by name."""
    return {trace.name: trace for trace in figure.data if trace.name}


def bands(figure):
    return {trace.legendgroup: trace for trace in figure.data if trace.fill == "toself"}


def heatmaps(figure):
    return [trace for trace in figure.data if trace.type == "heatmap"]


def panel_titles(figure):
    return [annotation.text for annotation in figure.layout.annotations]


def test_a_heatmap_takes_its_labels_from_the_data():
    figure = patch_heatmap(result_with_shares(SHARES, site="mlp_out"))
    (panel,) = heatmaps(figure)
    assert list(panel.x) == list(LABELS)
    assert list(panel.y) == ["0", "1"]
    assert panel_titles(figure) == ["MLP output (mlp_out)"]
    assert figure.layout.yaxis.title.text == "layer"
    assert "Patched: mlp_out" in figure.layout.title.text
    assert figure.layout.coloraxis.colorbar.title.text == "recovered"


def test_a_heatmap_shows_the_shares_recovered():
    result = result_with_shares(SHARES)
    np.testing.assert_array_equal(patch_heatmap(result).data[0].z, recovered(result))


def test_heads_are_layer_by_head_with_a_panel_a_role():
    result = result_with_shares(HEADS, site="z")
    figure = patch_heatmap(result)
    assert panel_titles(figure) == [f"z at {role}" for role in LABELS]
    for panel, role in zip(heatmaps(figure), LABELS, strict=True):
        np.testing.assert_array_equal(panel.z, recovered(result).sel(role=role))
        assert list(panel.x) == ["0", "1"]
    assert figure.layout.xaxis.title.text == "head"


def test_several_sites_stand_side_by_side_each_with_its_own_values():
    results = {
        site: result_with_shares(SHARES - i, site=site)
        for i, site in enumerate(("resid_pre", "mlp_out"))
    }
    figure = patch_heatmaps(results)
    for panel, result in zip(heatmaps(figure), results.values(), strict=True):
        np.testing.assert_array_equal(panel.z, recovered(result))
    assert [title.split("(")[1] for title in panel_titles(figure)] == ["resid_pre)", "mlp_out)"]


def test_axes_and_colour_bar_do_not_hang_on_the_values_of_a_frame():
    figure = patch_heatmap(sweep(SHARES, {0: 0, 100: 6}))
    assert list(figure.layout.xaxis.range) == [-0.5, len(LABELS) - 0.5]
    assert list(figure.layout.yaxis.range) == [-0.5, len(SHARES) - 0.5]
    holder = [trace for trace in figure.data if trace.type == "scatter"]
    assert [trace.marker.coloraxis for trace in holder] == ["coloraxis"]
    assert all(len(frame.data) == len(figure.data) - 1 for frame in figure.frames)


def test_a_data_tree_of_sites_is_taken_as_it_is():
    results = {site: result_with_shares(SHARES, site=site) for site in ("resid_pre", "mlp_out")}
    assert patch_heatmaps(xr.DataTree.from_dict(results)) == patch_heatmaps(results)
    alone = xr.DataTree.from_dict(results)["mlp_out"]
    assert patch_heatmaps(alone) == patch_heatmaps({"mlp_out": results["mlp_out"]})


def test_the_colour_scale_diverges_from_0():
    figure = patch_heatmap(sweep(SHARES, {0: 6, 100: 6}))
    scale = figure.layout.coloraxis
    assert scale.cmid == 0 and scale.cmin == -scale.cmax
    assert scale.colorscale[len(scale.colorscale) // 2][0] == 0.5
    assert {trace.coloraxis for trace in (figure.data[0], *figure.frames[0].data)} == {"coloraxis"}


@pytest.mark.parametrize(
    "direction, how, ends",
    [
        ("denoising", "corrupted run ← clean activation", "0 = corrupted, 1 = clean"),
        ("noising", "clean run ← corrupted activation", "0 = clean, 1 = corrupted"),
    ],
)
def test_the_title_tells_direction_metric_and_number_of_facts(direction, how, ends):
    result = sweep(SHARES, {0: 6, 100: 6}, n=26, direction=direction)
    for figure in (
        patch_heatmap(result, metric="value_logprob"),
        effect_over_training({"attn_out": result}, metric="value_logprob"),
    ):
        title = figure.layout.title.text
        assert f"{how}; value_logprob; n = 26 facts; {ends}" in title


def test_the_slider_has_a_step_a_checkpoint_and_each_frame_its_values():
    result = xr.concat([sweep(SHARES, {50: 6}), sweep(SHARES[::-1], {400: 6, 1000: 6})], "step")
    figure = patch_heatmap(result)
    (slider,) = figure.layout.sliders
    assert [step.label for step in slider.steps] == ["50", "400", "1000"]
    assert [step.args[0] for step in slider.steps] == [("50",), ("400",), ("1000",)]
    assert [frame.name for frame in figure.frames] == ["50", "400", "1000"]
    for frame, step in zip(figure.frames, (50, 400, 1000), strict=True):
        np.testing.assert_array_equal(frame.data[0].z, recovered(result).sel(step=step))


def test_at_first_the_last_checkpoint_is_shown():
    result = xr.concat([sweep(SHARES, {50: 6}), sweep(SHARES[::-1], {400: 6})], "step")
    figure = patch_heatmap(result)
    assert figure.layout.sliders[0].active == 1
    np.testing.assert_array_equal(figure.data[0].z, recovered(result).sel(step=400))


@pytest.mark.parametrize("result", [sweep(SHARES, {100: 6}), result_with_shares(SHARES)])
def test_a_single_checkpoint_has_no_slider(result):
    figure = patch_heatmap(result)
    assert not figure.layout.sliders and not figure.frames
    np.testing.assert_array_equal(figure.data[0].z, recovered(result).squeeze())


def test_a_checkpoint_of_a_data_tree_can_be_shown():
    tree = xr.DataTree.from_dict({"attn_out": sweep(SHARES, {0: 0, 100: 6})})
    figure = patch_heatmap(tree["attn_out"].sel(step=100))
    np.testing.assert_array_equal(
        figure.data[0].z, recovered(tree["attn_out"].to_dataset()).sel(step=100)
    )


def test_a_step_without_a_measurable_gap_is_left_grey():
    figure = patch_heatmap(sweep(SHARES, {0: 0.0, 100: 0.26, 200: 0.33}, n=40))
    grey = [np.isnan(np.array(frame.data[0].z, float)) for frame in figure.frames]
    assert [g.all() for g in grey] == [True, True, False]
    assert not grey[2].any()


def test_a_cell_that_no_fact_has_is_grey_and_the_others_are_not():
    result = result_with_shares(SHARES)
    result.patched[1, 0] = np.nan
    grey = np.isnan(patch_heatmap(result).data[0].z)
    assert grey.tolist() == [[False, False, False], [True, False, False]]


def test_the_strongest_cells_are_drawn_with_their_intervals():
    result = sweep(SHARES, {0: 6, 100: 6, 300: 6})
    figure = effect_over_training({"attn_out": result})
    found = interval(result)
    cells = {
        "L0 attn_out at final": (0, 2),
        "L1 attn_out at final": (1, 2),
        "L0 attn_out at name_last": (0, 1),
        "L1 attn_out at name_last": (1, 1),
    }
    assert list(lines(figure)) == list(cells)
    for label, (layer, role) in cells.items():
        cell = found.isel(layer=layer, role=role)
        np.testing.assert_array_equal(lines(figure)[label].x, [0, 100, 300])
        np.testing.assert_array_equal(lines(figure)[label].y, cell.estimate)
        np.testing.assert_array_equal(bands(figure)[label].x, [0, 100, 300, 300, 100, 0])
        np.testing.assert_array_equal(
            bands(figure)[label].y, [*cell.high.values, *cell.low.values[::-1]]
        )
        np.testing.assert_array_equal(
            lines(figure)[label].customdata, np.stack((cell.low, cell.high), 1)
        )


def test_at_most_four_cells_a_site_and_the_number_asked_for_are_drawn_strongest_first():
    results = {
        "z": sweep(HEADS, {0: 6, 100: 6}, site="z"),
        "mlp_out": sweep(SHARES - 0.5, {0: 6, 100: 6}, site="mlp_out"),
    }
    assert list(lines(effect_over_training(results))) == [
        "L0H0 at final", "L1H0 at final", "L1H1 at final", "L0 mlp_out at final",
        "L0H0 at name_last", "L1 mlp_out at final", "L0 mlp_out at name_last",
        "L1 mlp_out at name_last",
    ]  # fmt: skip
    assert list(lines(effect_over_training(results, n_cells=2))) == [
        "L0H0 at final", "L1H0 at final",
    ]  # fmt: skip


def test_residual_streams_are_drawn_only_if_nothing_else_was_patched():
    residual = {"resid_pre": sweep(SHARES, {0: 6, 100: 6}, site="resid_pre")}
    other = {"mlp_out": sweep(SHARES - 0.5, {0: 6, 100: 6}, site="mlp_out")}
    assert "L0 resid_pre at final" in lines(effect_over_training(residual))
    assert all("mlp_out" in label for label in lines(effect_over_training(residual | other)))


def test_a_cell_is_ranked_by_the_later_half_of_training():
    early, late = sweep(SHARES, {0: 6, 100: 6}), sweep(SHARES * [1, 1.5, 0], {200: 6, 300: 6})
    figure = effect_over_training({"attn_out": xr.concat([early, late], "step")}, n_cells=2)
    assert list(lines(figure)) == ["L0 attn_out at name_last", "L1 attn_out at name_last"]


def test_steps_without_a_measurable_gap_are_left_out_of_the_lines():
    figure = effect_over_training({"attn_out": sweep(SHARES, {0: 0, 100: 6, 200: 6})})
    assert {tuple(trace.x) for trace in lines(figure).values()} == {(100, 200)}


@pytest.mark.parametrize(
    "found, shaded", [(Phases(100.0, 300.0), [(100, 300)]), (Phases(100.0, np.nan), []), (None, [])]
)
def test_the_plateau_is_shaded_where_there_is_one(found, shaded):
    figure = effect_over_training({"attn_out": sweep(SHARES, {0: 6, 400: 6})}, phases=found)
    assert [(shape.x0, shape.x1) for shape in figure.layout.shapes] == shaded
    assert ("plateau" in panel_titles(figure)) == bool(shaded)


def training_metrics():
    columns = ["step", "split", "attribute", "loss", "accuracy"]
    rows = [
        [0, "train", "average", 9.0, 0.0],
        [0, "held-out", "average", 9.5, 0.01],
        [0, "train", "major", 8.0, 0.02],
        [50, "train", "average", 2.5, 0.7],
        [50, "held-out", "average", 7.0, 0.03],
        [50, "train", "major", 2.0, 0.8],
    ]
    return pd.DataFrame(rows, columns=columns)


def test_training_curves_are_the_averages_of_both_splits_with_baseline_and_plateau():
    figure = training_curves(training_metrics(), 6.5, Phases(10.0, 40.0))
    curves = {(trace.name, trace.yaxis): list(zip(trace.x, trace.y)) for trace in figure.data}
    assert curves == {
        ("people trained on, new sentences", "y"): [(0, 9.0), (50, 2.5)],
        ("people trained on, new sentences", "y2"): [(0, 0.0), (50, 0.7)],
        ("held-out people", "y"): [(0, 9.5), (50, 7.0)],
        ("held-out people", "y2"): [(0, 0.01), (50, 0.03)],
        ("major", "y2"): [(0, 0.02), (50, 0.8)],
        ("no-knowledge baseline", "y"): [(0, 6.5), (50, 6.5)],
    }
    assert (figure.layout.yaxis.type, figure.layout.yaxis2.type) == ("log", None)
    plateaus = [shape for shape in figure.layout.shapes if shape.type == "rect"]
    assert {(shape.x0, shape.x1) for shape in plateaus} == {(10, 40)}
    assert panel_titles(figure)[0] == "attribute loss (nats per value)"


def test_sites_with_different_steps_share_a_slider():
    results = {
        "attn_out": sweep(SHARES, {0: 6, 100: 6, 200: 6}),
        "mlp_out": sweep(SHARES, {100: 6, 200: 6}, site="mlp_out"),
    }
    frames = {frame.name: frame for frame in patch_heatmaps(results).frames}
    for site, panel in zip(results, frames["200"].data, strict=True):
        np.testing.assert_array_equal(panel.z, recovered(results[site]).sel(step=200))


def test_the_strongest_cells_of_noising_are_those_that_take_most_away():
    result = sweep(1 - SHARES, {0: 6, 100: 6}, direction="noising")
    assert list(lines(effect_over_training({"attn_out": result}, n_cells=2))) == [
        "L0 attn_out at final", "L1 attn_out at final",
    ]  # fmt: skip


def test_a_run_that_knows_nothing_yet_has_no_lines():
    assert not lines(effect_over_training({"attn_out": sweep(SHARES, {0: 0, 100: 0})}))


def test_a_single_fact_can_be_shown():
    result = one_result([[[2.0]]], [5.0], [1.0])
    assert patch_heatmap(result).data[0].z.tolist() == [[0.25]]


def patched_path(model, facts, path):
    """With ends far enough apart to tell them from each other."""
    result = patch(model, facts, site=path)
    return result.assign(clean=result.clean * 0 + 9, corrupted=result.corrupted * 0 - 9)


def test_a_path_has_a_row_a_first_stop_and_a_column_a_later_one(model, facts):
    result = patched_path(model, facts, "z-q")
    figure = patch_heatmap(result)
    panel = next(
        trace
        for trace, title in zip(heatmaps(figure), panel_titles(figure))
        if title == "z → q at final"
    )
    assert list(panel.y) == [f"L{layer}H{head}" for layer in (0, 1) for head in range(4)]
    assert list(panel.x) == [f"L{layer}H{head}" for layer in (1, 2) for head in range(4)]
    place = {"layer": 1, "head": 2, "layer_1": 2, "head_1": 3, "role": "final"}
    assert panel.z[6][7] == pytest.approx(float(recovered(result).sel(place)))
    assert np.isnan(panel.z[6][0])  # layer 1 does not come before layer 1


def test_places_at_which_nothing_arrives_along_a_path_have_no_panel(model, facts):
    result = patch(model, facts, site="z-logits")
    result = result.assign(clean=result.corrupted + 9)
    assert panel_titles(patch_heatmap(result)) == ["z → logits at final"]


def test_a_layer_or_role_may_be_selected_before():
    result = result_with_shares(SHARES)
    heads = result_with_shares(HEADS, site="z")
    (row,) = heatmaps(patch_heatmap(result.sel(layer=1)))
    np.testing.assert_allclose(row.z, recovered(result)[[1]])
    figure = patch_heatmap(result.isel(layer=[1]))  # one layer that is not the first is in sight
    assert list(heatmaps(figure)[0].y) == list(figure.layout.yaxis.categoryarray) == ["1"]
    (panel,) = heatmaps(patch_heatmap(heads.sel(role="final")))
    np.testing.assert_allclose(panel.z, recovered(heads).sel(role="final"))


def test_a_path_with_one_stop_in_a_layer_is_drawn_as_its_site(model, facts):
    figure = patch_heatmap(patched_path(model, facts, "embed-v"))
    assert "embed → v at name_last" in panel_titles(figure)
    assert list(heatmaps(figure)[0].x) == ["0", "1", "2", "3"]
    assert list(heatmaps(figure)[0].y) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("site", "place", "label"),
    [
        ("z", {"layer": 1, "head": 3, "role": "final"}, "L1H3 at final"),
        ("mlp_out", {"layer": 0, "pos": 4}, "L0 mlp_out at 4"),
        ("edge", {"layer": 2, "head": 0, "dest": "a", "src": "b"}, "L2H0 edge a ← b"),
        ("mlp_post", {"layer": 2, "neuron": 16, "role": "cue"}, "L2 mlp_post 16… at cue"),
        (
            "z-q",
            {"layer": 0, "head": 1, "layer_1": 2, "head_1": 0, "role": "cue"},
            "L0H1 → L2H0.q at cue",
        ),
        ("embed-logits", {"role": "cue"}, "embed → logits at cue"),
        ("L0.mlp_out-logits", {"layer": 0, "role": "cue"}, "L0.mlp_out → logits at cue"),
    ],
)
def test_a_cell_is_named_as_the_field_names_it(site, place, label):
    assert cell_label(site, place) == label


def test_the_two_directions_stand_beside_each_other():
    denoised = {"attn_out": result_with_shares(SHARES)}
    noised = {"attn_out": result_with_shares(1 - SHARES / 2, direction="noising")}
    figure = patch_heatmaps(denoised, other=noised)
    left, right = heatmaps(figure)
    np.testing.assert_allclose(left.z, recovered(denoised["attn_out"]))
    np.testing.assert_allclose(right.z, 1 - recovered(noised["attn_out"]))
    assert [t.split(", ")[1] for t in panel_titles(figure)] == ["denoising", "noising"]
    assert "denoising: corrupted run ← clean activation; noising:" in figure.layout.title.text


@pytest.mark.parametrize("exchanged", [False, True])
def test_enough_is_drawn_across_and_needed_upwards(exchanged):
    denoised = {"attn_out": sweep(SHARES, {0: 0, 100: 6})}
    noised = {"attn_out": sweep(1 - SHARES / 2, {0: 0, 100: 6}, direction="noising")}
    pair = (noised, denoised) if exchanged else (denoised, noised)
    figure = enough_and_needed(*pair)
    cloud = figure.data[0]
    at = list(cloud.text).index("L0 attn_out at final")
    assert cloud.x[at] == pytest.approx(0.9, abs=0.02)
    assert cloud.y[at] == pytest.approx(0.45, abs=0.02)
    assert [frame.name for frame in figure.frames] == ["0", "100"]
    assert np.isnan(figure.frames[0].data[0].x).all()
