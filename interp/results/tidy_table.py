"""Results of one site as a tidy table: one row for each step, patch, attribute and direction."""

import pandas as pd
import xarray as xr

from interp.results.metrics import distinguishable, moved, of_metric

_SHARES = {"denoising": "share recovered", "noising": "share lost"}


def tidy_table(result: xr.Dataset, *, metric: str = "logit_diff") -> pd.DataFrame:
    """Shares recovered (noising: lost) of one site, for each attribute and for ``all`` of them.

    Columns are those of step, layer, head, role (or position) and so on that the site has, then

    - ``attribute``, ``direction``, ``metric``;
    - ``mean``: mean (patched − corrupted) ÷ mean (clean − corrupted) over facts; when noising, 1
      minus that; ``low`` and ``high``: its 95 % bootstrap interval over facts, empty for one fact;
    - ``n``: facts that have this patch; ``units`` of mean, low and high;
    - ``distinguishable``: whether clean and corrupted runs can be told apart at this step. Where
      they can't, figures are grey, and a share means nothing.

    Patches that no fact has are left out.
    """
    attribute = result.attribute.values.astype(str)
    groups = {"all": result}
    for name in dict.fromkeys(attribute):
        groups[name] = result.isel(fact=attribute == name)
    direction = result.attrs["direction"]
    said = {"direction": direction, "metric": metric, "units": _SHARES[direction]}
    tables = [_rows(of, metric).assign(attribute=name, **said) for name, of in groups.items()]
    table = pd.concat(tables, ignore_index=True)
    last = ["attribute", "direction", "metric"]
    last += ["mean", "low", "high", "n", "units", "distinguishable"]
    return table[[*(name for name in table if name not in last), *last]]


def _rows(result: xr.Dataset, metric: str) -> pd.DataFrame:
    shares = moved(result, metric).rename(estimate="mean")
    patched = of_metric(result, metric).patched
    shares = shares.assign(n=patched.notnull().sum("fact"))
    shares = shares.assign(distinguishable=distinguishable(result, metric))
    dims = [name for name in patched.dims if name != "fact"]
    table = shares.reset_coords(drop=True).to_dataframe(dim_order=dims)
    return table[table.n > 0].reset_index()
