"""The figures of docs/patching.md, from the demo run: ``python docs/make_figures.py``, or
some of them by name.

Needs a browser for playwright; ``REPORT_BROWSER=chromium`` takes the system's.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which

import plotly.graph_objects as go
from playwright.sync_api import Page, sync_playwright

import interp
from interp.report.figures import cell_label, enough_and_needed, patch_heatmaps
from interp.results.metrics import moved

FOLDER = Path(__file__).parent / "figures"
N_FACTS = 120


def main() -> None:
    suite = interp.load_suite("checkpoints/demo")
    last = suite.steps[-1]
    facts = suite.facts(N_FACTS)
    written = ["attn_out", "mlp_out"]
    names = "name_first+name_middle+name_last"
    swept = {
        "stream": {"sites": ["resid_pre", *written]},
        "heads": {"sites": ["z"]},
        "qkv": {"sites": ["q", "k", "v", "pattern"]},
        "edge": {"sites": ["edge"]},
        "neurons": {"sites": ["mlp_post"]},
        "knockout": {"sites": ["knockout"], "window": 2, "direction": "noising"},
        "head_knockout": {
            "sites": ["head_knockout"],
            "groups": ["name_last", "final"],
            "sources": ["name_first+name_middle"],
            "direction": "noising",
        },
        "free": {"sites": ["resid_pre"]},
        "frozen-mlp_out": {"sites": ["resid_pre"], "frozen": "mlp_out"},
        "frozen-attn_out": {"sites": ["resid_pre"], "frozen": "attn_out"},
        "noise": {"sites": ["mlp_out"], "replacement": "noise", "window": 3},
        "groups": {"sites": ["resid_pre"], "groups": [names, "final", "all"]},
        "paths": {"sites": ["z-logits", "mlp_out-logits"]},
    }
    for ablation in ("mean", "resample", "zero"):
        swept[ablation] = {"sites": written, "replacement": ablation, "direction": "noising"}
    for corruption in ("held-out", "swap-first", "swap-middle", "swap-last"):
        swept[corruption] = {"sites": ["resid_pre"]}
    figures = {}
    wanted = sys.argv[1:] or [*swept, "both"]
    for name, options in swept.items():
        if name not in wanted:
            continue
        of = suite.facts(N_FACTS, corruption=name) if "sw" in name or "held" in name else facts
        tree = interp.patch_suite(suite, of, steps=[last], **options)
        figures[name] = patch_heatmaps(tree)
        say_strongest(name, tree)
    if "both" in wanted:
        sites = ["attn_out", "mlp_out", "z"]
        both = [
            interp.patch_suite(suite, facts, sites=sites, steps=[last], direction=direction)
            for direction in ("denoising", "noising")
        ]
        figures["both"] = enough_and_needed(*map(interp.report.figures.by_site, both))
    FOLDER.mkdir(exist_ok=True)
    with browser_page() as page:
        for name, figure in figures.items():
            write_png(page, figure, FOLDER / f"{name}.png")


def say_strongest(name: str, tree) -> None:
    """For the captions."""
    for site, result in interp.report.figures.by_site(tree).items():
        shares = moved(result).estimate.isel(step=0)
        shares = shares.stack(cell=shares.dims).dropna("cell")
        order = shares.argsort().values[::-1][:5]
        index = shares.indexes["cell"]
        cells = (dict(zip(index.names, index[i])) for i in order)
        print(
            name,
            "; ".join(
                f"{cell_label(site, c)} {float(shares[i]):.2f}" for c, i in zip(cells, order)
            ),
        )


@contextmanager
def browser_page() -> Iterator[Page]:
    """To draw figures on."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=which(os.environ.get("REPORT_BROWSER", "chromium")),
            args=["--no-sandbox"],
        )
        yield browser.new_page(viewport={"width": 1200, "height": 900})


def write_png(page, figure: go.Figure, path: Path) -> None:
    width = figure.layout.width or 980
    page.set_content(figure.update_layout(width=width).to_html(config={"displayModeBar": False}))
    page.wait_for_selector(".main-svg")
    page.locator(".plotly-graph-div").screenshot(path=path)


if __name__ == "__main__":
    main()
