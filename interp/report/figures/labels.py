"""Labels and explanations of sites, labels of patches, titles of figures."""

import xarray as xr

from interp.patching.sites import SITES

_HEADINGS = {
    "z": (
        "Which heads",
        "The same for the output of single attention heads, a panel per token role.",
    ),
    "mlp_post": ("Which neurons", "The same for groups of an MLP's neurons."),
    "edge": (
        "Which attention edges",
        "One head's attention from a destination (one panel each) to a source, taken from the "
        "other run.",
    ),
    "head_knockout": (
        "Whose attention is needed",
        "One head's attention from a destination (one panel each) to a source cut off before the "
        "softmax.",
    ),
    "knockout": (
        "What attention is needed",
        "Attention of all heads from a destination (one panel each) to a source cut off before the "
        "softmax.",
    ),
}
"""Sites with a section of their own: its heading, and what its figure shows."""
_PATH = (
    "The first stop is patched; each later one reads the base run plus what that patch wrote, all "
    "else frozen; what the last stop then computes is patched into the base run. One panel per "
    "position of the first stop; positions whose patch does not reach the last stop are left out. "
    "Grey: the stops are not in order."
)
DIRECTIONS = {
    "denoising": "corrupted run ← clean activation",
    "noising": "clean run ← corrupted activation",
}
_PASTED = {
    "mean": "mean of the role",
    "zero": "0",
    "resample": "another fact's activation",
}
SHARES = {"denoising": "recovered", "noising": "lost"}
FONT = {"family": "system-ui, sans-serif", "size": 13}


def by_site(results: dict[str, xr.Dataset] | xr.DataTree) -> dict[str, xr.Dataset]:
    """What ``patch_suite`` returns, or one site's result, as one data set per site."""
    if isinstance(results, xr.DataTree):
        children = results.children or {results.attrs.get("site", ""): results}
        return {site: node.to_dataset() for site, node in children.items()}
    return {site: dataset_of(result) for site, result in results.items()}


def site_label(site: str) -> str:
    """The site in words, such as ``MLP output``; for a path ``z → logits``."""
    return SITES[site].label if site in SITES else site.replace("-", " → ")


def site_heading(site: str) -> str:
    """Heading of the site's section on a page; empty if the site is shown beside others."""
    if "-" in site:
        return f"Along the path {site_label(site)}"
    if site in SITES and not SITES[site].part and not SITES[site].is_edge:
        return ""
    return _HEADINGS.get(site, (site_label(site).capitalize(),))[0]


def site_explanation(site: str) -> str:
    """What the figure in the site's section shows; empty if its heading says it."""
    return _PATH if "-" in site else _HEADINGS.get(site, ("", ""))[1]


def components(results: dict[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """Results of sites other than the residual stream; all of them if there are no others."""
    others = {site: result for site, result in results.items() if not site.startswith("resid")}
    return others or results


def cell_label(site: str, place: dict) -> str:
    """The patch in words: ``L1H3 at final``, ``L0 mlp_out at name_last``, ``L2H0 edge final ←
    name_first``, ``L0H1 → L2H0.q at name_last``.
    """
    stops = []
    for i, stop in enumerate(site.split("-")):
        suffix = f"_{i}" if i else ""
        layer = f"L{place[f'layer{suffix}']}" if f"layer{suffix}" in place else ""
        head = f"H{place[f'head{suffix}']}" if f"head{suffix}" in place else ""
        kind = stop.split(".")[-1]
        kind = "" if kind == "z" else f".{kind}" if "-" in site and layer else f" {kind}"
        kind += f" {place['neuron']}…" if "neuron" in place and not i else ""
        stops.append(f"{layer}{head}{kind}".strip())
    label = " → ".join(stops)
    if "dest" in place:
        return f"{label} {place['dest']} ← {place['src']}"
    return f"{label} at {next(place[by] for by in ('role', 'pos') if by in place)}"


def title_of(
    text: str, result: xr.Dataset, metric: str, other: dict[str, xr.Dataset] | None = None
) -> dict:
    """Title of a figure: what it shows, and below it the patch, the metric, n, and the meaning of 0
    and 1.
    """
    n, denoising = result.sizes["fact"], result.attrs["direction"] == "denoising"
    how = f"{patch_in_words(result)}; {metric}; n = {n} facts; "
    how += "0 = corrupted, 1 = clean" if denoising else "0 = clean, 1 = corrupted"
    if other:
        ways = sorted([result, next(iter(other.values()))], key=lambda x: x.attrs["direction"])
        how = "; ".join(f"{way.attrs['direction']}: {patch_in_words(way)}" for way in ways)
        how += f"<br>{metric}; n = {n} facts; 0 = not moved, 1 = all the way to the other run"
    return {
        "text": f"{text[0].upper()}{text[1:]}<br><sup>{how}</sup>",
        "x": 0.02,
        "y": 1,
        "yanchor": "top",
        "pad": {"t": 24},
    }


def patch_in_words(result: xr.Dataset) -> str:
    """The patch in words, such as ``corrupted run ← clean activation``."""
    site = SITES.get(result.attrs["site"])
    if site is not None and site.cut:
        done = "clean run, attention cut off"
    elif (pasted := _PASTED.get(result.attrs.get("replacement", "run"))) is not None:
        done = f"clean run ← {pasted}"
    else:
        done = DIRECTIONS[result.attrs["direction"]]
    if result.attrs.get("replacement") == "noise":
        done += " (corrupted: noise on the names)"
    window = int(result.attrs.get("window", 1))
    done += f", {window} layers together" if window > 1 else ""
    done += f", {frozen} frozen there" if (frozen := result.attrs.get("frozen")) else ""
    method = result.attrs.get("method", "exact")
    return done if method == "exact" else f"{done}, estimated ({method})"


def dataset_of(result: xr.Dataset | xr.DataTree) -> xr.Dataset:
    return result.to_dataset() if isinstance(result, xr.DataTree) else result
