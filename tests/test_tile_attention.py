"""Tile attention: the operator and its lowered form, against a mask over full attention."""

from collections import Counter

import pytest
import torch

from ditc.export.blocks import MOST_SCORES, blocked_window_attention
from ditc.export.tile_blocks import blocked_tile_attention
from ditc.passes import TileWindow, Window, tiled_attention
from ditc.runtime.errors import LoweringError, PlanError

from .models import noise
from .reference import masked_attention, tile_mask

aten = torch.ops.aten

CASES = [
    (TileWindow((8, 8), (2, 2), (1, 1)), (0, 0)),
    (TileWindow((16, 16), (4, 4), (1, 0)), (0, 7)),
    (TileWindow((13, 10), (4, 4), (1, 1)), (0, 0)),
    (TileWindow((13, 10), (4, 3), (0, 1)), (130, 135)),
    (TileWindow((4, 6, 5), (2, 2, 2), (0, 1, 1)), (0, 0)),
    (TileWindow((3, 4, 4), (1, 2, 2), (1, 0, 0)), (0, 3)),
    (TileWindow((4, 4), (2, 2), (5, 5)), (0, 2)),
    (TileWindow((5, 5), (1, 1), (1, 1)), (0, 0)),
]


def masked(window: TileWindow, text: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    """Return query, key, value and attention, the mask made on the grid and then put in order."""
    words, image = text[1] - text[0], window.layout.tokens
    order = window.layout.order()
    mask = torch.ones(words + image, words + image, dtype=torch.bool)
    first = words if text[0] == 0 else 0
    seen = tile_mask(window.grid, window.tile, window.reach)[order][:, order]
    mask[first : first + image, first : first + image] = seen
    query, key, value = noise(3, 2, 3, words + image, 8, seed=image).double()
    return query, key, value, masked_attention(query, key, value, 0.3, mask)


@pytest.mark.parametrize(("window", "text"), CASES)
def test_operator_and_blocks_are_attention_under_the_mask(
    window: TileWindow, text: tuple[int, int]
) -> None:
    query, key, value, expected = masked(window, text)
    # fp64: what is left is the order of summation.
    found = tiled_attention(query, key, value, window, text, scale=0.3)
    assert (found - expected).abs().max() <= 1e-12
    found = blocked_tile_attention(query, key, value, window, text, 0.3)
    assert (found - expected).abs().max() <= 1e-12
    found = blocked_tile_attention(query[0], key[0], value[0], window, text, 0.3)
    assert (found - expected[0]).abs().max() <= 1e-12


def test_the_default_scale_and_half_precision() -> None:
    window = TileWindow((4, 4), (2, 2), (0, 1))
    query, key = noise(2, 2, 16, 9).bfloat16()
    value = noise(2, 16, 5).bfloat16()
    found = tiled_attention(query, key, value, window)
    assert (found.shape, found.dtype) == ((2, 16, 5), torch.bfloat16)
    assert torch.equal(found, tiled_attention(query, key, value, window, scale=1 / 3))


def test_many_scores_attend_in_several_calls() -> None:
    most = 2 * 3 * 4 * 36 * 15  # of 15 of 64 tiles
    window = TileWindow((16, 16), (2, 2), (1, 1))
    query, key, value = noise(3, 2, 3, 256, 2)
    found = blocked_tile_attention(query, key, value, window, (0, 0), 0.3, most)
    expected = tiled_attention(query, key, value, window, scale=0.3)
    assert (found - expected).abs().max() <= 2e-6
    assert operators(window, (2, 3, 256, 2), most)[aten.scaled_dot_product_attention.default] == 5


def operators(
    window: TileWindow | Window, shape: tuple[int, ...], most: int = MOST_SCORES
) -> Counter[object]:
    """Return how often each operator stands in the blocked form."""

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        if isinstance(window, TileWindow):
            return blocked_tile_attention(query, key, value, window, (0, 0), 0.3, most)
        return blocked_window_attention(query, key, value, window, 0.3)

    traced = torch.export.export(_Module(attend), (torch.empty(shape),) * 3, strict=False)
    return Counter(node.target for node in traced.graph.nodes)


class _Module(torch.nn.Module):
    def __init__(self, attend: object) -> None:
        super().__init__()
        self.attend = attend

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return self.attend(query, key, value)


@pytest.mark.parametrize(
    ("window", "band", "tokens"),
    [
        (TileWindow((16, 16), (4, 4), (1, 1)), Window(86), 256),
        (TileWindow((16, 16), (2, 2), (1, 1)), Window(18), 256),
        (TileWindow((64, 64), (8, 8), (1, 1)), Window(300), 4096),
    ],
)
def test_no_more_gathers_than_a_band_as_dense(
    window: TileWindow, band: Window, tokens: int
) -> None:
    assert abs(band.density(tokens) - window.density(tokens)) < 0.01
    ours, theirs = (operators(kind, (2, 4, tokens, 8)) for kind in (window, band))
    moving = (aten.index_select.default, aten.transpose.int, aten.permute.default)
    assert [ours[kind] <= theirs[kind] for kind in moving] == [True] * 3
    assert ours[aten.index_select.default] == 2


def test_what_does_not_fit_is_refused() -> None:
    window = TileWindow((4, 4), (2, 2), (0, 0))
    part = noise(1, 1, 18, 4)
    with pytest.raises(PlanError, match="is for 16 tokens, found 18"):
        tiled_attention(part, part, part, window)
    with pytest.raises(LoweringError, match="hold 16 tokens, the attention has 18 beside its text"):
        blocked_tile_attention(part, part, part, window, (0, 0), 1.0)
    with pytest.raises(LoweringError, match="text 3 to 5 isn't at one end of 18 tokens"):
        blocked_tile_attention(part, part, part, window, (3, 5), 1.0)
    with pytest.raises(LoweringError, match="18 queries, 17 keys"):
        blocked_tile_attention(part, part[:, :, 1:], part, window, (0, 2), 1.0)
