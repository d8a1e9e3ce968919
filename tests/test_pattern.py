"""Patterns hold what a window shows, as rows of queries and runs of keys."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditc.passes.pattern import Pattern, pattern_of
from ditc.passes.window import Window
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
