"""Attention in a window as nodes of a graph: one operator a kind of window."""

from dataclasses import dataclass

from torch import fx

from .arrow_attention import ARROW_ATTENTION
from .attention import WINDOW_ATTENTION
from .graphs import call
from .tile_attention import TILE_ATTENTION
from .tile_window import TileWindow
from .window import SiteWindow, Window

__all__ = ["WINDOWED", "Windowed", "add_windowed", "read_windowed"]

WINDOWED = (WINDOW_ATTENTION, ARROW_ATTENTION, TILE_ATTENTION)


@dataclass(frozen=True)
class Windowed:
    """What a node of window attention says, its query, key and value aside.

    Attributes:
        window: which image tokens see which.
        scale: factor on query · key.
        text: half-open range of text tokens, which see and are seen by all; may be empty.
    """

    window: SiteWindow
    scale: float
    text: tuple[int, int]


def add_windowed(graph: fx.Graph, heads: list[fx.Node], options: Windowed) -> fx.Node:
    """Add a window attention of query, key and value at the insert point."""
    window, scale, text = options.window, options.scale, options.text
    if isinstance(window, TileWindow):
        sizes = (list(window.grid), list(window.tile), list(window.reach))
        return call(graph, TILE_ATTENTION, *heads, *sizes, scale, *text)
    assert isinstance(window, Window)
    band = (window.radius, window.block, scale)
    if text[0] == text[1]:
        return call(graph, WINDOW_ATTENTION, *heads, *band)
    return call(graph, ARROW_ATTENTION, *heads, *band, *text)


def read_windowed(node: fx.Node) -> Windowed:
    """Return what a node of window attention says."""
    options = node.args[3:]
    if node.target is TILE_ATTENTION:
        grid, tile, reach = (tuple(map(_integer, _list(sizes))) for sizes in options[:3])
        window: SiteWindow = TileWindow(grid, tile, reach)
        scale, *text = options[3:]
    else:
        radius, block, scale, *text = options
        window = Window(_integer(radius), _integer(block))
    assert isinstance(scale, float)
    start, stop = map(_integer, text or (0, 0))
    return Windowed(window, scale, (start, stop))


def _list(value: object) -> list[object]:
    assert isinstance(value, list | tuple)
    return list(value)


def _integer(value: object) -> int:
    assert isinstance(value, int)
    return value
