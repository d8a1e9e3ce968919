"""Latency of attention, full and in windows, at the sizes of published models."""

import importlib.util
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from ditc.passes import TileWindow, Window
from ditc.passes.attention import windowed_by_rows
from ditc.passes.pattern import KernelWindow
from ditc.passes.window import arrow_pairs
from ditc.passes.window_kernel import Blocks, attend

from .gpu_entries import AbsentError, Entry, Values, attempt
from .gpu_timing import timed
from .timing import Timing

__all__ = ["TUNED", "AttentionShape", "check_kernel", "tunings", "windows"]

FULL = {
    "full, flash": SDPBackend.FLASH_ATTENTION,
    "full, cuDNN": SDPBackend.CUDNN_ATTENTION,
    "full, memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "full, written out": SDPBackend.MATH,
}
NO_KERNEL = ("No available kernel", "No viable backend")
"""What torch says where none of the backends allowed can do it."""

BLOCK = 128
TILE = 8
"""Tokens of a tile along each axis: 64 queries that see the same keys."""
CHECKED = 64
TUNED = tuple(
    Blocks(queries, keys, warps, stages)
    for queries, keys in ((64, 32), (64, 64), (128, 32), (128, 64), (128, 128))
    for warps in (4, 8)
    for stages in (2, 3, 4)
)
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of an attention; text, if there is any, lies in front of `tokens` image tokens."""

    batch: int
    heads: int
    head_dim: int
    tokens: int
    words: int = 0

    def __str__(self) -> str:
        text = f" + {self.words} text" if self.words else ""
        return f"{self.batch} x {self.heads} x {self.head_dim}, {self.tokens}{text} tokens"


@dataclass(frozen=True)
class _Form:
    """One way to attend: the window it keeps to, if any, and the function."""

    window: KernelWindow | None
    run: Attention


def check_kernel(device: str) -> None:
    """Refuse to go on where the Triton kernel can't run.

    Raises:
        AbsentError: saying what isn't there.
    """
    if importlib.util.find_spec("triton") is None:
        raise AbsentError("triton is not installed")
    if torch.device(device).type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise AbsentError("Triton's kernels need a GPU; TRITON_INTERPRET=1 interprets them")


def windows(shape: AttentionShape, dtype: torch.dtype, device: str, rounds: int) -> Iterator[Entry]:
    """Yield an entry for every form of an attention, all of them timed in turn."""
    given = _inputs(shape, dtype, device)
    ready: dict[str, tuple[_Form, float]] = {}
    for name, form in _forms(shape, device).items():
        tried = attempt("windows", f"{shape}: {name}", partial(_error, form, shape, given))
        if tried.status == "measured":
            ready[name] = form, float(tried.values["error"])
        else:
            yield tried
    runs = {name: _bound(form.run, given) for name, (form, _) in ready.items()}
    times = timed(runs, device, rounds)
    full = [times[name] for name, (form, _) in ready.items() if form.window is None]
    fastest = min(full, key=lambda found: found.median_ms) if full else None
    for name, (form, error) in ready.items():
        values = _values(times[name], fastest) | {
            "error": error,
            "density": _density(form.window, shape),
        }
        yield Entry("windows", f"{shape}: {name}", "measured", values)


def tunings(
    shape: AttentionShape,
    dtype: torch.dtype,
    device: str,
    rounds: int,
    choices: Sequence[Blocks] = TUNED,
) -> Iterator[Entry]:
    """Yield an entry for every way to cut the kernel up, for the band."""
    given = _inputs(shape, dtype, device)
    window = Window.default(shape.tokens)
    text = (0, shape.words)
    scale = shape.head_dim**-0.5
    for blocks in choices:

        def measure(blocks: Blocks = blocks) -> Values:
            check_kernel(device)
            run = _bound(lambda q, k, v: attend(q, k, v, window, scale, text, blocks), given)
            return _values(timed({"kernel": run}, device, rounds)["kernel"], None)

        size = f"{blocks.queries} x {blocks.keys}, {blocks.warps} warps, {blocks.stages} stages"
        yield attempt("tuning", f"{shape}: {size}", measure)


def _forms(shape: AttentionShape, device: str) -> dict[str, _Form]:
    scale = shape.head_dim**-0.5
    text = (0, shape.words)
    band = Window.default(shape.tokens)
    block = min(BLOCK, max(1, shape.tokens // 8))
    whole = Window(max(block, band.radius // block * block), block)

    def full(backend: SDPBackend) -> Attention:
        def run(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            try:
                with sdpa_kernel(backend):
                    return functional.scaled_dot_product_attention(query, key, value, scale=scale)
            except RuntimeError as error:
                if any(said in str(error) for said in NO_KERNEL):
                    raise AbsentError("torch has no such kernel for this on this device") from error
                raise

        return run

    def kernel(window: KernelWindow) -> Attention:
        def run(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            check_kernel(device)
            return attend(query, key, value, window, scale, text)

        return run

    def blocks(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        try:
            from ditc.export.arrow_blocks import blocked_arrow_attention
            from ditc.export.blocks import blocked_window_attention
        except ImportError as error:
            raise AbsentError(f"{error.name} is not installed") from error
        if shape.words:
            return blocked_arrow_attention(query, key, value, band, text, scale)
        return blocked_window_attention(query, key, value, band, scale)

    forms = {name: _Form(None, full(backend)) for name, backend in FULL.items()}
    if shape.tokens + shape.words > 2**13:  # all scores at once: 16384² of 32 heads fill a GPU
        del forms["full, written out"]
    forms["band, Triton"] = _Form(band, kernel(band))
    forms[f"blocks of {block}, Triton"] = _Form(whole, kernel(whole))
    grid = _square(shape.tokens)
    if grid is not None:
        tiles = TileWindow(grid, (min(TILE, grid[0]), min(TILE, grid[1])), (1, 1))
        forms[f"3 x 3 tiles of {tiles.tile[0]} x {tiles.tile[1]}, Triton"] = _Form(
            tiles, kernel(tiles)
        )
    forms["band, dense blocks as in engines"] = _Form(band, blocks)
    if not shape.words:
        forms["band, torch under a mask"] = _Form(
            band, lambda q, k, v: windowed_by_rows(q, k, v, band.radius, band.block, scale)
        )
    return forms


def _inputs(shape: AttentionShape, dtype: torch.dtype, device: str) -> tuple[torch.Tensor, ...]:
    """Return query, key and value as projections leave them: heads beside channels."""
    drawn = torch.Generator().manual_seed(0)
    size = (shape.batch, shape.tokens + shape.words, shape.heads, shape.head_dim)
    parts = (torch.randn(size, generator=drawn) for _ in range(3))
    return tuple(part.to(device, dtype).transpose(1, 2) for part in parts)


def _bound(run: Attention, given: tuple[torch.Tensor, ...]) -> Callable[[], torch.Tensor]:
    query, key, value = given
    return lambda: run(query, key, value)


def _error(form: _Form, shape: AttentionShape, given: tuple[torch.Tensor, ...]) -> Values:
    """Run a form once and return its largest error on some rows, over the largest value there."""
    query, key, value = given
    found = form.run(query, key, value)
    tokens = query.shape[2]
    rows = torch.linspace(0, tokens - 1, min(CHECKED, tokens), device=query.device).long()
    scores = query[:, :, rows].float() @ key.float().transpose(-1, -2) * shape.head_dim**-0.5
    if form.window is not None:
        seen = _seen(form.window, tokens, shape.words, rows)
        scores = scores.masked_fill(~seen, float("-inf"))
    expected = scores.softmax(-1) @ value.float()
    error = (found[:, :, rows].float() - expected).abs().max() / expected.abs().max()
    return {"error": float(error)}


def _seen(window: KernelWindow, tokens: int, words: int, rows: torch.Tensor) -> torch.Tensor:
    """Return `[rows, tokens]`: whether a token is seen, by the window's definition."""
    places = torch.arange(tokens, device=rows.device) - words
    text = places < 0
    if isinstance(window, TileWindow):
        first = torch.zeros(tokens, dtype=torch.long)
        near = torch.zeros(len(rows), tokens, dtype=torch.bool, device=rows.device)
        for number, (start, stop) in enumerate(window.layout.ranges):
            first[words + start : words + stop] = number
        for index, number in enumerate(first[rows.cpu()].tolist()):
            for start, stop in window.runs[number]:
                near[index, words + start : words + stop] = True
    else:
        tiles = places.div(window.block, rounding_mode="floor")
        near = (tiles[rows, None] - tiles).abs() <= window.radius // window.block
    return near | text | text[rows, None]


def _square(tokens: int) -> tuple[int, int] | None:
    side = math.isqrt(tokens)
    return (side, side) if side**2 == tokens else None


def _density(window: KernelWindow | None, shape: AttentionShape) -> float:
    if window is None:
        return 1.0
    tokens = shape.tokens + shape.words
    return arrow_pairs(tokens, window, (0, shape.words)) / tokens**2


def _values(found: Timing, fastest: Timing | None) -> dict[str, float]:
    values = {"median_ms": found.median_ms, "low_ms": found.low_ms, "high_ms": found.high_ms}
    if fastest is not None:
        values["times_as_fast_as_full"] = found.ratio_to(fastest)
    return values
