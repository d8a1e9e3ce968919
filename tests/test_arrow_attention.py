"""Arrow attention: the operator and its lowered form, against a mask over full attention."""

import pytest
import torch

from ditc.export.arrow_blocks import blocked_arrow_attention
from ditc.passes.arrow_attention import arrow_attention
from ditc.passes.window import Window, arrow_pairs
from ditc.runtime.errors import LoweringError
from ditc.tools.zoo_reference import arrow_mask

from .models import noise

CASES = [
    (22, Window(3), (0, 6)),
    (22, Window(3), (16, 22)),
    (25, Window(8, 4), (0, 3)),
    (25, Window(0), (24, 25)),
    (300, Window(20), (0, 30)),
    (300, Window(64, 32), (270, 300)),
]


def masked(tokens: int, window: Window, text: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    parts = tuple(noise(2, 3, tokens, 8, seed=seed) for seed in range(3))
    query, key, value = (part.double() for part in parts)
    mask = arrow_mask(tokens, (window.radius, window.block), text)
    scores = (query @ key.transpose(-1, -2) * 0.3).masked_fill(~mask, float("-inf"))
    return (*parts, scores.softmax(-1) @ value)


@pytest.mark.parametrize(("tokens", "window", "text"), CASES)
def test_the_operator_is_attention_under_the_mask(
    tokens: int, window: Window, text: tuple[int, int]
) -> None:
    query, key, value, expected = masked(tokens, window, text)
    found = arrow_attention(query, key, value, window, text, 0.3)
    assert float((found - expected).abs().max()) < 2e-6  # fp32 against fp64


@pytest.mark.parametrize(("tokens", "window", "text"), CASES)
def test_blocks_are_attention_under_the_mask(
    tokens: int, window: Window, text: tuple[int, int]
) -> None:
    query, key, value, expected = masked(tokens, window, text)
    found = blocked_arrow_attention(query, key, value, window, text, 0.3)
    assert float((found - expected).abs().max()) < 2e-6
    three = blocked_arrow_attention(query[0], key[0], value[0], window, text, 0.3)
    assert float((three - expected[0]).abs().max()) < 2e-6


@pytest.mark.parametrize(("tokens", "window", "text"), CASES)
def test_pairs_are_counted_as_the_mask_has_them(
    tokens: int, window: Window, text: tuple[int, int]
) -> None:
    mask = arrow_mask(tokens, (window.radius, window.block), text)
    assert arrow_pairs(tokens, window, text) == int(mask.sum())


def test_text_in_the_middle_is_refused() -> None:
    part = noise(1, 1, 10, 4)
    with pytest.raises(LoweringError, match="text 3 to 5 isn't at one end of 10 tokens"):
        blocked_arrow_attention(part, part, part, Window(1), (3, 5), 1.0)
    with pytest.raises(LoweringError, match="10 queries, 9 keys"):
        blocked_arrow_attention(part, part[..., :9, :], part, Window(1), (0, 5), 1.0)
