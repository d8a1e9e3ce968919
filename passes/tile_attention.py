"""The operator `ditc::tile_attention`: each tile of image tokens sees the tiles around it.

Tokens come in tile order (`TileLayout`): a tile is a run of tokens, and what it sees a few runs.
Text at one end of the sequence sees everything and is seen by everything, as in arrow attention.
"""

from collections.abc import Sequence

import torch

from .arrow_attention import image_range
from .attention import attended_like
from .tile_window import TileWindow
from .window_kernel import attend, runs

__all__ = ["TILE_ATTENTION", "tiled_attention"]


def _by_tiles(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grid: Sequence[int],
    tile: Sequence[int],
    reach: Sequence[int],
    scale: float,
    text_start: int,
    text_stop: int,
) -> torch.Tensor:
    """Compute a tile at a time: what every device can."""
    window = TileWindow(tuple(grid), tuple(tile), tuple(reach))
    window.check(query.shape[-2] - (text_stop - text_start))
    first, _ = image_range(query.shape[-2], (text_start, text_stop))
    text = [(text_start, text_stop)] if text_start < text_stop else []
    parts = []
    for (start, stop), shown in zip(window.layout.ranges, window.runs, strict=True):
        near = [(first + a, first + b) for a, b in shown]
        seen = [*text, *near] if text_start == 0 else [*near, *text]
        parts.append(
            torch.nn.functional.scaled_dot_product_attention(
                query[..., first + start : first + stop, :],
                torch.cat([key[..., a:b, :] for a, b in seen], dim=-2),
                torch.cat([value[..., a:b, :] for a, b in seen], dim=-2),
                scale=scale,
            )
        )
    if text:
        words = torch.nn.functional.scaled_dot_product_attention(
            query[..., text_start:text_stop, :], key, value, scale=scale
        )
        parts = [words, *parts] if text_start == 0 else [*parts, words]
    return torch.cat(parts, dim=-2)


_tile_attention = torch.library.custom_op("ditc::tile_attention", _by_tiles, mutates_args=())


@_tile_attention.register_kernel("cuda")
def _by_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grid: Sequence[int],
    tile: Sequence[int],
    reach: Sequence[int],
    scale: float,
    text_start: int,
    text_stop: int,
) -> torch.Tensor:
    if not runs(query):
        return _by_tiles(query, key, value, grid, tile, reach, scale, text_start, text_stop)
    window = TileWindow(tuple(grid), tuple(tile), tuple(reach))
    return attend(query, key, value, window, scale, (text_start, text_stop))


_tile_attention.register_fake(attended_like)

TILE_ATTENTION = torch.ops.ditc.tile_attention.default
"""The operator as it stands in a graph: query, key, value, grid, tile, reach, scale, text."""


def tiled_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    window: TileWindow,
    text: tuple[int, int] = (0, 0),
    scale: float | None = None,
) -> torch.Tensor:
    """Return attention in which image tokens see text and the tiles around their own, text all.

    Args:
        query: `[..., tokens, head_dim]`, the image tokens in tile order.
        key: `[..., tokens, head_dim]`, in the same order.
        value: `[..., tokens, value_dim]`, in the same order.
        window: which image tokens an image token sees.
        text: half-open range of text tokens, at one end of the sequence; may be empty.
        scale: factor on query · key, `head_dim ** -0.5` if None.

    Returns:
        `[..., tokens, value_dim]` in the dtype of the query, in the same order.

    Raises:
        PlanError: if the grid doesn't have as many tokens as there are beside the text.
    """
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    options = (list(window.grid), list(window.tile), list(window.reach), factor)
    result: torch.Tensor = TILE_ATTENTION(query, key, value, *options, *text)
    return result
