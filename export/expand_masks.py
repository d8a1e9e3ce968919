"""Expand masks: attention(q, k, v, mask of one row)   becomes   the same, a row for each query."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from ditc.passes.base import Pass
from ditc.passes.graphs import call, given, shape_of

__all__ = ["ExpandMasks"]

aten = torch.ops.aten
MASK = 3


@dataclass(frozen=True)
class ExpandMasks(Pass):
    """Give masks over keys, as of padded text, the rows that ONNX Runtime's attention wants."""

    name: ClassVar[str] = "expand-masks"

    def rewrite(self, graph: fx.Graph) -> int:
        """Expand masks and return of how many attentions."""
        target = aten.scaled_dot_product_attention.default
        nodes = graph.find_nodes(op="call_function", target=target)
        return sum(_expand(graph, node) for node in nodes)


def _expand(graph: fx.Graph, node: fx.Node) -> int:
    query = node.args[0]
    mask = given(node, MASK, "attn_mask")
    if not isinstance(query, fx.Node) or not isinstance(mask, fx.Node):
        return 0
    tokens, (*batch, rows, keys) = shape_of(query)[-2], shape_of(mask)
    if rows == tokens:
        return 0
    with graph.inserting_before(node):
        expanded = call(graph, aten.expand.default, mask, [*batch, tokens, keys])
    node.replace_input_with(mask, expanded)
    return 1
