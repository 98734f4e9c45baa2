"""The tables and the figure of "Eight layers" in docs/localization.md:

    python docs/make_depth.py "deep, seed 0=runs/deep-0" "small pools=runs/pools-0" ...

Localizes each run, or reuses its results, and measures attention in whole biographies at every
checkpoint. Needs a browser for the image, as ``interp-report --format png``.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from plotly.colors import qualitative
from plotly.subplots import make_subplots

from analyses.localization import LocalizationConfig
from analyses.localization.localize_run import run
from analyses.phases.training_phases import attention_over_training
from interp.localization.formation import Localization
from interp.report.images import images
from interp.statistics import gap_is_precise, share_interval

HERE = Path(__file__).parent
TABLES, FIGURE = HERE.parent / "analyses" / "results" / "depth", HERE / "figures" / "depth.png"
PAPER = HERE.parent / "analyses" / "data" / "paper_curves.csv"
N_FACTS = 64
"""Of each attribute."""
HEADS, MLPS, READ, ATTENTION = (
    "share lost without all heads of a layer, final ← names",
    "share lost with the MLP swapped at final",
    "how often the value can be read off at final, after the layer",
    "attention to names where a value begins, whole biographies",
)


def main() -> None:
    tables: dict[str, list[pd.DataFrame]] = {}
    for given in sys.argv[1:]:
        name, folder = given.split("=", 1)
        _, found = run(LocalizationConfig(ckpt=folder, facts=N_FACTS))
        made = {
            "shares": shares(found),
            "readable": readable(found),
            "times": times(found),
            "attention": attention_over_training(Path(folder), "cpu"),
            "components": found.to_dataframe(),
        }
        for table, rows in made.items():
            tables.setdefault(table, []).append(rows.assign(run=name))
    TABLES.mkdir(exist_ok=True)
    whole = {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}
    for name, table in whole.items():
        first = [x for x in table if x == "run"]
        table = table[first + [x for x in table if x != "run"]]
        table.round(4).to_csv(TABLES / f"{name}.csv", index=False)
    FIGURE.write_bytes(images({"depth": by_layer(whole)}, "png")["depth"])


def shares(found: Localization) -> pd.DataFrame:
    """What is lost without the heads of a layer, and with an MLP swapped, of the gap between clean
    and corrupted run, with 95 % intervals over facts; from the step on at which the gap is precise.
    """
    needed = found.answers["needs"]
    needed = needed.isel(cell=np.flatnonzero(np.isin(needed.kind.values, ("layer", "mlp", "all"))))
    rows = []
    for step in needed.step.values:
        here = needed.sel(step=step)
        gap = (here.clean - here.corrupted).values
        if not gap_is_precise(gap):
            continue
        low, high = share_interval(here.effect.values, gap[None])
        columns = ("component", "role", "place", "kind")
        labels = {x: here[x].values.astype(str) for x in columns}
        share = here.effect.mean("fact").values / gap.mean()
        rows.append(
            pd.DataFrame({**labels, "share": share, "low": low, "high": high, "step": step})
        )
    table = pd.concat(rows, ignore_index=True)
    layer = table.component.str.extract(r"(\d+)", expand=False)
    return table.assign(layer=layer.astype(float)).rename(columns={"role": "mechanism"})


def readable(found: Localization) -> pd.DataFrame:
    """How often the value can be read off the residual stream at the last step: by the model's own
    weights (at final the unembedding, at names the best head's OV) and by a linear probe.
    """
    own, probed = (
        found.answers[x].isel(step=-1).accuracy.sel(of="all") for x in ("readings", "probes")
    )
    heads = own.sel(reader=[x for x in own.reader.values if x != "unembed"]).max("reader")
    unembed = own.sel(reader="unembed", drop=True)
    best = xr.where(own.role == "final", unembed, heads)
    tables = [
        x.rename("accuracy").to_dataframe()["accuracy"].reset_index().assign(reader=reader)
        for reader, x in (("own weights", best), ("probe", probed))
    ]
    return pd.concat(tables, ignore_index=True)


def times(found: Localization) -> pd.DataFrame:
    """When each curve had made 10, 50 and 90 % of its rise; empty where there was no rise."""
    kept = ["onset", "midpoint", "completion"]
    kept += [f"{x}_{bound}" for x in kept for bound in ("low", "high")] + ["reason"]
    return found.formed[kept].to_dataframe()[kept].reset_index()


def by_layer(tables: dict[str, pd.DataFrame]) -> go.Figure:
    """Four panels by layer, a line a run; the paper's attention beside ours."""
    titles = (HEADS, MLPS, READ, ATTENTION)
    figure = make_subplots(2, 2, subplot_titles=titles, shared_xaxes=True, vertical_spacing=0.12)
    runs = list(dict.fromkeys(tables["shares"].run))
    of = {name: _panels(tables, name) for name in runs}
    paper = pd.read_csv(PAPER).query("figure == 'F' and panel == 'attribute_to_name'")
    paper = paper[paper.x == paper.x.max()]
    layers = paper.series.str.extract(r"(\d+)", expand=False).astype(int) - 1
    of["the paper"] = {ATTENTION: (layers.to_numpy(), paper.y.to_numpy(), None, None)}
    for (name, panels), color in zip(of.items(), qualitative.Safe):
        for panel, (layer, y, low, high) in panels.items():
            i = titles.index(panel)
            error = None
            if low is not None:
                error = {"array": high - y, "arrayminus": y - low, "thickness": 1}
            figure.add_scatter(
                x=layer, y=y, name=name, legendgroup=name, error_y=error, line_color=color,
                mode="lines+markers", showlegend=i == 3, row=i // 2 + 1, col=i % 2 + 1,
            )  # fmt: skip
    figure.update_xaxes(title_text="layer, the first is 0", row=2)
    figure.update_yaxes(rangemode="tozero")
    return figure.update_layout(template="plotly_white", height=800, width=1100)


def _panels(tables: dict[str, pd.DataFrame], name: str) -> dict[str, tuple]:
    """Layers, values and bounds of each panel, of one run at its last step."""
    share, read, looks = (
        tables[x][tables[x].run == name] for x in ("shares", "readable", "attention")
    )
    last = share[share.step == share.step.max()]
    heads = last.query("kind == 'layer' and place == 'final ← names'")
    mlps = last.query("kind == 'mlp' and place == 'final'")
    read = read.query("reader == 'own weights' and role == 'final' and labels == 'real'")
    read = read[read.site == "resid_post"].sort_values("layer")
    looks = looks[looks.step == looks.step.max()].sort_values("layer")
    panels = {}
    for panel, table in ((HEADS, heads), (MLPS, mlps)):
        bounds = (table[x].to_numpy() for x in ("low", "high"))
        panels[panel] = (table.layer.to_numpy(), table.share.to_numpy(), *bounds)
    panels[READ] = (read.layer.to_numpy(), read.accuracy.to_numpy(), None, None)
    panels[ATTENTION] = (looks.layer.to_numpy(), looks.attribute_to_name.to_numpy(), None, None)
    return panels


if __name__ == "__main__":
    main()
