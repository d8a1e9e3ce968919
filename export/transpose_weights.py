"""Transpose weights: linear(x, W, b)   becomes   matmul(x, Wᵀ) + b, with Wᵀ as the weight."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from ditc.passes.base import Pass
from ditc.passes.graphs import add_weight, call, given, weight

__all__ = ["TransposeWeights"]

aten = torch.ops.aten


@dataclass(frozen=True)
class TransposeWeights(Pass):
    """Keep projection weights as `[in, out]`, the layout in which engines multiply.

    A transpose left in the graph would be folded at load, into a copy for every session. The
    transposed weight is a view until it is written to a file.
    """

    name: ClassVar[str] = "transpose-weights"

    def rewrite(self, graph: fx.Graph) -> int:
        """Rewrite projections and return how many."""
        made: dict[fx.Node, fx.Node] = {}
        changed = 0
        for node in graph.find_nodes(op="call_function", target=aten.linear.default):
            stored = node.args[1]
            if not isinstance(stored, fx.Node) or stored.op != "get_attr":
                continue
            if stored not in made:
                made[stored] = _transposed(graph, stored)
            _multiply(graph, node, made[stored])
            changed += 1
        return changed


def _transposed(graph: fx.Graph, stored: fx.Node) -> fx.Node:
    owner = graph.owning_module
    assert owner is not None
    value = weight(owner, str(stored.target)).detach().t()
    with graph.inserting_after(stored):
        return add_weight(graph, f"{stored.target}_transposed", value)


def _multiply(graph: fx.Graph, node: fx.Node, transposed: fx.Node) -> None:
    bias = given(node, 2, "bias")
    with graph.inserting_before(node):
        result = call(graph, aten.matmul.default, node.args[0], transposed)
        if bias is not None:
            result = call(graph, aten.add.Tensor, result, bias)
    node.replace_all_uses_with(result)
    graph.erase_node(node)
