"""Windows as dense blocks: window(q, k, v)   becomes   attention(q[b], k[near b], v[near b]) …

A mask over full attention hides pairs but still computes them. Here each block of neighbouring
queries attends to the one run of keys that any of them sees, so that every engine does less work,
with nothing but its ordinary attention. Only where a block's queries don't all see the same keys
is a mask added, and one mask serves every block: each takes a slice of it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from ditc.passes.window import Window
from ditc.runtime.errors import LoweringError

__all__ = ["Block", "blocked_window_attention", "blocks_of", "multiply_adds", "query_block"]

MOST_BLOCKS = 64
TILE = 64
ROW_GROUP = 16


@dataclass(frozen=True)
class Block:
    """A run of queries and the one run of keys they attend to; all ranges are half open.

    Attributes:
        start: first query.
        stop: end of the queries.
        first: first key that one of the queries sees.
        last: end of the keys.
        uniform: whether every query sees every key, so that no mask is needed.
    """

    start: int
    stop: int
    first: int
    last: int
    uniform: bool


def query_block(tokens: int, window: Window) -> int:
    """Return how many queries to take at a time, a multiple of `window.block`.

    A block of b queries touches b + 2 radius keys, so a small block wastes few pairs; but each
    block copies and repacks its keys, which costs as much as some c more queries. The cost of a
    query, (b + 2 radius) (1 + c / b), is least at b = sqrt(2 c radius). On ONNX Runtime's CPU
    provider c is some 30 to 50 and the cost flat around b = 10 sqrt(radius), here taken to a
    multiple of 64. Then: no more than 64 blocks a site, to keep graphs small; even blocks, so
    that the last is no crumb; and whole blocks of the window, of which a single one needs no mask
    and is taken where it is at least half as large.

    Args:
        tokens: length of the sequence, at least 1.
        window: which keys a query may see.
    """
    size = TILE * max(1, round(10 * math.sqrt(window.radius) / TILE))
    size = max(size, TILE * math.ceil(tokens / (MOST_BLOCKS * TILE)))
    if 2 * window.block >= size:
        return window.block
    count = math.ceil(tokens / size)
    step = math.lcm(window.block, ROW_GROUP) if window.block < ROW_GROUP else window.block
    return step * math.ceil(tokens / (count * step))


def blocks_of(tokens: int, window: Window) -> tuple[Block, ...]:
    """Return the blocks that cover `tokens` queries, in order."""
    size = query_block(tokens, window)
    blocks = []
    for start in range(0, tokens, size):
        stop = min(start + size, tokens)
        keys = window.keys_of(start, stop, tokens)
        uniform = all(window.keys_of(i, i + 1, tokens) == keys for i in (start, stop - 1))
        blocks.append(Block(start, stop, *keys, uniform))
    return tuple(blocks)


def multiply_adds(tokens: int, head_dim: int, window: Window) -> int:
    """Return the multiply-adds of one head of one sample: scores and weighted values."""
    pairs = sum((b.stop - b.start) * (b.last - b.first) for b in blocks_of(tokens, window))
    return 2 * head_dim * pairs


def blocked_window_attention(
    query: Tensor, key: Tensor, value: Tensor, window: Window, scale: float
) -> Tensor:
    """Attend within a window, as dense attention over blocks of queries and their nearby keys.

    Equal to attention under the window's mask up to rounding: queries still normalise over
    exactly the keys they see. Pure and traceable for static shapes; made of splits,
    concatenations and `scaled_dot_product_attention`, and of a mask built from ranges, the same
    for every site with these tokens and this window.

    Args:
        query: [..., tokens, head_dim], floating point; engines get four axes, whatever these are.
        key: as `query`.
        value: [..., tokens, value_dim], of the query's dtype.
        window: which keys a query may see.
        scale: factor on the scores.

    Returns:
        [..., tokens, value_dim], of the query's dtype.

    Raises:
        LoweringError: if keys or values don't have as many tokens as the queries.
    """
    tokens = query.shape[-2]
    if key.shape[-2] != tokens or value.shape[-2] != tokens:
        raise LoweringError(
            f"window attention has {tokens} queries, {key.shape[-2]} keys and {value.shape[-2]} "
            "values, expected as many of each: only self-attention can have a window"
        )
    if query.dim() != 4:
        four = [part.reshape(1, -1, *part.shape[-2:]) for part in (query, key, value)]
        output = blocked_window_attention(four[0], four[1], four[2], window, scale)
        return output.reshape(*query.shape[:-2], *output.shape[-2:])
    blocks = blocks_of(tokens, window)
    if len(blocks) == 1 and blocks[0].uniform:
        return functional.scaled_dot_product_attention(query, key, value, scale=scale)
    mask = None
    if not all(block.uniform for block in blocks):
        mask = _mask(blocks[0].stop, window, query)
    queries = torch.split(query, blocks[0].stop, dim=2)
    keys, values = _runs(key, blocks), _runs(value, blocks)
    outputs = [
        functional.scaled_dot_product_attention(
            queries[i],
            keys[i],
            values[i],
            attn_mask=None if mask is None or block.uniform else _cut(mask, block, window),
            scale=scale,
        )
        for i, block in enumerate(blocks)
    ]
    return torch.cat(outputs, dim=2)


def _runs(source: Tensor, blocks: Sequence[Block]) -> list[Tensor]:
    """Return the run of keys or values, [batch, heads, run, head_dim], that each block takes.

    The runs overlap. They are cut once into pieces where any of them begins or ends and put
    together again: ONNX Runtime copies a concatenation on all its threads, a slice on one.
    """
    cuts = sorted({edge for block in blocks for edge in (block.first, block.last)})
    sizes = [stop - start for start, stop in pairwise(cuts)]
    pieces = torch.split(source, sizes, dim=2)
    runs = []
    for block in blocks:
        taken = pieces[cuts.index(block.first) : cuts.index(block.last)]
        runs.append(torch.cat(taken, dim=2) if len(taken) > 1 else taken[0])
    return runs


def _mask(size: int, window: Window, like: Tensor) -> Tensor:
    """Return what to add to the scores of a block with `radius` keys on each side.

    [size, size + 2 radius], 0 where seen. Elsewhere the lowest finite number rather than minus
    infinity, which not every engine's softmax takes; beside a real score it weighs exactly 0.
    """
    reach = window.radius // window.block
    rows = torch.arange(size, device=like.device) // window.block
    columns = torch.arange(size + 2 * window.radius, device=like.device) // window.block - reach
    hidden = (rows[:, None] - columns[None, :]).abs() > reach
    return hidden.to(like.dtype) * torch.finfo(like.dtype).min


def _cut(mask: Tensor, block: Block, window: Window) -> Tensor:
    """Return the part of the mask for a block whose keys the sequence's ends may cut off."""
    left = block.first - (block.start - window.radius)
    return mask[: block.stop - block.start, left : left + block.last - block.first]
