"""Tile windows as dense blocks: tiles that see as many tokens attend together, as heads do.

Tokens lie tile by tile, so what a tile sees are whole runs of them. Where the tile divides the
grid all tiles are alike: keys and values are gathered once each, and nothing is masked. Where it
doesn't, the smaller tiles at the edges make further groups, whose queries are put side by side.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ditc.passes.tile_window import TileWindow
from ditc.runtime.errors import LoweringError

from .arrow_blocks import check_text, text_and_image
from .blocks import MOST_SCORES, as_heads

__all__ = ["blocked_tile_attention"]

Run = tuple[int, int]


def blocked_tile_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: TileWindow,
    text: tuple[int, int],
    scale: float,
    most_scores: int = MOST_SCORES,
) -> Tensor:
    """Attend within a window of tiles and to all text; text attends to everything.

    Equal to attention under the window's mask up to rounding. Pure and traceable for static
    shapes; made of splits, gathers and `scaled_dot_product_attention`.

    Args:
        query: [..., tokens, head_dim], floating point; engines get four axes, whatever these are.
        key: as `query`.
        value: [..., tokens, value_dim], of the query's dtype.
        window: which image tokens an image token sees; the image tokens are in its tile order.
        text: half-open range of text tokens, at one end of the sequence; may be empty.
        scale: factor on the scores.
        most_scores: scores that one call may hold.

    Returns:
        [..., tokens, value_dim], of the query's dtype.

    Raises:
        LoweringError: if keys or values don't have as many tokens as the queries, text isn't at
            one end, or the grid has another number of tokens than the image.
    """
    words = text[1] - text[0]
    _check(query, key, value, window, text)
    if query.dim() != 4:
        four = [part.reshape(1, -1, *part.shape[-2:]) for part in (query, key, value)]
        output = blocked_tile_attention(four[0], four[1], four[2], window, text, scale, most_scores)
        return output.reshape(*query.shape[:-2], *output.shape[-2:])
    tokens = window.layout.tokens
    if window.pairs(tokens) == tokens**2:
        return functional.scaled_dot_product_attention(query, key, value, scale=scale)
    if not words:
        return _image(query, key, value, window, text, scale, most_scores)
    told, image = text_and_image(query, text)
    seen = _image(image, key, value, window, text, scale, most_scores)
    told = functional.scaled_dot_product_attention(told, key, value, scale=scale)
    return torch.cat([told, seen] if text[0] == 0 else [seen, told], dim=2)


def _check(
    query: Tensor, key: Tensor, value: Tensor, window: TileWindow, text: tuple[int, int]
) -> None:
    tokens = query.shape[-2]
    if key.shape[-2] != tokens or value.shape[-2] != tokens:
        raise LoweringError(
            f"tile attention has {tokens} queries, {key.shape[-2]} keys and {value.shape[-2]} "
            "values, expected as many of each"
        )
    if text[0] != text[1]:
        check_text(text, tokens)
    if tokens - (text[1] - text[0]) != window.layout.tokens:
        raise LoweringError(
            f"{window.layout} hold {window.layout.tokens} tokens, the attention has "
            f"{tokens - (text[1] - text[0])} beside its text"
        )


def _image(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: TileWindow,
    text: tuple[int, int],
    scale: float,
    most_scores: int,
) -> Tensor:
    """Return the attention of image tokens, which `query` holds alone, in tile order."""
    groups = list(_groups(window, text, most_scores // (query.shape[0] * query.shape[1])))
    tiles = [tile for group in groups for tile in group]
    ordered = tiles == sorted(tiles)
    ranges = window.layout.ranges
    places = _places([ranges[tile] for tile in tiles], query)
    queries = query if ordered else query.index_select(2, places)
    sizes = [sum(ranges[t][1] - ranges[t][0] for t in group) for group in groups]
    parts = torch.split(queries, sizes, dim=2)
    outputs = [
        functional.scaled_dot_product_attention(
            as_heads(part, len(group)),
            _seen(key, group, window, text),
            _seen(value, group, window, text),
            scale=scale,
        ).reshape(*part.shape[:3], value.shape[3])
        for part, group in zip(parts, groups, strict=True)
    ]
    output = torch.cat(outputs, dim=2)
    return output if ordered else output.index_select(2, places.argsort())


def _groups(window: TileWindow, text: tuple[int, int], most_scores: int) -> Iterator[list[int]]:
    """Yield the tiles in groups that attend together: as many queries and keys, up to a limit.

    Args:
        window: the tiles.
        text: half-open range of text tokens.
        most_scores: that a group may hold for one head of one sample.
    """
    alike: dict[tuple[int, int], list[int]] = {}
    for tile, (first, last) in enumerate(window.layout.ranges):
        keys = sum(stop - start for start, stop in window.runs[tile]) + text[1] - text[0]
        alike.setdefault((last - first, keys), []).append(tile)
    for (queries, keys), tiles in alike.items():
        most = max(1, most_scores // (queries * keys))
        for start in range(0, len(tiles), most):
            yield tiles[start : start + most]


def _seen(
    source: Tensor, group: Sequence[int], window: TileWindow, text: tuple[int, int]
) -> Tensor:
    """Return what the tiles of a group see of keys or values, each tile's as heads of its own.

    Gathered by runs as long as all of them allow: a whole tile at a time where tiles are alike.
    """
    first = text[1] if text[0] == 0 else 0
    runs: list[Run] = []
    for tile in group:
        near = [(first + start, first + stop) for start, stop in window.runs[tile]]
        runs.extend([*near, text] if text[0] != text[1] else near)
    batch, heads, tokens, size = source.shape
    unit = math.gcd(tokens, *(end for run in runs for end in run))
    whole = source.reshape(batch, heads, tokens // unit, unit * size)
    places = _places([(start // unit, stop // unit) for start, stop in runs], source)
    gathered = whole.index_select(2, places)
    return as_heads(gathered.reshape(batch, heads, places.shape[0] * unit, size), len(group))


def _places(runs: Sequence[Run], like: Tensor) -> Tensor:
    return torch.cat([torch.arange(start, stop, device=like.device) for start, stop in runs])
