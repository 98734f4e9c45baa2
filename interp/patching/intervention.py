"""The options of patching: an ``Intervention``, and the patch grid it makes from given facts."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import cast

import numpy as np
import torch
from jaxtyping import Bool, Int

from interp.config import (
    MOST_DRAWS,
    MOST_LAYERS,
    MOST_NOISE,
    By,
    Direction,
    Frozen,
    Method,
    Replacement,
)
from interp.data.facts import NO_TOKEN, FactSet, check_tokens, role_masks
from interp.fields import LARGEST_SEED, argument, check_fields, number
from interp.jupyter import html_table
from interp.model.decoder import DecoderConfig
from interp.patching.activations import name_roles
from interp.patching.grid import PatchGrid, Shape
from interp.patching.path_patching import Stop, count_ways, is_path, parse_path
from interp.patching.sites import SITES, default_sites, names_of

_PASTED = {
    "run": "activation",
    "noise": "activation, the corrupted run being the clean prompt with noise on its names",
    "mean": "mean of the {}",
    "zero": "0",
    "resample": "another fact's token of the {}",
}


@dataclass(frozen=True)
class Intervention:
    """How activations are changed; together with sites and facts it defines a sweep."""

    by: By = "role"
    """A cell of the patch grid is all tokens of a role, or one position."""
    groups: tuple[str, ...] = ()
    """Roles or positions changed together, such as ``name_first+name_last`` or ``all``; by default
    each by itself.
    """
    sources: tuple[str, ...] = ()
    """Sources of an edge or a knockout, written as ``groups`` are; by default the same as those."""
    direction: Direction = "denoising"
    method: Method = "exact"
    """How effects are found: exactly, or estimated (see ``attribution_patching``, and
    ``edge_estimates`` for paths of two stops).
    """
    replacement: Replacement = "run"
    """What is pasted. run: the activation of the other prompt's run. noise: the other run is the
    clean prompt with Gaussian noise on the embeddings of its name tokens. For noising only are
    mean: the mean over all facts' tokens of the same role, or the same position with ``by="pos"``;
    zero: 0; and resample: the activation at another fact's token of the role or position.
    """
    layers: tuple[int, ...] = number((), least=0)
    """Layers that are changed, one at a time; by default all."""
    window: int = number(1, least=1, most=MOST_LAYERS)
    """Layers changed together: from layer − window // 2 on, as far as there are."""
    frozen: Frozen | None = None
    """Output that all later blocks keep from the base run at the changed positions: with
    ``mlp_out`` a restored residual stream acts through attention alone (the severed graph of Meng
    et al. 2022, section 2.2). For ``embed`` and ``resid_pre``.
    """
    n_neurons: int = number(16, least=1)
    """Neurons per group of ``mlp_post``."""
    noise_std: float = number(3.0, above=0, most=MOST_NOISE)
    """In standard deviations of the name tokens' embeddings (Meng et al. 2022)."""
    noise_draws: int = number(5, least=1, most=MOST_DRAWS)
    """Draws of noise that results are averaged over."""
    seed: int = number(0, least=0, most=LARGEST_SEED)
    """Seed of noise, resampling and control."""
    whole_value: bool = True
    """Score the whole value too; if False, only its first token, which takes less time."""
    control: bool = False
    """Score another fact's pair of answers too, of the same attribute and with no token in common:
    ``control_logit_diff``. A patch that moves it as far as ``logit_diff`` is not specific to the
    fact.
    """

    def __post_init__(self) -> None:
        for name in ("groups", "sources"):
            given = getattr(self, name)
            object.__setattr__(self, name, (given,) if isinstance(given, str) else given)
        check_fields(self)
        for name in ("groups", "sources"):
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))
        object.__setattr__(self, "layers", tuple(sorted(set(self.layers))))
        if self.replacement in ("mean", "zero", "resample") and self.direction != "noising":
            raise ValueError(f"{self.replacement!r} changes the clean run; use direction noising")
        for name, default in (("noise_std", 3.0), ("noise_draws", 5)):
            if self.replacement != "noise" and getattr(self, name) != default:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, which does nothing without noise; corrupt "
                    "with noise, or leave it out"
                )
        if self.method != "exact" and self.frozen:
            raise ValueError(f"{self.method} holds nothing frozen; use method exact")
        if self.method == "eap-ig" and self.replacement not in ("run", "noise"):
            raise ValueError(
                f"eap-ig goes from one run to the other, and with {self.replacement!r} there is "
                "one; use another method"
            )

    def __repr__(self) -> str:
        return f"Intervention({', '.join(f'{k}={v!r}' for k, v in self._changed().items())})"

    def _repr_html_(self) -> str:
        rows = [(name, value) for name, value in self._changed().items()]
        return html_table(f"{self}{'. Options other than the default:' * bool(rows)}", rows)

    def _changed(self) -> dict[str, object]:
        """Options that differ from their default."""
        given = {field: getattr(self, field.name) for field in fields(self)}
        return {field.name: value for field, value in given.items() if value != field.default}

    def __str__(self) -> str:
        denoising = self.direction == "denoising"
        base, source = ("corrupted", "clean") if denoising else ("clean", "corrupted")
        place = "role" if self.by == "role" else "position"
        pasted = _PASTED[self.replacement].format(place)
        if self.replacement in ("run", "noise"):
            pasted = f"{source} {pasted}"
        together = f", {self.window} layers together" if self.window > 1 else ""
        frozen = f", {self.frozen} frozen there" if self.frozen else ""
        method = "" if self.method == "exact" else f", estimated by {self.method}"
        return f"{self.direction} by {self.by}: {base} run ← {pasted}{together}{frozen}{method}"


def intervention(options: dict) -> Intervention:
    """An ``Intervention`` from keyword arguments.

    Raises:
        ValueError: an option is unknown, or its value is not allowed.
    """
    known = [field.name for field in fields(Intervention)]
    for name in options.keys() - known:
        more = "; give it to suite.facts" if name == "corruption" else ""
        raise ValueError(f"no option {name!r} of patching; there are {', '.join(known)}{more}")
    return Intervention(**options)


def check_sites(
    sites: Sequence[str], *, parallel: bool = False, direction: Direction = "denoising"
) -> list[str]:
    """``sites`` as a list; if none are given, the default sites of the model.

    Raises:
        ValueError: a site is unknown, a model with parallel blocks lacks it, or it needs the other
            direction.
    """
    if isinstance(sites, str):
        raise ValueError(f"sites is {sites!r}; give a list of sites")
    for site in argument("sites", sites, tuple[str, ...]):
        if is_path(site):
            parse_path(site)
        elif site not in SITES:
            raise ValueError(
                f"no site {site!r}; there are {', '.join(SITES)}, and paths such as z-logits"
            )
        if site == "resid_mid" and parallel:
            raise ValueError(
                "no site 'resid_mid' in a model whose attention and MLP run in parallel; leave "
                "it out"
            )
        if site in names_of(cut=True) and direction != "noising":
            raise ValueError("a knockout changes the clean run; use direction noising")
    return list(dict.fromkeys(sites or default_sites(parallel=parallel)))


def prepared(
    cfg: Shape, sites: Sequence[str], facts: FactSet, how: Intervention
) -> tuple[FactSet, PatchGrid, tuple[list, list]]:
    """The facts as they are scored, their patch grid, and the labels of its positions and of its
    sources.

    Raises:
        ValueError: model, sites, facts and options do not go together.
    """
    _check_fit(cfg, sites, how)
    if facts.corrupted is None and all(SITES[site].cut for site in starts_of(sites)):
        how = replace(how, replacement="zero")  # a cut needs no corrupted run either
    if not how.whole_value:
        facts = replace(facts, answers=facts.answers[:, :1])
    grid, labels = grid_of(facts, how)
    check_tokens(facts, cfg.d_vocab, cfg.n_ctx)
    return facts, grid, labels


def _check_fit(cfg: Shape, sites: Sequence[str], how: Intervention) -> None:
    """Raises a ValueError where ``sites`` and ``how`` don't go together on this model."""
    parts = {SITES[site].part for site in starts_of(sites)}
    if "neuron" in parts and cfg.d_mlp % how.n_neurons:
        raise ValueError(
            f"n_neurons is {how.n_neurons}, which doesn't divide the {cfg.d_mlp} neurons of "
            "an MLP; choose a divisor"
        )
    for layer in how.layers:
        if not 0 <= layer < cfg.n_layers:
            raise ValueError(f"no layer {layer} in a model of {cfg.n_layers} layers; count from 0")
    for site in sites:
        if how.frozen and site not in (before := names_of(before_block=True)):
            raise ValueError(f"frozen goes with {' and '.join(before)}, not with {site!r}")
        if how.sources and site not in (edges := names_of(at="edge")):
            raise ValueError(f"sources go with {', '.join(edges)}, not with {site!r}; use groups")
        _check_method(site, how.method)
        check_estimate(cfg, site, how.method)
        if is_path(site):
            _check_path(cfg, site, how)
        elif how.replacement in SITES[site].not_replaced_by:
            raise ValueError(
                f"site {site!r} can't be 0, which would let attention go to later tokens; paste "
                "from the corrupted run, or patch pattern"
                if how.replacement == "zero"
                else f"site {site!r} of different prompts can't be compared; paste from the "
                "corrupted run, with another name or noise, or paste zero"
            )


def _check_method(site: str, method: Method) -> None:
    """Raises a ValueError where ``method`` can't estimate what ``site`` does."""
    if not is_path(site):
        if method == "eap":
            raise ValueError(f"eap estimates paths of two stops; use atp for the site {site!r}")
    elif method in ("atp", "atp-star"):
        raise ValueError(f"{method} estimates no paths; use eap, relp or eap-ig for {site!r}")
    elif method != "exact" and len(parse_path(site)) > 2:
        raise ValueError(f"{method} estimates paths of two stops; use method exact for {site!r}")


def check_estimate(cfg: Shape, site: str, method: Method) -> None:
    """Raises a ValueError where ``method`` can't follow a change of ``site`` through this model's
    gates, or its norms of queries and keys.
    """
    if method == "relp" and getattr(cfg, "gated", False):
        raise ValueError(
            "relp has no rule here for neurons that are multiplied by a gate, as this model's are; "
            "use another method"
        )
    norm = getattr(cfg, "qk_norm", "none")
    if method == "atp-star" and site in ("q", "k") and norm != "none":
        raise ValueError(
            f"atp-star goes from {site} to the scores by a linear map, and this model has a norm "
            f"between; use rot_{site}, or another method"
        )
    last = parse_path(site)[-1].site if is_path(site) else ""
    if method != "exact" and norm == "all" and last in ("q", "k"):
        raise ValueError(
            f"{method} can't tell the {last} of single heads apart in this model, whose heads "
            "share a norm; use method exact"
        )


def _check_path(cfg: Shape, path: str, how: Intervention) -> None:
    if how.layers:
        raise ValueError(f"path {path!r} names its layers itself, as in L0.mlp_out-logits")
    if how.window > 1:
        raise ValueError(f"path {path!r} goes through single layers; use window 1")
    *before, last = parse_path(path)
    for stop in (*before, last):
        n = cfg.n_key_value_heads if stop.part == "key_value_head" else cfg.n_heads
        if (stop.layer or 0) >= cfg.n_layers or (stop.head or 0) >= (n or cfg.n_heads):
            keys = " keys and values of " if stop.part == "key_value_head" else " "
            raise ValueError(
                f"path {path!r} has a stop outside the model's {cfg.n_layers} layers of{keys}"
                f"{n} heads; count from 0"
            )
    own = cast(DecoderConfig, cfg)  # _checked lets no other model have paths
    if not any(count_ways(before, last, at, own, how.n_neurons) for at in last.layers(cfg)):
        raise ValueError(f"no stop of path {path!r} can reach the next; order their layers")


def axes_of(site: str, cfg: Shape, how: Intervention) -> dict[str, Int[np.ndarray, " label"]]:
    """Labels of a site's layers, and of its heads or neurons, in the 32 bits of a result file; of a
    path's stops layer, head, layer_1, head_1, ...
    """
    axes = {}
    for i, stop in enumerate(parse_path(site) if is_path(site) else [Stop(site)]):
        suffix, parts = f"_{i}" if i else "", stop.parts(cfg, how.n_neurons)
        if not is_path(site):
            axes["layer"] = (how.layers or range(cfg.n_layers)) if stop.has_layers else [0]
        elif stop.has_layers:
            axes[f"layer{suffix}"] = stop.layers(cfg)
        if stop.part == "neuron":
            axes[f"neuron{suffix}"] = [part * how.n_neurons for part in parts]
        elif stop.part:
            axes[f"head{suffix}"] = parts
    return {name: np.array(labels, dtype=np.int32) for name, labels in axes.items()}


def starts_of(sites: Sequence[str]) -> set[str]:
    """Sites whose activations are replaced; of a path, that of its first stop."""
    return {parse_path(site)[0].site if is_path(site) else site for site in sites}


def piece_bytes(max_memory: float) -> float:
    """The budget of activation caches, and also that of items computed together, in bytes.

    Of ``max_memory`` (gigabytes), 0.25 GB are left to the libraries, and half of the rest to
    results and to what the allocator loses.
    """
    return 0.25e9 * max(max_memory - 0.25, 0.4 * max_memory)


def memory_chunks(
    cfg: Shape, facts: FactSet, kept: Collection[str], how: Intervention, n_numbers: float
) -> list[Int[np.ndarray, " fact"]]:
    """Facts in batches whose runs, all that are held at once, fit into ``n_numbers`` numbers."""
    n_pos = facts.clean.shape[1] + facts.answers.shape[1] - 1
    size = max(1, int(n_numbers // held_by_fact(cfg, kept, how, n_pos)))
    return np.split(np.arange(len(facts)), range(size, len(facts), size))


def held_by_fact(cfg: Shape, kept: Collection[str], how: Intervention, n_pos: int) -> int:
    """Numbers that the runs of a fact keep at once, with attention's tables while they are made."""
    n_runs = {"run": 2, "noise": 2, "zero": 2, "mean": 3, "resample": 4}[how.replacement]
    of_heads = cfg.n_heads * getattr(cfg, "d_head", cfg.d_model // cfg.n_heads)
    widths = {"mlp_pre": cfg.d_mlp, "mlp_post": cfg.d_mlp, "q": of_heads, "k": of_heads}
    token = 5 * cfg.d_model + 4 * of_heads + sum(widths.get(name, 0) for name in kept)
    token += 2 * cfg.n_heads * n_pos
    return n_runs * n_pos * cfg.n_layers * token


def grid_of(facts: FactSet, how: Intervention) -> tuple[PatchGrid, tuple[list, list]]:
    """The patch grid of an intervention, and the labels of its positions and of its sources. The
    two runs may differ from the first token on in which their inputs do.
    """
    if not len(facts):
        raise ValueError("there are no facts to patch; give one or more")
    _check_facts(facts, how)
    n_value = (facts.answers != NO_TOKEN).sum(1)
    n_pos = int((facts.lengths + n_value).max()) - 1
    n = min(n_pos, facts.clean.shape[1])
    labels, positions = [], []
    for wanted in (how.groups, how.sources or how.groups):
        names, groups = _groups(facts, how.by, wanted)
        labels.append(names)
        positions.append(np.zeros((*groups.shape[:2], n_pos), bool))
        positions[-1][..., :n] = groups[..., :n]
    differs = torch.ones_like(facts.clean, dtype=torch.bool)
    if facts.corrupted is not None and how.replacement == "run":
        differs = facts.clean != facts.corrupted
    elif how.replacement == "noise":
        differs = torch.isin(facts.roles, torch.tensor(name_roles(facts)))
    may_differ = np.zeros((len(facts), n_pos), bool)
    may_differ[:, :n] = differs.numpy()[:, :n]
    may_differ = np.logical_or.accumulate(may_differ, 1)
    dest, src = positions
    grid = PatchGrid(dest, src, may_differ, how.window, how.n_neurons, how.frozen, how.layers)
    return grid, (labels[0], labels[1])


def _check_facts(facts: FactSet, how: Intervention) -> None:
    """Raises a ValueError where facts lack what an intervention needs."""
    if how.replacement == "run" and facts.corrupted is None:
        raise ValueError(
            "these facts have no corrupted prompts to patch from; give some, or ablate with "
            "direction noising and replacement mean, zero or resample"
        )
    if how.replacement == "resample" and len(facts) < 2:
        raise ValueError("'resample' needs another fact, got 1; ask for 2 or more")
    if how.control and facts.corrupted_answers is None:
        raise ValueError("a control needs corrupted answers, and these facts have none; give some")
    if how.by == "role" and not facts.has_roles:
        raise ValueError("these facts have no roles; patch by='pos', or name a role for each token")
    if how.replacement != "noise":
        return
    names = facts.role_names
    if not name_roles(facts):
        raise ValueError(
            f"noise goes on tokens whose role begins with name, and these facts have the roles "
            f"{', '.join(names) or '(none)'}; name some"
        )
    if "context" in names and (facts.roles == names.index("context")).any():
        raise ValueError(
            "noise on the name of the last sentence leaves it to be read in the context; draw the "
            "facts with n_context=0"
        )


def _groups(
    facts: FactSet, by: By, wanted: Sequence[str]
) -> tuple[list, Bool[np.ndarray, "group fact pos"]]:
    if by == "role":
        masks = role_masks(facts).numpy()
        present = np.asarray(masks.any((1, 2)))
        singles: list = [role for role, there in zip(facts.role_names, present) if there]
        masks = masks[present]
    else:
        lengths = facts.lengths.unique().tolist()
        if len(lengths) > 1:
            raise ValueError(
                f"by='pos' needs prompts of one length, got {min(lengths)} to {max(lengths)} "
                f"tokens; sample them with suite.facts(..., length={facts.lengths.mode().values}), "
                "or patch by='role'"
            )
        n = lengths[0]
        singles = list(range(n))
        masks = np.broadcast_to(np.eye(n, dtype=bool)[:, None], (n, len(facts), n))
    if not wanted:
        return singles, masks
    of = {str(single): mask for single, mask in zip(singles, masks)} | {"all": masks.any(0)}
    together = []
    for group in wanted:
        members = group.split("+")
        for member in members:
            if member not in of:
                raise ValueError(
                    f"no {by} {member!r} in group {group!r}; there are {', '.join(of)}"
                )
        together.append(np.logical_or.reduce([of[member] for member in members]))
    return list(wanted), np.stack(together)
