"""Patterns: a window as rows of queries and the few runs of keys that they see.

What a kernel walks along. Every window comes down to it: a band has one run a row, a window of
tiles a run for each line of tiles, text in front of the image or behind it one more.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from .tile_window import TileWindow
from .window import Window

__all__ = ["KernelWindow", "Pattern", "Row", "Run", "pattern_of"]


KernelWindow: TypeAlias = Window | TileWindow
"""Windows that have a pattern."""


@dataclass(frozen=True)
class Run:
    """Keys side by side, of which every query of a row sees the inner ones.

    Attributes:
        begin: first key that a query of the row sees.
        inner: first key that all of them see.
        inner_end: end of these; equal to `inner` if there is none.
        end: end of the keys.
    """

    begin: int
    inner: int
    inner_end: int
    end: int


@dataclass(frozen=True)
class Row:
    """Queries side by side, and the keys they see.

    Attributes:
        start: first query.
        stop: end of the queries.
        runs: of keys; no key is in two of them.
    """

    start: int
    stop: int
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Pattern:
    """What each query of a sequence sees.

    Attributes:
        rows: hold every query once; those with most keys come first.
        tile: tokens of a tile, 0 where all keys are inner ones. An outer key is seen by queries
            whose tile is at most `reach` away.
        reach: tiles on each side.
        origin: token that tiles are counted from.
    """

    rows: tuple[Row, ...]
    tile: int
    reach: int
    origin: int


@lru_cache(maxsize=256)
def pattern_of(window: KernelWindow, tokens: int, text: tuple[int, int], queries: int) -> Pattern:
    """Return the pattern of a window.

    Args:
        window: over the image tokens.
        tokens: all of them, text among them.
        text: half-open range of text tokens at one end, which see all and are seen by all.
        queries: most queries of a row.

    Raises:
        PlanError: if a window of tiles is for another number of image tokens.
    """
    words = (Run(text[0], text[0], text[1], text[1]),) if text[0] < text[1] else ()
    origin = text[1] if text[0] == 0 else 0
    rows = [
        Row(start, stop, (Run(0, 0, tokens, tokens),)) for start, stop in _split(*text, queries)
    ]
    image = tokens - (text[1] - text[0])
    for row in _image_rows(window, image, queries):
        near = (_moved(run, origin) for run in row.runs)
        rows.append(Row(row.start + origin, row.stop + origin, (*words, *near)))
    whole = all(
        (run.inner, run.inner_end) == (run.begin, run.end) for row in rows for run in row.runs
    )
    if whole or not isinstance(window, Window):
        return Pattern(tuple(rows), 0, 0, origin)
    return Pattern(tuple(rows), window.block, window.radius // window.block, origin)


def _image_rows(window: KernelWindow, image: int, queries: int) -> Iterator[Row]:
    if isinstance(window, TileWindow):
        window.check(image)
        for (first, last), seen in zip(window.layout.ranges, window.runs, strict=True):
            runs = tuple(Run(begin, begin, end, end) for begin, end in seen)
            for start, stop in _split(first, last, queries):
                yield Row(start, stop, runs)
        return
    for start, stop in _split(0, image, queries):
        yield Row(start, stop, (_band_run(window, start, stop, image),))


def _split(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    for first in range(start, stop, size):
        yield first, min(first + size, stop)


def _band_run(window: Window, start: int, stop: int, image: int) -> Run:
    begin, end = window.keys_of(start, stop, image)
    inner = window.keys_of(stop - 1, stop, image)[0]
    inner_end = window.keys_of(start, start + 1, image)[1]
    if inner >= inner_end:
        inner = inner_end = begin
    return Run(begin, inner, inner_end, end)


def _moved(run: Run, by: int) -> Run:
    return Run(run.begin + by, run.inner + by, run.inner_end + by, run.end + by)
