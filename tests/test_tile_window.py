"""Tile windows: the order of tokens, which see which, and how many pairs that are."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditc.passes import TileLayout, TileWindow
from ditc.runtime.errors import PlanError

from .reference import tile_mask, tile_places


@st.composite
def tile_windows(draw: st.DrawFn) -> TileWindow:
    rank = draw(st.integers(2, 3))
    grid = tuple(draw(st.integers(1, 9 if rank == 2 else 5)) for _ in range(rank))
    tile = tuple(draw(st.integers(1, size)) for size in grid)
    return TileWindow(grid, tile, tuple(draw(st.integers(0, 3)) for _ in grid))


@given(tile_windows())
def test_order_is_tile_by_tile(window: TileWindow) -> None:
    layout = window.layout
    places = tile_places(layout.grid)
    expected = sorted(
        range(layout.tokens),
        key=lambda token: (
            [place // tile for place, tile in zip(places[token], layout.tile, strict=True)],
            places[token],
        ),
    )
    assert layout.order() == expected
    tiles = [
        tuple(place // tile for place, tile in zip(places[token], layout.tile, strict=True))
        for token in layout.order()
    ]
    assert [len(set(tiles[first:last])) for first, last in layout.ranges] == [1] * len(set(tiles))
    assert layout.ranges[-1][1] == layout.tokens


@settings(deadline=None)
@given(tile_windows())
def test_runs_and_pairs_are_those_of_the_definition(window: TileWindow) -> None:
    mask = tile_mask(window.grid, window.tile, window.reach)
    order = window.layout.order()
    mask = mask[order][:, order]
    for (start, stop), runs in zip(window.layout.ranges, window.runs, strict=True):
        assert all(before[1] < after[0] for before, after in pairwise(runs))
        for query in range(start, stop):
            seen = [key for first, last in runs for key in range(first, last)]
            assert mask[query].nonzero().flatten().tolist() == seen
    tokens = window.layout.tokens
    assert window.pairs(tokens) == int(mask.sum())
    assert window.density(tokens) == int(mask.sum()) / tokens**2


@given(tile_windows())
def test_tiles_within_reach_are_seen_and_all_see_as_many(window: TileWindow) -> None:
    for axis, sizes in enumerate(window.layout.sizes):
        boxes = window.boxes(axis)
        assert len({last - first for first, last in boxes}) == 1
        reach = window.reach[axis]
        for tile, (first, last) in enumerate(boxes):
            assert max(tile - reach, 0) >= first
            assert min(tile + reach + 1, len(sizes)) <= last


def test_a_tile_on_the_demos_grid() -> None:
    window = TileWindow((16, 16), (4, 4), (1, 1))
    assert len(window.layout.ranges) == 16
    assert window.density(256) == (3 / 4) ** 2
    assert window.layout.order()[:6] == [0, 1, 2, 3, 16, 17]
    assert window.runs[0] == ((0, 48), (64, 112), (128, 176))
    assert window.runs[15] == ((80, 128), (144, 192), (208, 256))


def test_ragged_tiles_at_the_edges() -> None:
    layout = TileLayout((13, 10), (4, 4))
    assert layout.sizes == ((4, 4, 4, 1), (4, 4, 2))
    assert math.prod(map(len, layout.sizes)) == len(layout.ranges) == 12
    assert TileWindow.default(layout) == TileWindow((13, 10), (4, 4), (1, 1))


@pytest.mark.parametrize(
    ("grid", "tile", "reach", "message"),
    [
        (
            (16,),
            (4,),
            (1,),
            "tile 4 on a grid of 16: expected a size for each of",
        ),
        ((4, 4), (2,), (1, 1), "tile 2 on a grid of 4×4: expected a size for each of two or three"),
        ((4, 4), (2, 5), (1, 1), "tile 2×5 on a grid of 4×4: expected at least 1 and no more than"),
        ((4, 4), (0, 2), (1, 1), "tile 0×2 on a grid of 4×4: expected at least 1"),
        ((4, 70000), (2, 2), (1, 1), "and no grid over 65536"),
        ((4, 4), (2, 2), (1,), "window reach is 1 on a grid of 4×4: expected a number of tiles"),
        ((4, 4), (2, 2), (1, -1), "window reach is 1×-1 on a grid of 4×4"),
    ],
)
def test_windows_that_are_none(
    grid: tuple[int, ...], tile: tuple[int, ...], reach: tuple[int, ...], message: str
) -> None:
    with pytest.raises(PlanError) as caught:
        TileWindow(grid, tile, reach)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_number_of_tokens_is_refused() -> None:
    with pytest.raises(PlanError) as caught:
        TileWindow((4, 4), (2, 2), (1, 1)).pairs(17)
    assert str(caught.value) == (
        "window of tiles of 2×2 on a grid of 4×4 is for 16 tokens, found 17"
    )
