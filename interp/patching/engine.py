"""Exact interventions that compute only what they can change.

A cell changes an activation of the base run towards the source run. Whatever the site, the change
first reaches the residual stream entering some layer m, at known positions; all earlier layers and
positions are those of the base run, which is computed once. So cells become rows (cell, fact) that
join at their layer m, keep the base run's keys and values, recompute the positions from the first
changed one on, and in the last layer only those that are read. A row whose activation is the same
in both runs, or that nothing read depends on, is not computed: its value is the base run's. Equal
to hooks on a whole forward pass, to rounding.
"""

from collections.abc import Collection, Iterator
from dataclasses import replace

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.model.attention import Rotation, rotation
from interp.model.decoder import Block, DecoderConfig, HookedDecoder
from interp.model.model_check import check_agree
from interp.patching.activations import Layer, Prompts, Run, metrics_of
from interp.patching.edits import Edit, changed_stream
from interp.patching.grid import Cells, Rows
from interp.patching.live import Sweep, live, rows_by_entry
from interp.patching.tensor_ops import Linear, put, rotate, softmax, with_rows

TOKENS_AT_ONCE = 4096
"""More is not faster, and leaves the processor's caches."""


class Weights:
    """A block's matrix products; keys and values also apart from queries, which the last layer
    needs at fewer positions.
    """

    def __init__(self, block: Block) -> None:
        self.parallel, self.ln1, self.ln2 = block.parallel, block.ln1, block.ln2
        weight, bias = (
            rearrange(
                x, f"(head qkv d) {rest} -> qkv (head d) {rest}", head=block.attn.n_heads, qkv=3
            )
            for x, rest in ((block.attn.qkv.weight, "i"), (block.attn.qkv.bias, ""))
        )
        self.qkv = Linear(weight.flatten(0, 1), bias.flatten())
        self.q, self.kv = (
            Linear(weight[0], bias[0]),
            Linear(weight[1:].flatten(0, 1), bias[1:].flatten()),
        )
        self.out = Linear(block.attn.out.weight, block.attn.out.bias)
        self.up = Linear(block.mlp.up.weight, block.mlp.up.bias)
        self.down = Linear(block.mlp.down.weight, block.mlp.down.bias)

    def neurons(self, mid: Float[Tensor, "*cell d_model"]) -> Float[Tensor, "*cell d_mlp"]:
        """``mlp.hook_post`` on the residual stream that the MLP reads."""
        return self.up(self.ln2.unhooked(mid), gelu=True)

    def mlp(self, mid: Float[Tensor, "*cell d_model"]) -> Float[Tensor, "*cell d_model"]:
        return self.down(self.neurons(mid))


class Engine:
    """Changes the runs of one model on one batch of prompts."""

    def __init__(self, model: HookedDecoder, prompts: Prompts) -> None:
        self.model, self.prompts, self.device = model, prompts, prompts.tokens.device
        self.n_layers, self.n_heads = model.cfg.n_layers, model.cfg.n_heads
        self.blocks = [Weights(block) for block in model.blocks]
        self.unembed = Linear(model.unembed.weight)
        self.attention_flops = 0
        pos = torch.arange(prompts.tokens.shape[1], device=self.device)
        dtype = model.embed.weight.dtype
        self.turn = Rotation(*(x.to(dtype) for x in rotation(pos, model.cfg)))
        self.n_prompt, self.n_value = (x.cpu().numpy() for x in (prompts.n_prompt, prompts.n_value))
        self.n_total = self.n_prompt + self.n_value - 1
        slots = np.arange(self.n_value.max())
        read = np.minimum((self.n_prompt - 1)[:, None] + slots, (self.n_total - 1)[:, None])
        self.read = torch.from_numpy(read).to(self.device)

    @property
    def flops(self) -> int:
        """Floating-point operations of all matrix products so far."""
        kinds = ("qkv", "q", "kv", "out", "up", "down")
        products = [
            self.unembed,
            *(getattr(block, kind) for block in self.blocks for kind in kinds),
        ]
        return sum(product.flops for product in products) + self.attention_flops

    @torch.inference_mode()
    def run(self, prompts: Prompts, sites: Collection[str] = ()) -> Run:
        """A whole forward pass, with the neurons only if ``sites`` has them."""
        resid, layers = self.model.embed(prompts.tokens), []
        if prompts.noise is not None:
            resid = resid + prompts.noise
        pos = torch.arange(prompts.tokens.shape[1], device=self.device)
        for block in self.blocks:
            q, k, v = self.heads(block, resid, pos[None])
            z = self.weigh(softmax(self.all_scores(q, k)), v)
            attn_out = block.out(z.flatten(2))
            mid = resid if block.parallel else resid + attn_out
            neurons = block.neurons(mid)
            mlp_out = block.down(neurons)
            post = mid + mlp_out + (attn_out if block.parallel else 0)
            neurons = neurons if "mlp_post" in sites else neurons[..., :0].clone()
            layers.append(
                Layer(resid, mid, post, attn_out, mlp_out, z, q, k, v, neurons, z[..., :0].clone())
            )
            resid = post
        return layers

    def turned(self, run: Run, *, back: bool = False) -> Run:
        """A run with its queries and keys rotated to their positions, or turned back, so that those
        of different positions can be compared.
        """
        cos, sin = self.turn.cos, -self.turn.sin if back else self.turn.sin
        return [
            replace(layer, q=rotate(layer.q, cos, sin), k=rotate(layer.k, cos, sin))
            for layer in run
        ]

    def sweep(
        self,
        sites: list[str],
        cells: Cells,
        base: Run,
        source: Run,
        may_differ: Bool[np.ndarray, "fact pos"],
        *,
        max_bytes: float = 1e9,
    ) -> Iterator[tuple[Rows, Float[np.ndarray, "metric row"]]]:
        """Metrics of every row that can differ from the base run, in portions, in no particular
        order. Where not ``may_differ``, the two runs differ by rounding at most.
        """
        sweep = Sweep(self, cells, base, source, may_differ)
        apart = cells.window > 1 or cells.frozen is not None
        for together in [[site] for site in sites] if apart else [sites]:
            waiting = rows_by_entry(sweep, together)
            for entry in range(self.n_layers + 1):
                rows, at = live(sweep, waiting.pop(entry, []), entry)
                n_window = self.n_total[rows.fact] - at.argmax(1)
                for part in self._portions(n_window, self.n_value[rows.fact], max_bytes):
                    yield rows[part], self._changed(sweep, entry, rows[part], at[part])
            assert not waiting, f"changes at layers {sorted(waiting)} of {self.n_layers}"

    @torch.inference_mode()
    def _changed(
        self, sweep: Sweep, entry: int, rows: Rows, at: np.ndarray
    ) -> Float[np.ndarray, "metric row"]:
        row, pos = (torch.from_numpy(x).to(self.device) for x in at.nonzero())
        n_window = int((self.n_total[rows.fact] - at.argmax(1)).max())
        fact = torch.from_numpy(rows.fact).to(self.device)
        stream = changed_stream(sweep, entry, rows, row, pos, fact[row])
        goes_on = sweep.cells.window > 1 or sweep.cells.frozen is not None
        edit = Edit(sweep, rows) if goes_on else None
        return self.propagate(sweep.base, entry, fact, row, pos, stream, n_window, edit)

    @torch.inference_mode()
    def propagate(
        self,
        base: Run,
        entry: int,
        fact: Int[Tensor, " row"],
        row: Int[Tensor, " change"],
        pos: Int[Tensor, " change"],
        stream: Float[Tensor, "change d_model"],
        n_window: int,
        edit: Edit | None = None,
    ) -> Float[np.ndarray, "metric row"]:
        """Metrics of rows whose residual stream entering layer ``entry`` is ``stream`` at the given
        rows and positions, all within the last ``n_window``, and that of ``base`` elsewhere.
        """
        n_value = self.prompts.n_value[fact]
        read = self.read[fact, : int(n_value.max())]
        if entry == self.n_layers:
            resid = base[-1].resid_post[fact[:, None], read]
            _put_all(resid, read, row, pos, stream)
            return self.scores(resid, fact)
        start = (self.prompts.n_prompt[fact] + n_value - 1 - n_window).clamp(min=0)
        window = start[:, None] + torch.arange(n_window, device=self.device)
        for index in range(entry, self.n_layers):
            dest = read if index == self.n_layers - 1 else window
            if index > entry or edit:
                if index == entry:
                    resid = base[index].resid_pre[fact[:, None], window]
                    _put_all(resid, window, row, pos, stream)
                resid = self._later_layer(base, index, fact, resid, window, dest, edit)
            else:
                resid = self._first_layer(base, index, fact, row, pos, stream, dest)
            if edit:
                edit.check_applied(index, window, dest)
        return self.scores(resid, fact)

    def _first_layer(
        self,
        run: Run,
        index: int,
        fact: Int[Tensor, " row"],
        row: Int[Tensor, " change"],
        pos: Int[Tensor, " change"],
        stream: Float[Tensor, "change d_model"],
        dest: Int[Tensor, "row dest"],
    ) -> Float[Tensor, "row dest d_model"]:
        """The layer at which rows join: keys, values and queries are new at the changes only."""
        block, base = self.blocks[index], run[index]
        q, k, v = self.heads(block, stream, pos)
        keys, values = (with_rows(x, fact, row, pos, new) for x, new in ((base.k, k), (base.v, v)))
        queries, resid = (x[fact[:, None], dest] for x in (base.q, base.resid_pre))
        put(queries, dest, row, pos, q)
        _put_all(resid, dest, row, pos, stream)
        return self._finish(index, resid, queries, keys, values, dest, None)

    def _later_layer(
        self,
        run: Run,
        index: int,
        fact: Int[Tensor, " row"],
        resid: Float[Tensor, "row pos d_model"],
        window: Int[Tensor, "row pos"],
        dest: Int[Tensor, "row dest"],
        edit: Edit | None,
    ) -> Float[Tensor, "row dest d_model"]:
        """A layer all of whose inputs in the window are new; it answers at ``dest``."""
        block, base = self.blocks[index], run[index]
        if edit:
            resid = edit(resid, "resid_pre", index, window)
        if dest is window:
            q, k, v = self.heads(block, resid, window)
        else:
            k, v = self.heads(block, resid, window, kinds="kv")
            resid = resid.gather(
                1, (dest - window[:, :1])[..., None].expand(-1, -1, resid.shape[2])
            )
            (q,) = self.heads(block, resid, dest, kinds="q")
        if edit:
            q, k, v = (
                edit(q, "q", index, dest),
                edit(k, "k", index, window),
                edit(v, "v", index, window),
            )
        rows = torch.arange(len(fact), device=self.device)[:, None].expand_as(window)
        keys, values = (
            with_rows(x, fact, rows, window, new) for x, new in ((base.k, k), (base.v, v))
        )
        return self._finish(index, resid, q, keys, values, dest, edit)

    def _finish(
        self,
        index: int,
        resid: Float[Tensor, "row dest d_model"],
        q: Float[Tensor, "row dest head d_head"],
        keys: Float[Tensor, "row src head d_head"],
        values: Float[Tensor, "row src head d_head"],
        dest: Int[Tensor, "row dest"],
        edit: Edit | None,
    ) -> Float[Tensor, "row dest d_model"]:
        block = self.blocks[index]
        scores = self._scores(q, keys, dest)
        if edit is None:
            attn_out = block.out(self.weigh(softmax(scores), values).flatten(2))
            mid = resid if block.parallel else resid + attn_out
            return mid + block.mlp(mid) + (attn_out if block.parallel else 0)
        pattern = edit.pattern(softmax(edit.scores(scores, index, dest)), index, dest)
        z = edit(self.weigh(pattern, values), "z", index, dest)
        attn_out = edit(block.out(z.flatten(2)), "attn_out", index, dest)
        mid = resid if block.parallel else edit(resid + attn_out, "resid_mid", index, dest)
        neurons = edit(block.neurons(mid), "mlp_post", index, dest)
        mlp_out = edit(block.down(neurons), "mlp_out", index, dest)
        post = mid + mlp_out + (attn_out if block.parallel else 0)
        return edit(post, "resid_post", index, dest)

    def heads(
        self, block: Weights, resid: Tensor, pos: Tensor, kinds: str = "qkv"
    ) -> tuple[Tensor, ...]:
        """Queries, scaled and rotated, rotated keys, and values of a residual stream at ``pos``."""
        product: Linear = getattr(block, kinds)
        heads = product(block.ln1.unhooked(resid)).unflatten(-1, (len(kinds), self.n_heads, -1))
        turned = kinds.replace("v", "")
        cos, sin = (table[pos].unsqueeze(-3) for table in self.turn)
        x = rotate(heads[..., : len(turned), :, :], cos, sin)
        parts = dict(zip(turned, x.unbind(-3))) | {"v": heads[..., -1, :, :]}
        if "q" in kinds:
            parts["q"] = parts["q"].mul_(self.model.cfg.d_head**-0.5)
        return tuple(parts[kind] for kind in kinds)

    def _scores(
        self,
        q: Float[Tensor, "row dest head d_head"],
        keys: Float[Tensor, "row src head d_head"],
        dest: Int[Tensor, "row dest"],
    ) -> Float[Tensor, "row head dest src"]:
        """Attention scores; −inf for sources after their destination."""
        self.attention_flops += 2 * q.numel() * keys.shape[1]
        scores = q.movedim(2, 1) @ rearrange(keys, "row src head d -> row head d src")
        src = torch.arange(keys.shape[1], device=q.device)
        future = torch.zeros(*dest.shape, len(src), dtype=q.dtype, device=q.device)
        return scores.add_(future.masked_fill_(src > dest[..., None], -torch.inf)[:, None])

    def weigh(
        self,
        pattern: Float[Tensor, "row head dest src"],
        values: Float[Tensor, "row src head d_head"],
    ) -> Float[Tensor, "row dest head d_head"]:
        self.attention_flops += 2 * pattern.numel() * values.shape[-1]
        return (pattern @ values.movedim(2, 1)).movedim(1, 2)

    def all_scores(
        self, q: Float[Tensor, "fact pos head d_head"], k: Float[Tensor, "fact pos head d_head"]
    ) -> Float[Tensor, "fact head dest src"]:
        return self._scores(q, k, torch.arange(q.shape[1], device=q.device).expand(q.shape[:2]))

    def pattern(self, layer: Layer) -> Float[Tensor, "fact head dest src"]:
        """Of a layer's queries and keys, or as it was given."""
        if layer.pattern.shape[-1]:
            return rearrange(layer.pattern, "fact dest head src -> fact head dest src")
        return softmax(self.all_scores(layer.q, layer.k))

    @torch.inference_mode()
    def scores_of(self, run: Run) -> Float[np.ndarray, "metric fact"]:
        """Metrics of a run left as it is."""
        fact = torch.arange(len(self.read), device=self.device)
        return self.scores(run[-1].resid_post[fact[:, None], self.read], fact)

    @torch.inference_mode()
    def scores(
        self, resid: Float[Tensor, "row read d_model"], fact: Int[Tensor, " row"]
    ) -> Float[np.ndarray, "metric row"]:
        """Metrics of ``METRICS`` from the last residual stream at the positions that predict the
        value.
        """
        given = self.prompts
        n_read = resid.shape[1]
        row, slot = torch.nonzero(
            torch.arange(n_read, device=fact.device) < given.n_value[fact][:, None], as_tuple=True
        )
        return metrics_of(self.logits(resid[row, slot]), row, slot, fact, given)

    def logits(self, resid: Float[Tensor, "*cell d_model"]) -> Float[Tensor, "*cell d_vocab"]:
        """Of the last residual stream."""
        return self.unembed(self.model.ln_final.unhooked(resid))

    def _portions(
        self, n_window: Int[np.ndarray, " row"], n_read: Int[np.ndarray, " row"], max_bytes: float
    ) -> Iterator[Int[np.ndarray, " part"]]:
        """Rows in pieces that are much alike and hold at most ``TOKENS_AT_ONCE`` tokens, or what
        fits into memory.
        """
        n_pos = self.prompts.tokens.shape[1]
        token, row = row_size(self.model.cfg, n_pos, int(self.n_value.max()))
        size = self.model.embed.weight.element_size()
        order, start = np.lexsort((n_window, n_read)), 0
        while start < len(order):
            widest = np.maximum.accumulate(n_window[order[start : start + TOKENS_AT_ONCE]])
            count = np.arange(1, len(widest) + 1)
            fits = widest * count <= TOKENS_AT_ONCE
            fits &= size * count * (widest * token + row) <= max_bytes
            end = start + max(1, int(fits.sum()))
            yield order[start:end]
            start = end


@torch.inference_mode()
def check_same_logits(engine: Engine, run: Run, n: int = 2) -> None:
    """Raises a ValueError unless the engine's logits of its clean ``run``, where they are read, are
    those of the model's own forward, on ``n`` of the facts at even distances. Takes a forward pass
    of those prompts.
    """
    fact = torch.linspace(0, len(engine.read) - 1, min(n, len(engine.read)), device=engine.device)
    fact = fact.long()
    read, rows = engine.read[fact], torch.arange(len(fact), device=engine.device)[:, None]
    own = engine.model(engine.prompts.tokens[fact])[rows, read].flatten(0, 1)
    check_agree(engine.logits(run[-1].resid_post[fact[:, None], read].flatten(0, 1)), own)


def _put_all(
    resid: Float[Tensor, "row dest d_model"],
    dest: Int[Tensor, "row dest"],
    row: Int[Tensor, " change"],
    pos: Int[Tensor, " change"],
    stream: Float[Tensor, "change d_model"],
) -> None:
    """Raises a RuntimeError unless every change at a position that ``dest`` holds was made."""
    n_done, n_due = put(resid, dest, row, pos, stream), (dest[row] == pos[:, None]).any(1).sum()
    if n_done != n_due:
        raise RuntimeError(f"{n_done} of {int(n_due)} changes were applied")


def row_size(cfg: DecoderConfig, n_pos: int, n_value: int) -> tuple[int, int]:
    """Numbers that a row takes while it is computed: of each of its tokens, and beside them."""
    token = 2 * cfg.d_mlp + 12 * cfg.d_model + 3 * cfg.n_heads * n_pos
    return token, 6 * n_pos * cfg.d_model + 3 * n_value * cfg.d_vocab
