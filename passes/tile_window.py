"""Windows on a grid: image tokens in tiles, each of which sees the tiles around it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, product

from ditc.runtime.errors import PlanError

__all__ = ["TileLayout", "TileWindow"]

RANKS = (2, 3)
LONGEST = 2**16
"""Tokens along an axis: more than any image has, few enough to walk along."""


@dataclass(frozen=True)
class TileLayout:
    """Tokens of a grid in tile order: tile by tile, and line by line within each.

    Tiles come line by line too. Along an axis that the tile doesn't divide the last tile is the
    smaller rest.

    Attributes:
        grid: tokens along each axis: (rows, columns), or (frames, rows, columns).
        tile: tokens of a tile along each axis, at most the grid's.

    Raises:
        PlanError: if these are no two or three sizes each, or a tile is larger than the grid.
    """

    grid: tuple[int, ...]
    tile: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.grid) not in RANKS or len(self.tile) != len(self.grid):
            raise PlanError(
                f"tile {_sizes(self.tile)} on a grid of {_sizes(self.grid)}: expected a size for "
                "each of two or three axes"
            )
        for size, tile in zip(self.grid, self.tile, strict=True):
            if not 1 <= tile <= size <= LONGEST:
                raise PlanError(
                    f"tile {_sizes(self.tile)} on a grid of {_sizes(self.grid)}: expected at least "
                    f"1 and no more than the grid along each axis, and no grid over {LONGEST}"
                )

    def __str__(self) -> str:
        return f"tiles of {_sizes(self.tile)} on a grid of {_sizes(self.grid)}"

    @property
    def tokens(self) -> int:
        """Tokens of the grid."""
        return math.prod(self.grid)

    @cached_property
    def sizes(self) -> tuple[tuple[int, ...], ...]:
        """For each axis the sizes of the tiles along it."""
        pairs = zip(self.grid, self.tile, strict=True)
        return tuple(
            tuple(min(tile, size - start) for start in range(0, size, tile)) for size, tile in pairs
        )

    @cached_property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """For each tile the half-open range of its tokens in tile order."""
        ends = tuple(accumulate(math.prod(sizes) for sizes in product(*self.sizes)))
        return tuple(zip((0, *ends), ends, strict=False))

    def order(self) -> list[int]:
        """Return for each place in tile order the number, line by line, of the token there."""
        found: list[int] = []
        starts = [range(0, size, tile) for size, tile in zip(self.grid, self.tile, strict=True)]
        for corner in product(*starts):
            inside = (
                range(start, min(start + tile, size))
                for start, tile, size in zip(corner, self.tile, self.grid, strict=True)
            )
            found.extend(_number(token, self.grid) for token in product(*inside))
        return found


@dataclass(frozen=True)
class TileWindow:
    """A window of tiles over tokens in the order of `TileLayout`.

    A token sees all tokens of a box of tiles: along each axis the `2 reach + 1` tiles nearest to
    its own, which lies in their middle. At an edge of the grid the box is moved inward, so that
    every tile sees as many tiles; an axis of no more tiles is seen whole. So tile `i` of `n`
    sees tiles `first` to `first + count`, where `count = min(2 reach + 1, n)` and
    `first = min(max(i - reach, 0), n - count)`.

    Attributes:
        grid: as of `TileLayout`.
        tile: as of `TileLayout`.
        reach: tiles seen on each side of a token's own, for each axis.

    Raises:
        PlanError: as `TileLayout` does, or if the reach isn't a number of at least 0 an axis.
    """

    grid: tuple[int, ...]
    tile: tuple[int, ...]
    reach: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.reach) != len(self.layout.grid) or min(self.reach) < 0:
            raise PlanError(
                f"window reach is {_sizes(self.reach)} on a grid of {_sizes(self.grid)}: expected "
                "a number of tiles, at least 0, for each axis"
            )

    @classmethod
    def default(cls, layout: TileLayout) -> "TileWindow":
        """Return the window of each tile and those that touch it."""
        return cls(layout.grid, layout.tile, (1,) * len(layout.grid))

    @cached_property
    def layout(self) -> TileLayout:
        """The order of tokens that the window is for."""
        return TileLayout(self.grid, self.tile)

    def boxes(self, axis: int) -> list[tuple[int, int]]:
        """Return for each tile along an axis the half-open range of the tiles that it sees."""
        tiles = len(self.layout.sizes[axis])
        count = min(2 * self.reach[axis] + 1, tiles)
        firsts = (min(max(i - self.reach[axis], 0), tiles - count) for i in range(tiles))
        return [(first, first + count) for first in firsts]

    @property
    def runs(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """For each tile the half-open runs, ascending, of the tokens that it sees."""
        return _runs(self)

    def pairs(self, tokens: int) -> int:
        """Return how many (query, key) pairs are visible.

        Raises:
            PlanError: if the grid doesn't have as many tokens.
        """
        self.check(tokens)
        return math.prod(self._pairs_along(axis) for axis in range(len(self.grid)))

    def density(self, tokens: int) -> float:
        """Return the visible share of all pairs, in (0, 1]."""
        return self.pairs(tokens) / tokens**2

    def to_json(self) -> dict[str, object]:
        """Return what a plan file holds of it."""
        return {"grid": list(self.grid), "tile": list(self.tile), "reach": list(self.reach)}

    def check(self, tokens: int) -> None:
        """Refuse another number of image tokens than the grid has.

        Raises:
            PlanError: telling both.
        """
        if tokens != self.layout.tokens:
            raise PlanError(
                f"window of {self.layout} is for {self.layout.tokens} tokens, found {tokens}"
            )

    def _pairs_along(self, axis: int) -> int:
        sizes = self.layout.sizes[axis]
        before = (0, *accumulate(sizes))
        seen = (before[last] - before[first] for first, last in self.boxes(axis))
        return sum(size * keys for size, keys in zip(sizes, seen, strict=True))


@lru_cache
def _runs(window: TileWindow) -> tuple[tuple[tuple[int, int], ...], ...]:
    counts = [len(sizes) for sizes in window.layout.sizes]
    ranges = window.layout.ranges
    found = []
    for box in product(*(window.boxes(axis) for axis in range(len(counts)))):
        runs: list[tuple[int, int]] = []
        for tile in product(*(range(*ends) for ends in box)):
            first, last = ranges[_number(tile, counts)]
            if runs and runs[-1][1] == first:
                first = runs.pop()[0]
            runs.append((first, last))
        found.append(tuple(runs))
    return tuple(found)


def _number(place: Sequence[int], sizes: Sequence[int]) -> int:
    """Return where, line by line, a place lies on a grid."""
    number = 0
    for index, size in zip(place, sizes, strict=True):
        number = number * size + index
    return number


def _sizes(values: Sequence[int]) -> str:
    return "×".join(map(str, values)) or "nothing"
