"""The grid of image tokens, from latents, coordinates or sizes."""

from dataclasses import replace

import pytest
import torch

from ditc.passes import Site
from ditc.passes.grid import token_grid

from . import models
from .samples import sample


def sites(*tokens: int, text: tuple[int, int] = (0, 0)) -> list[Site]:
    site = sample("small", None).program.sites[0]
    return [replace(site, tokens=count, text=text) for count in tokens]


IDS = torch.cartesian_prod(torch.arange(1), torch.arange(3), torch.arange(5))


@pytest.mark.parametrize(
    ("tokens", "latents", "channels", "kwargs", "expected"),
    [
        (25, (4, 3, 10, 10), 3, {}, (5, 5)),
        (21, (2, 4, 6, 14), 4, {}, (3, 7)),
        (60, (1, 16, 3, 8, 10), 16, {}, (3, 4, 5)),
        (60, (1, 3, 16, 8, 10), 16, {}, (3, 4, 5)),  # frames in front of channels
        (20, (1, 16, 3, 8, 10), 16, {}, (4, 5)),  # spatial attention, frame by frame
        (40, (1, 16, 4, 8, 10), 16, {}, (2, 4, 5)),  # patches of two frames
        (15, (1, 15, 64), 64, {"img_ids": IDS}, (3, 5)),
        (15, (1, 15, 64), 64, {"img_ids": IDS[None].expand(2, -1, -1)}, (3, 5)),
        (15, (1, 15, 64), 64, {"img_ids": IDS.flip(0)}, None),  # not row by row
        (15, (1, 15, 64), 64, {"shapes": [[(1, 3, 5)]], "scale": 15}, (3, 5)),
        (30, (1, 30, 64), 64, {"shapes": [[(2, 3, 5)]]}, (2, 3, 5)),
        (15, (1, 15, 64), 64, {"shapes": [[(1, 4, 4)]]}, None),
        (15, (1, 15, 64), 64, {}, None),
        (24, (4, 3, 10, 10), 3, {}, None),
    ],
)
def test_grids(tokens, latents, channels, kwargs, expected) -> None:
    assert token_grid(sites(tokens), latents, channels, kwargs) == expected


def test_text_tokens_are_on_no_grid() -> None:
    assert token_grid(sites(32, text=(25, 32)), (4, 3, 10, 10), 3, {}) == (5, 5)


def test_sites_of_several_counts_have_no_one_grid() -> None:
    assert token_grid(sites(25, 4), (4, 3, 10, 10), 3, {}) is None


def test_a_captured_program_has_its_grid() -> None:
    assert sample("dit", "cond-first").program.grid == (5, 5)
    assert sample("small", None).program.grid is None
    assert models.TOKENS == 25
