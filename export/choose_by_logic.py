"""Choose among booleans by logic: where(c, a, b)   becomes   (c and a) or (not c and b)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from ditc.passes.base import Pass
from ditc.passes.graphs import call

__all__ = ["ChooseByLogic"]

aten = torch.ops.aten


@dataclass(frozen=True)
class ChooseByLogic(Pass):
    """Replace choices among booleans, as masks are made by: ONNX Runtime chooses numbers only."""

    name: ClassVar[str] = "choose-by-logic"

    def rewrite(self, graph: fx.Graph) -> int:
        """Replace choices and return how many."""
        changed = 0
        for node in list(graph.nodes):
            if node.target not in (aten.where.self, aten.masked_fill.Scalar):
                continue
            if node.meta["val"].dtype is not torch.bool:
                continue
            with graph.inserting_before(node):
                chosen = _chosen(graph, node) if node.target is aten.where.self else None
                node.replace_all_uses_with(chosen or _filled(graph, node))
            graph.erase_node(node)
            changed += 1
        return changed


def _chosen(graph: fx.Graph, node: fx.Node) -> fx.Node:
    condition, first, second = node.args
    other = call(graph, aten.logical_not.default, condition)
    return call(
        graph,
        aten.logical_or.default,
        call(graph, aten.logical_and.default, condition, first),
        call(graph, aten.logical_and.default, other, second),
    )


def _filled(graph: fx.Graph, node: fx.Node) -> fx.Node:
    values, mask, value = node.args
    if value:
        return call(graph, aten.logical_or.default, values, mask)
    kept = call(graph, aten.logical_not.default, mask)
    return call(graph, aten.logical_and.default, values, kept)
