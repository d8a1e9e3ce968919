"""Which inputs pick rows of a table by their integers, as class labels do.

Torch refuses an integer beyond the table; engines count a negative one from its end, or read what
lies there.
"""

import torch
from torch import fx

from .program import Program

__all__ = ["picked_rows"]

aten = torch.ops.aten
SAME_VALUES = frozenset(
    {
        aten._to_copy.default,
        aten.alias.default,
        aten.clone.default,
        aten.expand.default,
        aten.permute.default,
        aten.reshape.default,
        aten.squeeze.dim,
        aten.to.dtype,
        aten.unsqueeze.default,
        aten.view.default,
    }
)
"""Operators that give all values of their first argument and no others."""


def picked_rows(program: Program) -> dict[str, int]:
    """Return for each input whose values all pick rows of a table how many rows that has.

    Where it picks from several tables, those of the shortest.
    """
    names = {entry.name for entry in program.inputs}
    found: dict[str, int] = {}
    for node in program.graph_module.graph.nodes:
        if node.target is not aten.embedding.default:
            continue
        table, source = node.args[0].meta["val"], _source(node.args[1])
        if source.op == "placeholder" and source.name in names:
            found[source.name] = min(int(table.shape[0]), found.get(source.name, table.shape[0]))
    return found


def _source(node: fx.Node) -> fx.Node:
    while node.target in SAME_VALUES:
        (node, *_) = node.all_input_nodes
    return node
