"""Patterns hold what a window shows, as rows of queries and runs of keys."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditc.passes.pattern import Pattern, pattern_of
from ditc.passes.tile_window import TileWindow
from ditc.passes.window import Window
from ditc.runtime.errors import PlanError
from ditc.tools.zoo_reference import arrow_mask


def mask_of(pattern: Pattern, tokens: int) -> torch.Tensor:
    """Return `[tokens, tokens]`: pairs, each at most once, as a kernel would visit them."""
    mask = torch.zeros(tokens, tokens, dtype=torch.int)
    for row in pattern.rows:
        for query in range(row.start, row.stop):
            for run in row.runs:
                assert run.begin <= run.inner <= run.inner_end <= run.end
                mask[query, run.inner : run.inner_end] += 1
                for key in (*range(run.begin, run.inner), *range(run.inner_end, run.end)):
                    if pattern.tile:
                        tiles = [(at - pattern.origin) // pattern.tile for at in (query, key)]
                        mask[query, key] += abs(tiles[0] - tiles[1]) <= pattern.reach
    return mask


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_pattern_holds_what_the_window_shows(data: st.DataObject) -> None:
    tokens = data.draw(st.integers(1, 70))
    block = data.draw(st.integers(1, 9))
    window = Window(block * data.draw(st.integers(0, 9)), block)
    words = data.draw(st.integers(0, tokens - 1))
    text = data.draw(st.sampled_from([(0, words), (tokens - words, tokens)]))
    pattern = pattern_of(window, tokens, text, data.draw(st.integers(1, 40)))
    expected = arrow_mask(tokens, (window.radius, window.block), text)
    assert torch.equal(mask_of(pattern, tokens), expected.int())


TILES = [
    (TileWindow((6, 9), (2, 4), (1, 0)), (0, 5)),
    (TileWindow((7, 5), (3, 2), (0, 1)), (35, 35)),
    (TileWindow((3, 4, 5), (2, 2, 2), (1, 0, 1)), (60, 64)),
    (TileWindow((4, 4), (4, 4), (0, 0)), (0, 0)),
]


def mask_of_tiles(window: TileWindow, text: tuple[int, int]) -> torch.Tensor:
    """Return `[tokens, tokens]`: for each axis, whether a token's tile sees another's."""
    origin = text[1] if text[0] == 0 else 0
    total = window.layout.tokens + text[1] - text[0]
    mask = torch.ones(total, total, dtype=torch.bool)
    places = torch.tensor(window.layout.order())
    image = torch.ones(len(places), len(places), dtype=torch.bool)
    stride = 1
    for size, tile, reach in zip(
        window.grid[::-1], window.tile[::-1], window.reach[::-1], strict=True
    ):
        at = places // stride % size // tile
        tiles = -(-size // tile)
        count = min(2 * reach + 1, tiles)
        first = (at - reach).clamp(0, tiles - count)
        image &= (at >= first[:, None]) & (at < (first + count)[:, None])
        stride *= size
    mask[origin : origin + len(places), origin : origin + len(places)] = image
    return mask


@pytest.mark.parametrize(("window", "text"), TILES)
@pytest.mark.parametrize("queries", [3, 64])
def test_a_pattern_of_tiles(window: TileWindow, text: tuple[int, int], queries: int) -> None:
    tokens = window.layout.tokens + text[1] - text[0]
    pattern = pattern_of(window, tokens, text, queries)
    assert pattern.tile == 0
    assert torch.equal(mask_of(pattern, tokens), mask_of_tiles(window, text).int())


def test_tiles_of_another_grid() -> None:
    with pytest.raises(PlanError, match="is for 16 tokens, found 15"):
        pattern_of(TileWindow((4, 4), (2, 2), (1, 1)), 20, (0, 5), 16)


def test_rows_hold_every_query_once() -> None:
    pattern = pattern_of(Window(7), 100, (90, 100), 32)
    assert [(row.start, row.stop) for row in pattern.rows] == [
        (90, 100),
        (0, 32),
        (32, 64),
        (64, 90),
    ]


@pytest.mark.parametrize(
    ("window", "tile"), [(Window(64, 32), 0), (Window(64), 1), (Window(99), 0)]
)
def test_whole_blocks_need_no_mask(window: Window, tile: int) -> None:
    assert pattern_of(window, 96, (0, 0), 32).tile == tile
