"""Windows as dense blocks: window(q, k, v)   becomes   attention(q[b], k[near b], v[near b]) …

A mask over full attention hides pairs but still computes them. Here each block of neighbouring
queries attends to the one run of keys that any of them sees, so that every engine does less work,
with nothing but its ordinary attention. Blocks away from the sequence's ends are alike, and attend
together, as so many heads more. Only where a block's queries don't all see the same keys is a mask
added, and one mask serves every block: those at an end take a slice of it.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ditc.passes.window import Window
from ditc.runtime.errors import LoweringError

__all__ = [
    "MOST_SCORES",
    "Block",
    "as_heads",
    "attend_in_blocks",
    "blocked_window_attention",
    "blocks_of",
    "multiply_adds",
    "query_block",
]

MOST_BLOCKS = 64
MOST_SCORES = 2**25
"""Scores that one call may hold; beyond that memory grows and nothing gets faster."""
ROW_GROUP = 16
NO_TEXT = (0, 0)
SMALLEST, LARGEST = 32, 208


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

    A block of b queries touches b + 2 radius keys, so a small block wastes few pairs; but keys are
    copied for each block and packed for each product, which costs as much as some more queries.
    On ONNX Runtime's CPU provider half the radius is best, within 32 and 208 (radii of 32, 128,
    512 and 1024 tokens; a quarter to a third slower at four times that). Then: no more than 64
    blocks a site, to keep graphs small; even blocks, so that the last is no crumb; and whole
    blocks of the window, of which a single one needs no mask and is taken where it is at least
    half as large.

    Args:
        tokens: length of the sequence, at least 1.
        window: which keys a query may see.
    """
    if window.pairs(tokens) == tokens**2:
        return window.block * math.ceil(tokens / window.block)
    size = min(max(window.radius // 2, SMALLEST), LARGEST)
    size = max(size, SMALLEST * math.ceil(tokens / (MOST_BLOCKS * SMALLEST)))
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
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: Window,
    scale: float,
    most_scores: int = MOST_SCORES,
) -> Tensor:
    """Attend within a window, as dense attention over blocks of queries and their nearby keys.

    Equal to attention under the window's mask up to rounding: queries still normalise over
    exactly the keys they see. Pure and traceable for static shapes; made of splits, gathers and
    `scaled_dot_product_attention`, and of indices and a mask built from ranges, the same for
    every site with these tokens and this window.

    Args:
        query: [..., tokens, head_dim], floating point; engines get four axes, whatever these are.
        key: as `query`.
        value: [..., tokens, value_dim], of the query's dtype.
        window: which keys a query may see.
        scale: factor on the scores.
        most_scores: scores that one call may hold.

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
        output = blocked_window_attention(four[0], four[1], four[2], window, scale, most_scores)
        return output.reshape(*query.shape[:-2], *output.shape[-2:])
    return attend_in_blocks(query, key, value, window, NO_TEXT, scale, most_scores)


def attend_in_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: Window,
    text: tuple[int, int],
    scale: float,
    most_scores: int,
) -> Tensor:
    """Return the attention of image tokens to those in their window and to all of the text.

    Args:
        query: [batch, heads, tokens, head_dim], of image tokens alone.
        key: [batch, heads, tokens and text, head_dim].
        value: [batch, heads, tokens and text, value_dim].
        window: which image keys a query may see, counted among image tokens alone.
        text: half-open range of the text among the keys, at one end of them; empty for none.
        scale: factor on the scores.
        most_scores: scores that one call may hold.
    """
    tokens, words = query.shape[2], text[1] - text[0]
    blocks = blocks_of(tokens, window)
    if len(blocks) == 1 and blocks[0].uniform:
        return functional.scaled_dot_product_attention(query, key, value, scale=scale)
    mask = None
    if not all(block.uniform for block in blocks):
        mask = _mask(blocks[0].stop, window, words, query)
    most_scores //= query.shape[0] * query.shape[1]
    groups = list(_groups(blocks, tokens, window, words, most_scores))
    queries = torch.split(query, [group[-1].stop - group[0].start for group in groups], dim=2)
    outputs = []
    for part, group in zip(queries, groups, strict=True):
        masked = None if group[0].uniform else mask
        found = functional.scaled_dot_product_attention(
            as_heads(part, len(group)),
            as_heads(_runs(key, group, text), len(group)),
            as_heads(_runs(value, group, text), len(group)),
            attn_mask=None if masked is None else _cut(masked, group[0], window, words),
            scale=scale,
        )
        outputs.append(found.reshape(*part.shape[:3], value.shape[3]))
    return torch.cat(outputs, dim=2)


def _groups(
    blocks: Iterable[Block], tokens: int, window: Window, words: int, most_scores: int
) -> Iterator[list[Block]]:
    """Yield the blocks, in order, in groups that attend together: those alike, up to a limit.

    Args:
        blocks: all of them.
        tokens: length of the sequence.
        window: which keys a query may see.
        words: text tokens that every query sees.
        most_scores: that a group may hold for one head of one sample.
    """
    size = query_block(tokens, window)
    most = max(1, most_scores // (size * (size + 2 * window.radius + words)))
    group: list[Block] = []
    for block in blocks:
        whole = block.stop - block.start == size
        inner = whole and block.last - block.first == size + 2 * window.radius
        if group and not (inner and len(group) < most):
            yield group
            group = []
        group.append(block)
        if not inner:
            yield group
            group = []
    if group:
        yield group


def _runs(source: Tensor, group: Sequence[Block], text: tuple[int, int]) -> Tensor:
    """Return the runs of keys or values that blocks take, one behind the other, text in front.

    They overlap, and are gathered by token: ONNX Runtime copies so on all its threads, a slice on
    one.
    """
    if text[0] == 0 and len(group) == 1 and text[1] + _width(group[0]) == source.shape[2]:
        return source
    front = text[1] if text[0] == 0 else 0
    ranges = [(front + block.first, front + block.last) for block in group]
    if text[0] < text[1]:
        ranges = [part for run in ranges for part in (text, run)]
    places = [torch.arange(*part, device=source.device) for part in ranges]
    return source.index_select(2, torch.cat(places))


def _width(block: Block) -> int:
    return block.last - block.first


def as_heads(source: Tensor, count: int) -> Tensor:
    """Return `[batch, heads, count * tokens, size]` as `[batch, heads * count, tokens, size]`."""
    batch, heads, tokens, size = source.shape
    return source.reshape(batch, heads * count, tokens // count, size)


def _mask(size: int, window: Window, words: int, like: Tensor) -> Tensor:
    """Return what to add to the scores of a block with `radius` keys on each side, text in front.

    [size, words + size + 2 radius], 0 where seen. Elsewhere the lowest finite number rather than
    minus infinity, which not every engine's softmax takes; beside a real score it weighs exactly 0.
    """
    reach = window.radius // window.block
    rows = torch.arange(size, device=like.device) // window.block
    columns = torch.arange(size + 2 * window.radius, device=like.device) // window.block - reach
    hidden = (rows[:, None] - columns[None, :]).abs() > reach
    added = hidden.to(like.dtype) * torch.finfo(like.dtype).min
    return torch.cat([added.new_zeros(size, words), added], dim=1) if words else added


def _cut(mask: Tensor, block: Block, window: Window, words: int) -> Tensor:
    """Return the part of the mask for a block whose keys the sequence's ends may cut off."""
    rows = mask[: block.stop - block.start]
    left = words + block.first - (block.start - window.radius)
    seen = rows[:, left : left + _width(block)]
    return torch.cat([rows[:, :words], seen], dim=1) if words else seen
