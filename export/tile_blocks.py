"""Tile windows as dense blocks: tiles that see as many tokens attend together, as heads do.

Tokens lie tile by tile, so what a tile sees are whole runs of them. Keys and values are gathered
once each, and nothing is masked. Where the tile divides the grid all tiles are alike. Where it
doesn't, the smaller tiles at the edges make further groups, whose queries are put side by side.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ditc.passes.tile_window import TileWindow
from ditc.runtime.errors import LoweringError

from .arrow_blocks import check_text, text_and_image
from .blocks import MOST_SCORES, as_heads

__all__ = ["blocked_tile_attention"]

Run = tuple[int, int]


@dataclass(frozen=True)
class _Group:
    """Tiles that attend together.

    Attributes:
        queries: of each.
        keys: that each sees, text among them.
        tiles: which.
    """

    queries: int
    keys: int
    tiles: tuple[int, ...]

    @property
    def scores(self) -> int:
        """Of one head of one sample."""
        return len(self.tiles) * self.queries * self.keys


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
    most = most_scores // (query.shape[0] * query.shape[1])
    groups = list(_groups(window, text, most))
    tiles = [tile for group in groups for tile in group.tiles]
    ordered = tiles == sorted(tiles)
    ranges = window.layout.ranges
    places = _places([ranges[tile] for tile in tiles], query)
    queries = iter(
        torch.split(
            query if ordered else query.index_select(2, places),
            [len(group.tiles) * group.queries for group in groups],
            dim=2,
        )
    )
    outputs: list[Tensor] = []
    for pack in _packs(groups, most):
        sizes = [len(group.tiles) * group.keys for group in pack]
        keys, values = (
            torch.split(_seen(source, pack, window, text), sizes, dim=2) for source in (key, value)
        )
        for group, own_keys, own_values in zip(pack, keys, values, strict=True):
            part, count = next(queries), len(group.tiles)
            output = functional.scaled_dot_product_attention(
                as_heads(part, count),
                as_heads(own_keys, count),
                as_heads(own_values, count),
                scale=scale,
            )
            outputs.append(output.reshape(*part.shape[:3], value.shape[3]))
    output = torch.cat(outputs, dim=2)
    return output if ordered else output.index_select(2, places.argsort())


def _groups(window: TileWindow, text: Run, most_scores: int) -> Iterator[_Group]:
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
            yield _Group(queries, keys, tuple(tiles[start : start + most]))


def _packs(groups: Iterable[_Group], most_scores: int) -> Iterator[list[_Group]]:
    """Yield groups, in order, whose keys are gathered at once: as many as make that many scores."""
    pack: list[_Group] = []
    for group in groups:
        if pack and sum(one.scores for one in (*pack, group)) > most_scores:
            yield pack
            pack = []
        pack.append(group)
    yield pack


def _seen(source: Tensor, pack: Sequence[_Group], window: TileWindow, text: Run) -> Tensor:
    """Return what the tiles of groups see of keys or values, tile behind tile.

    Gathered by runs as long as all of them allow: a whole tile at a time where tiles are alike.
    """
    first = text[1] if text[0] == 0 else 0
    runs: list[Run] = []
    for tile in (tile for group in pack for tile in group.tiles):
        near = [(first + start, first + stop) for start, stop in window.runs[tile]]
        runs.extend([*near, text] if text[0] != text[1] else near)
    batch, heads, tokens, size = source.shape
    unit = math.gcd(tokens, *(end for run in runs for end in run))
    whole = source.reshape(batch, heads, tokens // unit, unit * size)
    places = _places([(start // unit, stop // unit) for start, stop in runs], source)
    gathered = whole.index_select(2, places)
    return gathered.reshape(batch, heads, places.shape[0] * unit, size)


def _places(runs: Sequence[Run], like: Tensor) -> Tensor:
    return torch.cat([torch.arange(start, stop, device=like.device) for start, stop in runs])
