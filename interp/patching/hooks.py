"""The same interventions on any model with TransformerLens's hooks, by hooks on whole forward
passes.

For a ``TransformerBridge`` or a ``HookedRootModule`` of one's own, whose blocks can't be called one
by one: rows are run together from the first token on, with a hook at each changed layer. Equal to
``engine.Engine``, and slower. Grouped-query attention has a key and a value a group of heads;
parallel blocks have no ``resid_mid``.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.config import HEAD_SITES
from interp.data.facts import NO_TOKEN, FactSet
from interp.model.decoder import HookedDecoder
from interp.model.model_check import is_causal
from interp.patching.activations import Layer, Prompts, Run, metrics_of
from interp.patching.grid import CUTS, Cells, Rows, rows_of

HOOKS = {
    "embed": "hook_embed",
    "resid_pre": "blocks.{}.hook_resid_pre",
    "resid_mid": "blocks.{}.hook_resid_mid",
    "resid_post": "blocks.{}.hook_resid_post",
    "attn_out": "blocks.{}.hook_attn_out",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "mlp_post": "blocks.{}.mlp.hook_post",
    "z": "blocks.{}.attn.hook_z",
    "q": "blocks.{}.attn.hook_q",
    "k": "blocks.{}.attn.hook_k",
    "v": "blocks.{}.attn.hook_v",
    "pattern": "blocks.{}.attn.hook_pattern",
    "edge": "blocks.{}.attn.hook_pattern",
    "knockout": "blocks.{}.attn.hook_attn_scores",
    "head_knockout": "blocks.{}.attn.hook_attn_scores",
}
Change = Callable[[Tensor], Tensor | None]
"""Of an activation; None leaves it as it is."""


class ScoredRun(list[Layer]):
    """A run, with what it was run on and its metrics. One more layer at the end has the embeddings
    as its ``resid_pre``.
    """

    def __init__(
        self, layers: list[Layer], given: Prompts, scores: Float[np.ndarray, "metric fact"]
    ) -> None:
        super().__init__(layers)
        self.given, self.scores = given, scores


def check_hooks(model: nn.Module, sites: Collection[str]) -> None:
    """Raises a ValueError if the model lacks a site's hook."""
    for site in sites:
        for name in (HOOKS[site].format(layer) for layer in range(model.cfg.n_layers)):
            if name not in model.hook_dict:
                raise ValueError(
                    f"no site {site!r} in this {type(model).__name__}: it has no hook {name!r}; "
                    "leave it out"
                )


def reach(
    model: nn.Module, facts: FactSet, cells: Cells, may_differ: Bool[np.ndarray, "fact pos"]
) -> tuple[Cells, Bool[np.ndarray, "fact pos"]]:
    """``cells`` and ``may_differ`` for a model whose attention goes to later tokens too, as in
    BERT: every position may differ, and sources may come after their destination. As they were for
    a causal one; found by running the model on one prompt (see ``is_causal``).

    Raises:
        ValueError: it does, and there are pads or later tokens of a value for it to read.
    """
    longest = facts[int(facts.lengths.argmax())].clean.to(next(model.parameters()).device)
    if isinstance(model, HookedDecoder) or is_causal(model, longest):
        return cells, may_differ
    kind = f"this {type(model).__name__} attends to later tokens"
    if len(lengths := facts.lengths.unique().tolist()) > 1:
        raise ValueError(
            f"{kind}, so it would read the pads of prompts of {lengths[0]} to {lengths[-1]} "
            "tokens; give prompts of one length, as suite.facts(..., length=...) draws them"
        )
    if (n_value := int((facts.answers != NO_TOKEN).sum(1).max())) > 1:
        raise ValueError(
            f"{kind}, so it would read values of up to {n_value} tokens before it predicts them; "
            "use whole_value=False"
        )
    return replace(cells, causal=False), np.ones_like(may_differ)


def embedding_of(model: nn.Module) -> Float[Tensor, "d_vocab d_model"]:
    return model.embed.W_E if hasattr(model.embed, "W_E") else model.embed.weight


class HookedEngine:
    """Changes the runs of one hooked model on one batch of prompts."""

    flops = 0
    """Not counted."""

    def __init__(self, model: nn.Module, prompts: Prompts, max_bytes: float) -> None:
        self.model, self.prompts, self.max_bytes = model, prompts, max_bytes
        self.device = prompts.tokens.device
        self.n_layers, self.n_heads = model.cfg.n_layers, model.cfg.n_heads
        self.embedding = embedding_of(model)

    @torch.no_grad()
    def run(self, prompts: Prompts, sites: Collection[str] = ()) -> ScoredRun:
        """A whole forward pass; keeps what ``sites`` are, and nothing else."""
        kept = {"pattern" if site == "edge" else site for site in sites} & set(HOOKS) - set(CUTS)
        pieces, scores = [], []
        for fact in torch.arange(len(prompts.tokens)).split(self._rows_at_once(prompts)):
            fact, cache = fact.to(self.device), {}
            names = [
                (site, at)
                for site in kept
                for at in ([self.n_layers] if site == "embed" else range(self.n_layers))
            ]
            hooks = [
                (HOOKS[site].format(at), partial(_keep, cache=cache, place=(site, at)))
                for site, at in names
            ]
            scores.append(self._scores(self._forward(prompts, fact, hooks), fact))
            empty = self.embedding.new_zeros(prompts.tokens[fact].shape)
            pieces.append([_layer(cache, at, empty) for at in range(self.n_layers + 1)])
        layers = [
            Layer(**{name: torch.cat([getattr(x, name) for x in same]) for name in vars(same[0])})
            for same in zip(*pieces)
        ]
        return ScoredRun(layers, prompts, np.concatenate(scores, 1))

    def turned(self, run: Run, *, back: bool = False) -> Run:
        """The run as it is: hooks have queries and keys before any rotation."""
        return run

    def scores_of(self, run: ScoredRun) -> Float[np.ndarray, "metric fact"]:
        return run.scores

    def sweep(
        self,
        sites: list[str],
        cells: Cells,
        base: ScoredRun,
        source: Run,
        may_differ: Bool[np.ndarray, "fact pos"],
        *,
        max_bytes: float = 1e9,
    ) -> Iterator[tuple[Rows, Float[np.ndarray, "metric row"]]]:
        """As ``engine.Engine.sweep``.

        Raises:
            ValueError: the model goes on without what its hook returned.
        """
        for site in sites:
            windows = self._windows(site, cells)
            self._check_listens(site, base.given, sorted(set().union(*windows.values())))
            for layer, window in windows.items():
                differs = np.logical_or.reduce(
                    [_differs(site, base[at], source[at], cells, self.n_heads) for at in window]
                )
                if site not in CUTS:
                    differs &= may_differ
                rows = rows_of(site, layer, differs, cells)
                size = self._rows_at_once(base.given)
                for start in range(0, len(rows), size):
                    part = rows[np.arange(start, min(len(rows), start + size))]
                    fact = torch.from_numpy(part.fact).to(self.device)
                    logits = self._forward(
                        base.given, fact, _changes(site, window, part, cells, base, source)
                    )
                    yield part, self._scores(logits, fact)

    def _windows(self, site: str, cells: Cells) -> dict[int, list[int]]:
        """Layers that are changed with each that is swept; the embeddings' comes after the last."""
        if site == "embed":
            return {0: [self.n_layers]}
        swept = cells.swept(site, self.n_layers)
        return {layer: list(cells.layers(layer, self.n_layers)) for layer in swept}

    @torch.no_grad()
    def _forward(
        self, given: Prompts, fact: Int[Tensor, " row"], changes: list[tuple[str, Change]]
    ) -> Float[Tensor, "row pos d_vocab"]:
        """Logits of the rows' prompts; every change must have been asked for."""
        called = set()

        def hooked(x: Tensor, hook: object, number: int) -> Tensor | None:
            called.add(number)
            return changes[number][1](x)

        hooks = [(name, partial(hooked, number=i)) for i, (name, _) in enumerate(changes)]
        if given.noise is not None:
            hooks.insert(0, (HOOKS["embed"], lambda x, hook: x + given.noise[fact]))
        logits = self.model.run_with_hooks(given.tokens[fact], fwd_hooks=hooks)
        for i, (name, _) in enumerate(changes):
            if i not in called:
                raise RuntimeError(f"hook {name} was never called, so nothing was changed there")
        return logits

    def _scores(
        self, logits: Float[Tensor, "row pos d_vocab"], fact: Int[Tensor, " row"]
    ) -> Float[np.ndarray, "metric row"]:
        given, n_value = self.prompts, self.prompts.n_value[fact]
        slots = torch.arange(int(n_value.max()), device=fact.device)
        row, slot = torch.nonzero(slots < n_value[:, None], as_tuple=True)
        return metrics_of(logits[row, given.n_prompt[fact][row] - 1 + slot], row, slot, fact, given)

    def _check_listens(self, site: str, given: Prompts, layers: list[int]) -> None:
        """Some models compute on without what a hook returns; then every effect would be 0.

        NaN returned by a hook goes through weights of 0 too (0 · NaN = NaN): an effect of exactly 0
        is a result. Attention that sets NaN to 0 shows it at ``hook_z`` if not in the logits.
        """
        fact = torch.zeros(1, dtype=torch.long, device=self.device)
        poison = _poison_in_place if site == "resid_mid" else _poison
        for at in layers:
            name = HOOKS[site].format(at)
            plain, poisoned = (
                self._heard(given, fact, at, [(name, change)]) for change in (_leave, poison)
            )
            if all(torch.equal(x, y) for x, y in zip(plain, poisoned)):
                raise ValueError(
                    f"nothing in this {type(self.model).__name__} depends on what its hook "
                    f"{name!r} returns, so site {site!r} can't be changed; leave it out"
                )
        if site == "resid_mid":
            self._check_residual(given, fact, layers)

    def _heard(
        self, given: Prompts, fact: Int[Tensor, " row"], layer: int, changes: list
    ) -> list[Tensor]:
        """Logits with some changes, and the heads' output of a layer whose attention scores are
        changed.
        """
        cache, z = {}, HOOKS["z"].format(layer)
        if changes[0][0] == HOOKS["knockout"].format(layer) and z in self.model.hook_dict:
            changes = [*changes, (z, partial(_keep, cache=cache, place=("z", layer)))]
        return [self._forward(given, fact, changes), *cache.values()]

    def _check_residual(self, given: Prompts, fact: Int[Tensor, " row"], layers: list[int]) -> None:
        """The hook of a bridge is at the input of the MLP's LayerNorm: a new tensor returned there
        would leave the residual stream as it was, so the change is made in place; does it arrive?
        """
        names, noise = ("resid_mid", "mlp_out", "resid_post"), torch.Generator(self.device)

        def disturb(x: Tensor) -> Tensor:
            size = torch.randn(x.shape, generator=noise, device=x.device, dtype=x.dtype)
            return x.add_(size * (1 + x.abs().mean()))

        for at in layers:
            cache, noise = {}, noise.manual_seed(0)
            keep = [
                (HOOKS[site].format(at), partial(_keep, cache=cache, place=(site, at)))
                for site in names
            ]
            self._forward(given, fact, [(keep[0][0], disturb), *keep])
            mid, mlp_out, post = (cache[site, at] for site in names)
            largest = float(post.abs().max())
            if not torch.allclose(mid + mlp_out, post, rtol=1e-2, atol=1e-2 * largest):
                raise ValueError(
                    f"in this {type(self.model).__name__} a change of 'hook_resid_mid' does not "
                    "reach the residual stream; leave site 'resid_mid' out"
                )

    def _rows_at_once(self, given: Prompts) -> int:
        """Prompts whose forward pass fits into ``max_bytes``."""
        cfg, n_pos = self.model.cfg, given.tokens.shape[1]
        token = 3 * cfg.d_vocab + 4 * cfg.d_mlp + 16 * cfg.d_model + 4 * cfg.n_heads * n_pos
        return max(1, int(self.max_bytes // (n_pos * token * self.embedding.element_size())))


def _leave(x: Tensor) -> None:
    """Changes nothing."""


def _poison(x: Tensor) -> Tensor:
    return torch.full_like(x, torch.nan)


def _poison_in_place(x: Tensor) -> Tensor:
    return x.fill_(torch.nan)


def _keep(x: Tensor, *, cache: dict[tuple[str, int], Tensor], place: tuple[str, int]) -> None:
    cache[place] = x.detach().clone()


def _layer(
    cache: dict[tuple[str, int], Tensor], at: int, empty: Float[Tensor, "fact pos"]
) -> Layer:
    """What was kept of one block, patterns by destination; nothing of all else."""
    names = Layer.__dataclass_fields__
    kept = {name: cache[name, at] for name in names if (name, at) in cache}
    if ("embed", at) in cache:
        kept["resid_pre"] = cache["embed", at]
    if "pattern" in kept:
        kept["pattern"] = rearrange(kept["pattern"], "fact head dest src -> fact dest head src")
    nothing = {name: empty.new_zeros(*empty.shape, *[0] * _AXES[name]) for name in names}
    return Layer(**nothing | kept)


_AXES = {name: 2 if name in HEAD_SITES else 1 for name in Layer.__dataclass_fields__}


def _differs(
    site: str, base: Layer, source: Layer, cells: Cells, n_heads: int
) -> Bool[np.ndarray, "part source fact pos"]:
    """Where the two runs' activations differ at all; of an edge, at its destination."""
    if site in CUTS:
        seen = cells.reaching()
        n_parts = n_heads if site == "head_knockout" else 1
        return np.broadcast_to(seen, (n_parts, *seen.shape))
    name = {"embed": "resid_pre", "edge": "pattern"}.get(site, site)
    differs = getattr(base, name) != getattr(source, name)
    if site == "edge":
        of = torch.from_numpy(cells.sources).to(differs.device)[:, :, None, None]
        differs = torch.stack([(differs & sources).any(-1) for sources in of])
        return rearrange(differs, "source fact dest head -> head source fact dest").cpu().numpy()
    if site == "mlp_post":
        differs = rearrange(differs, "f p (group unit) -> f p group unit", unit=cells.n_neurons)
    differs = differs.any(-1)
    differs = differs[..., None] if differs.ndim == 2 else differs
    return rearrange(differs, "fact pos part -> part 1 fact pos").cpu().numpy()


def _changes(
    site: str, window: list[int], rows: Rows, cells: Cells, base: Run, source: Run
) -> list[tuple[str, Change]]:
    """The hooks that make each row's change, in all layers of a window."""
    at = cells.positions[rows.group, rows.fact]
    device = source[0].resid_pre.device
    row, pos = (torch.from_numpy(x).to(device) for x in at.nonzero())
    fact, part = (torch.from_numpy(x).to(device)[row] for x in (rows.fact, rows.part))
    sources = torch.from_numpy(cells.sources[rows.source, rows.fact]).to(device)[row]
    name = {"embed": "resid_pre", "edge": "pattern"}.get(site, site)

    def change(x: Tensor, layer: int) -> Tensor:
        x = x if site == "resid_mid" else x.clone()
        if site in CUTS:
            cut, heads = (
                (sources, part) if site == "head_knockout" else (sources[:, None], slice(None))
            )
            x[row, heads, pos] = x[row, heads, pos].masked_fill(cut, -torch.inf)
            return x
        new = getattr(source[layer], name)
        if site == "mlp_post":
            unit = part[:, None] * cells.n_neurons + torch.arange(cells.n_neurons, device=device)
            x[row[:, None], pos[:, None], unit] = new[fact[:, None], pos[:, None], unit]
        elif site == "pattern":
            x[row, part, pos] = new[fact, pos, part]
        elif site == "edge":
            x[row, part, pos] = torch.where(sources, new[fact, pos, part], x[row, part, pos])
        elif x.ndim == 4:
            x[row, pos, part] = new[fact, pos, part]
        else:
            x[row, pos] = new[fact, pos]
        return x

    place = HOOKS[site]
    changes = [(place.format(layer), partial(change, layer=layer)) for layer in window]
    if site in CUTS:  # a destination without any source attends to nothing
        left = torch.arange(sources.shape[1], device=device) <= pos[:, None]
        left |= not cells.causal
        alone = ~(left & ~sources).any(1)

        def silence(x: Tensor) -> Tensor:
            x = x.clone()
            x[row[alone], part[alone] if site == "head_knockout" else slice(None), pos[alone]] = 0.0
            return x

        changes += [(HOOKS["pattern"].format(layer), silence) for layer in window]
    if cells.frozen is not None:
        first = 0 if site == "embed" else window[0]

        def hold(x: Tensor, layer: int) -> Tensor:
            x = x.clone()
            x[row, pos] = getattr(base[layer], cells.frozen)[fact, pos]
            return x

        changes += [
            (HOOKS[cells.frozen].format(layer), partial(hold, layer=layer))
            for layer in range(first, len(base) - 1)
        ]
    return changes
