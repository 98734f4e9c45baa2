"""The tables and figures of docs/findings.md, from a folder of studies: ``python
docs/make_findings.py studies/laptop`` puts them into analyses/results/laptop; without a folder the
figures are drawn anew from the tables that are there. Only figures that a document shows are kept.
"""

import shutil
import sys
from importlib import import_module
from pathlib import Path

import pandas as pd
from make_figures import browser_page, write_png

from analyses.registry import registered
from interp.report.page import anchor

RESULTS = Path(__file__).parents[1] / "analyses" / "results" / "laptop"


def main() -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    for folder in sys.argv[1:]:
        for path in (*Path(folder).glob("*.csv"), *Path(folder).glob("*.json")):
            shutil.copy(path, RESULTS)
    shown = "".join(path.read_text() for path in Path(__file__).parent.glob("*.md"))
    with browser_page() as page:
        for name, analysis in registered().items():
            if not analysis.study:
                continue
            stem = name.replace("-", "_")
            found = RESULTS.glob(f"{stem}*.csv")
            tables = {path.stem: pd.read_csv(path) for path in sorted(found)}
            if not tables:
                continue
            base = analysis.config(preset="laptop").base
            figures = import_module(analysis.study).figures(tables, base)
            for heading, figure in figures.items():
                picture = f"{name}-{anchor(heading)}.png"
                if picture in shown:
                    write_png(page, figure, RESULTS / picture)


if __name__ == "__main__":
    main()
