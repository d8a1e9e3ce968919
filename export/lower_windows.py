"""Lower windows: ditc.window_attention(q, k, v)   becomes   dense attention, block by block.

So does ditc.arrow_attention.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import fx

from ditc.passes.arrow_attention import ARROW_ATTENTION
from ditc.passes.attention import WINDOW_ATTENTION
from ditc.passes.base import Pass, run
from ditc.passes.clean_inference import CleanInference
from ditc.passes.graphs import add_weight, flat_outputs, infer, shape_of, weight
from ditc.passes.remove_dead_code import RemoveDeadCode
from ditc.passes.unlifting import unlift
from ditc.passes.window import Window

from .arrow_blocks import blocked_arrow_attention
from .blocks import blocked_window_attention
from .fold_constants import add_constant

__all__ = ["LowerWindows"]


@dataclass(frozen=True)
class LowerWindows(Pass):
    """Inline the blocked form of every window attention: standard aten operators only."""

    name: ClassVar[str] = "lower-windows"

    def rewrite(self, graph: fx.Graph) -> int:
        """Replace window attentions and return how many."""
        bodies: dict[object, fx.GraphModule] = {}
        nodes = [node for node in graph.nodes if node.target in (WINDOW_ATTENTION, ARROW_ATTENTION)]
        for node in nodes:
            form = (tuple(shape_of(source) for source in _sources(node)), node.args[3:])
            if form not in bodies:
                bodies[form] = _trace(node)
            _inline(graph, node, bodies[form])
        return len(nodes)


class _Blocked(torch.nn.Module):
    """Window attention over blocks, as a module that can be exported."""

    def __init__(self, window: Window, scale: float, text: tuple[int, int] | None) -> None:
        super().__init__()
        self.attend = partial(blocked_window_attention, window=window, scale=scale)
        if text is not None:
            self.attend = partial(blocked_arrow_attention, window=window, text=text, scale=scale)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return self.attend(query, key, value)


def _sources(node: fx.Node) -> list[fx.Node]:
    """Return query, key and value, which may be one node."""
    return [source for source in node.args[:3] if isinstance(source, fx.Node)]


def _text(node: fx.Node) -> tuple[int, int] | None:
    """Return the range of text of an arrow attention."""
    if node.target is not ARROW_ATTENTION:
        return None
    start, stop = node.args[6:8]
    assert isinstance(start, int)
    assert isinstance(stop, int)
    return start, stop


def _trace(node: fx.Node) -> fx.GraphModule:
    radius, block, scale = node.args[3:6]
    assert isinstance(radius, int)
    assert isinstance(block, int)
    assert isinstance(scale, float)
    values = [source.meta["val"] for source in _sources(node)]
    example = tuple(torch.zeros(value.shape, dtype=value.dtype) for value in values)
    module = _Blocked(Window(radius, block), scale, _text(node))
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
    (result,) = flat_outputs(body.graph)
    node.replace_all_uses_with(mapping[result])
    graph.erase_node(node)
