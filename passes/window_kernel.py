"""Launch the Triton kernel of window attention: shapes, strides and sizes of blocks."""

import math
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec

import torch

from ditc.runtime.errors import PassError, install

from .pattern import KernelWindow, Pattern, pattern_of
from .tile_window import TileWindow

__all__ = ["DTYPES", "Blocks", "Shape", "attend", "blocks_of", "constants", "run", "runs", "tables"]

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
"""What the kernel computes with; sums and softmax are in fp32 for each of them."""

SMALLEST = 16
"""Least extent of a product of matrices in Triton."""


@dataclass(frozen=True)
class Shape:
    """What the kernel is specialised for, beside a pattern.

    Attributes:
        tokens: of a head, text among them.
        head_dim: channels of queries and keys.
        value_dim: channels of values.
        dtype: one of `DTYPES`.
    """

    tokens: int
    head_dim: int
    value_dim: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Blocks:
    """How the kernel is cut up; any choice computes the same.

    Attributes:
        queries: a program's queries, a power of two, at least 16.
        keys: keys at a time, a power of two, at least 16.
        warps: of 32 threads, a program.
        stages: how far loads run ahead.
    """

    queries: int
    keys: int
    warps: int
    stages: int


def blocks_of(shape: Shape, window: KernelWindow) -> Blocks:
    """Return sizes for a shape: what fits into an SM's registers, and no more than a tile needs.

    The sizes that published kernels of the same structure use, with as many warps as keep registers
    from spilling, by the assembler's count for sm80, sm89 and sm90; not tuned on a GPU.
    """
    wide = max(shape.head_dim, shape.value_dim) > 80
    if shape.dtype is torch.float32:
        queries = _queries(window, 32 if wide else 64)
        return Blocks(queries, 32, queries // 8, 2)
    queries = _queries(window, 128)
    return Blocks(queries, 64, queries // 16, 3)


def _queries(window: KernelWindow, most: int) -> int:
    """Return how many queries a program takes: of one tile where these alone see the same keys."""
    if isinstance(window, TileWindow):
        size = math.prod(window.tile)
        if size <= most:
            return max(SMALLEST, 1 << (size - 1).bit_length())
        return most // 2 if 0 < size % most <= most // 2 else most
    within = math.gcd(window.block, most)
    return within if within >= 64 else most


def constants(
    shape: Shape, pattern: Pattern, scale: float, blocks: Blocks
) -> dict[str, int | float | str]:
    """Return the kernel's compile-time constants by parameter."""
    low, high = _split(shape.head_dim)
    value_low, value_high = _split(shape.value_dim)
    return {
        "SCALE": scale,
        "TILE": pattern.tile,
        "REACH": pattern.reach,
        "QUERIES": blocks.queries,
        "KEYS": blocks.keys,
        "DIM": shape.head_dim,
        "LOW": low,
        "HIGH": high,
        "VALUE_DIM": shape.value_dim,
        "VALUE_LOW": value_low,
        "VALUE_HIGH": value_high,
        "PRECISION": "ieee" if shape.dtype is torch.float32 else "tf32",
    }


def tables(pattern: Pattern) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the kernel reads of a pattern: `[rows, 4]` and `[runs, 4]`, int32."""
    rows: list[tuple[int, int, int, int]] = []
    runs: list[tuple[int, int, int, int]] = []
    for row in pattern.rows:
        rows.append((row.start, row.stop, len(runs), len(runs) + len(row.runs)))
        runs.extend((run.begin, run.inner, run.inner_end, run.end) for run in row.runs)
    return torch.tensor(rows, dtype=torch.int32), torch.tensor(runs, dtype=torch.int32)


@lru_cache(maxsize=256)
def _tables_on(pattern: Pattern, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    rows, runs = tables(pattern)
    return rows.to(device), runs.to(device)


@cache
def _installed() -> bool:
    if find_spec("triton") is not None:
        return True
    warnings.warn(
        "Triton is not installed: window attention runs on the GPU as torch operators under a "
        f"mask, which is slower; {install('triton')}",
        stacklevel=2,
    )
    return False


def runs(query: torch.Tensor) -> bool:
    """Return whether the kernel can compute with a query: Triton is there, and takes its dtype."""
    return query.dtype in DTYPES and _installed()


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    window: KernelWindow,
    scale: float,
    text: tuple[int, int] = (0, 0),
    blocks: Blocks | None = None,
) -> torch.Tensor:
    """Return window attention, computed by the kernel.

    Args:
        query: `[..., tokens, head_dim]`, of one of `DTYPES`, any strides.
        key: as the query.
        value: `[..., tokens, value_dim]`, of the query's dtype.
        window: over the image tokens.
        scale: factor on query · key.
        text: half-open range of text tokens at one end of the sequence; may be empty.
        blocks: how to cut it up, `blocks_of` if None.

    Returns:
        `[..., tokens, value_dim]` in the dtype of the query, contiguous.

    Raises:
        PassError: if dtypes, shapes or the place of the text can't be.
        PlanError: if a window of tiles is for another number of image tokens.
    """
    tokens = query.shape[-2]
    if not 0 <= text[0] <= text[1] <= tokens or (text[0] > 0 and text[0] < text[1] < tokens):
        raise PassError(
            f"text {text[0]} to {text[1]} isn't at one end of {tokens} tokens: the kernel takes "
            "text in front of the image or behind it"
        )
    shape = Shape(tokens, query.shape[-1], value.shape[-1], query.dtype)
    blocks = blocks or blocks_of(shape, window)
    return run(query, key, value, pattern_of(window, tokens, text, blocks.queries), scale, blocks)


def run(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pattern: Pattern,
    scale: float,
    blocks: Blocks,
) -> torch.Tensor:
    """Return attention along a pattern whose rows have at most `blocks.queries` queries.

    Raises:
        PassError: if dtypes or shapes can't be.
    """
    _check(query, key, value)
    from .window_triton import window_kernel

    shape = Shape(query.shape[-2], query.shape[-1], value.shape[-1], query.dtype)
    output = query.new_empty((*query.shape[:-1], shape.value_dim))
    if output.numel() == 0:
        return output
    sources = [_four(part) for part in (query, key, value)]
    batch, heads = sources[0].shape[:2]
    with torch.cuda.device(query.device) if query.is_cuda else nullcontext():
        window_kernel[len(pattern.rows), batch * heads](
            *sources,
            *_tables_on(pattern, query.device),
            output,
            *(stride for source in sources for stride in source.stride()[:3]),
            heads,
            shape.tokens,
            pattern.origin,
            **constants(shape, pattern, scale, blocks),
            num_warps=blocks.warps,
            num_stages=blocks.stages,
        )
    return output


def _check(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    if query.dtype not in DTYPES or {key.dtype, value.dtype} != {query.dtype}:
        raise PassError(
            f"window attention of {query.dtype}, {key.dtype} and {value.dtype}: the kernel takes "
            "float16, bfloat16 or float32, one for all three"
        )
    if key.shape != query.shape or value.shape[:-1] != query.shape[:-1]:
        raise PassError(
            f"window attention of {list(query.shape)}, {list(key.shape)} and {list(value.shape)}: "
            "the kernel takes as many keys and values as queries"
        )


def _split(channels: int) -> tuple[int, int]:
    """Return two powers of two, or one and 0, that hold the channels with little to spare."""
    low = max(SMALLEST, 2 ** (channels.bit_length() - 1))
    rest = channels - low
    if rest <= 0:
        return low, 0
    high = max(SMALLEST, 2 ** (rest - 1).bit_length())
    return (2 * low, 0) if high == low else (low, high)


def _four(part: torch.Tensor) -> torch.Tensor:
    """Return `[batch, heads, tokens, channels]` with channels side by side."""
    four = part if part.dim() == 4 else part.reshape(1, -1, *part.shape[-2:])
    return four if four.stride(-1) == 1 else four.contiguous()
