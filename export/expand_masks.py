"""Expand masks: attention(q, k, v, mask of one row)   becomes   the same, a row for each query."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from ditc.passes.base import Pass
from ditc.passes.graphs import call, shape_of
from ditc.passes.key_masks import attention_mask
from ditc.passes.operators import SDPA

__all__ = ["ExpandMasks"]

aten = torch.ops.aten


@dataclass(frozen=True)
class ExpandMasks(Pass):
    """Give masks over keys, as of padded text, the rows that ONNX Runtime's attention wants."""

    name: ClassVar[str] = "expand-masks"

    def rewrite(self, graph: fx.Graph) -> int:
        """Expand masks and return of how many attentions."""
        nodes = graph.find_nodes(op="call_function", target=SDPA)
        return sum(_expand(graph, node) for node in nodes)


def _expand(graph: fx.Graph, node: fx.Node) -> int:
    query, mask = node.args[0], attention_mask(node)
    if not isinstance(query, fx.Node) or mask is None:
        return 0
    tokens, (*batch, rows, keys) = shape_of(query)[-2], shape_of(mask)
    if rows == tokens:
        return 0
    with graph.inserting_before(node):
        expanded = call(graph, aten.expand.default, mask, [*batch, tokens, keys])
    node.replace_input_with(mask, expanded)
    return 1
