"""Windows: which keys a query sees, how many pairs that are."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditc.passes import Window, windowed_attention
from ditc.runtime.errors import PlanError

from . import models
from .reference import masked_attention, visible


@st.composite
def windows(draw: st.DrawFn) -> tuple[Window, int]:
    block = draw(st.integers(1, 9))
    return Window(block * draw(st.integers(0, 8)), block), draw(st.integers(1, 60))


@given(windows())
def test_pairs_are_those_of_the_definition(case: tuple[Window, int]) -> None:
    window, tokens = case
    mask = visible(tokens, window.radius, window.block)
    assert window.pairs(tokens) == int(mask.sum())
    assert window.density(tokens) == int(mask.sum()) / tokens**2


@given(windows(), st.data())
def test_keys_of_is_what_some_query_sees(case: tuple[Window, int], data: st.DataObject) -> None:
    window, tokens = case
    start = data.draw(st.integers(0, tokens - 1))
    stop = data.draw(st.integers(start + 1, tokens))
    seen = visible(tokens, window.radius, window.block)[start:stop].any(0).nonzero().flatten()
    assert window.keys_of(start, stop, tokens) == (int(seen[0]), int(seen[-1]) + 1)


@pytest.mark.parametrize(
    ("tokens", "radius"), [(1024, 128), (4096, 512), (16384, 2048), (405, 50), (25, 3)]
)
def test_default_is_the_papers(tokens: int, radius: int) -> None:
    assert Window.default(tokens) == Window(radius, 1)


def test_default_density_is_near_a_quarter() -> None:
    # 2/8 of the keys, less what the two ends lack: (1/8)² of all pairs, and a band's own column.
    assert Window.default(4096).pairs(4096) == 4096 + 2 * sum(4096 - d for d in range(1, 513))
    assert abs(Window.default(4096).density(4096) - (1 / 4 - 1 / 64)) < 2 / 4096


@pytest.mark.parametrize(
    ("radius", "block", "message"),
    [
        (-1, 1, "window radius is -1, expected a multiple of its block 1, at least 0"),
        (6, 4, "window radius is 6, expected a multiple of its block 4, at least 0"),
        (0, 0, "window block is 0, expected at least 1"),
    ],
)
def test_windows_that_are_none(radius: int, block: int, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        Window(radius, block)
    assert str(caught.value) == message


@settings(deadline=None, max_examples=40, derandomize=True)
@given(windows(), st.integers(0, 99))
def test_operator_equals_masked_full_attention(case: tuple[Window, int], seed: int) -> None:
    window, tokens = case
    query, key, value = models.noise(3, 2, 3, tokens, 4, seed=seed).double()
    mask = visible(tokens, window.radius, window.block)
    expected = masked_attention(query, key, value, 0.7, mask)
    found = windowed_attention(query, key, value, window, scale=0.7)
    # fp64: what is left is the order of summation.
    assert (found - expected).abs().max() <= 1e-12


@pytest.mark.parametrize("window", [Window(9), Window(64, 32), Window(0), Window(140, 70)])
def test_operator_over_several_chunks_of_rows(window: Window) -> None:
    query, key, value = models.noise(3, 2, 300, 8).double()
    mask = visible(300, window.radius, window.block)
    expected = masked_attention(query[:, None], key[:, None], value[:, None], 8**-0.5, mask)
    found = windowed_attention(query, key, value, window)
    assert (found - expected[:, 0]).abs().max() <= 1e-12


def test_operator_keeps_the_width_of_values_and_half_precision() -> None:
    query, key = models.noise(2, 2, 25, 8).bfloat16()
    value = models.noise(2, 25, 5).bfloat16()
    found = windowed_attention(query, key, value, Window(3))
    assert found.shape == (2, 25, 5)
    assert found.dtype == torch.bfloat16
