"""Lower windows: ditc.window_attention(q, k, v)   becomes   dense attention, block by block.

So do ditc.arrow_attention and ditc.tile_attention.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import fx

from ditc.passes.base import Pass, run
from ditc.passes.clean_inference import CleanInference
from ditc.passes.graphs import add_weight, flat_outputs, infer, shape_of, weight
from ditc.passes.remove_dead_code import RemoveDeadCode
from ditc.passes.tile_window import TileWindow
from ditc.passes.unlifting import unlift
from ditc.passes.window import Window
from ditc.passes.window_nodes import WINDOWED, Windowed, read_windowed

from .arrow_blocks import blocked_arrow_attention
from .blocks import MOST_SCORES, blocked_window_attention
from .fold_constants import add_constant
from .site_names import SITE
from .tile_blocks import blocked_tile_attention

__all__ = ["LowerWindows"]


@dataclass(frozen=True)
class LowerWindows(Pass):
    """Inline the blocked form of every window attention: standard aten operators only.

    Attributes:
        most_scores: scores that one attention over blocks may hold.
    """

    name: ClassVar[str] = "lower-windows"
    most_scores: int = MOST_SCORES

    def rewrite(self, graph: fx.Graph) -> int:
        """Replace window attentions and return how many."""
        bodies: dict[object, fx.GraphModule] = {}
        nodes = [node for node in graph.nodes if node.target in WINDOWED]
        for node in nodes:
            form = (tuple(shape_of(source) for source in _sources(node)), read_windowed(node))
            if form not in bodies:
                bodies[form] = _trace(node, self.most_scores)
            _inline(graph, node, bodies[form])
        return len(nodes)


class _Blocked(torch.nn.Module):
    """Window attention over blocks, as a module that can be exported."""

    def __init__(self, form: Windowed, most_scores: int) -> None:
        super().__init__()
        self.attend = _attention(form, most_scores)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return self.attend(query, key, value)


def _attention(form: Windowed, most_scores: int) -> Callable[..., torch.Tensor]:
    """Return the function over query, key and value that computes a window attention in blocks."""
    window, text, scale = form.window, form.text, form.scale
    if isinstance(window, TileWindow):
        return partial(
            blocked_tile_attention, window=window, text=text, scale=scale, most_scores=most_scores
        )
    assert isinstance(window, Window)
    if text[0] == text[1]:
        return partial(
            blocked_window_attention, window=window, scale=scale, most_scores=most_scores
        )
    return partial(
        blocked_arrow_attention, window=window, text=text, scale=scale, most_scores=most_scores
    )


def _sources(node: fx.Node) -> list[fx.Node]:
    """Return query, key and value, which may be one node."""
    return [source for source in node.args[:3] if isinstance(source, fx.Node)]


def _trace(node: fx.Node, most_scores: int) -> fx.GraphModule:
    values = [source.meta["val"] for source in _sources(node)]
    example = tuple(torch.zeros(value.shape, dtype=value.dtype) for value in values)
    module = _Blocked(read_windowed(node), most_scores)
    body = unlift(torch.export.export(module, example, strict=False))
    run((CleanInference(),), body)
    _fold(body)
    run((RemoveDeadCode(),), body)
    return body


def _fold(body: fx.GraphModule) -> None:
    """Compute what depends on no input: the mask and its slices, kept once for all buckets."""
    values: dict[fx.Node, torch.Tensor] = {}
    for node in list(body.graph.nodes):
        if node.op == "get_attr":
            values[node] = weight(body, str(node.target))
        if not callable(node.target) or not values.keys() >= set(node.all_input_nodes):
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        value = node.target(*args, **kwargs)
        with body.graph.inserting_after(node):
            folded = add_weight(body.graph, f"folded_{node.name}", value)
        values[folded] = value
        node.replace_all_uses_with(folded)


def _inline(graph: fx.Graph, node: fx.Node, body: fx.GraphModule) -> None:
    """Copy a body in front of a node, its inputs the node's arguments, and replace the node."""
    mapping: dict[fx.Node, fx.Node] = {}
    arguments = iter(_sources(node))
    with graph.inserting_before(node):
        for inner in body.graph.nodes:
            if inner.op == "placeholder":
                mapping[inner] = next(arguments)
            elif inner.op == "get_attr":
                mapping[inner] = add_constant(graph, weight(body, str(inner.target)))
            elif inner.op == "call_function":
                mapping[inner] = graph.node_copy(inner, mapping.__getitem__)
                infer([mapping[inner]])
                if SITE in node.meta:
                    mapping[inner].meta[SITE] = node.meta[SITE]
    (result,) = flat_outputs(body.graph)
    node.replace_all_uses_with(mapping[result])
    graph.erase_node(node)
