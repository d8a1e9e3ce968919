"""Fold constants: exp(arange(n) * c)   becomes   a weight that holds its value."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from ditc.passes.base import Pass
from ditc.passes.graphs import add_weight, dtype_name, weight
from ditc.passes.ordering import ORDER

from .tensors import constant_name, raw_bytes

__all__ = ["FoldConstants", "add_constant"]

aten = torch.ops.aten

LARGEST = 2**16
"""Elements of a value that is worth keeping; masks over all pairs of tokens aren't."""
UNSET = (aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default)


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Compute what depends on no input and no weight, such as tables of frequencies, once.

    In torch, to the bit as the model does: an engine's `exp` differs in the last place, which a
    timestep of 1000 makes 1e-4 in the argument of a sine.
    """

    name: ClassVar[str] = "fold-constants"

    def rewrite(self, graph: fx.Graph) -> int:
        """Replace constants that anything else uses and return how many."""
        values: dict[fx.Node, torch.Tensor] = {}
        owner = graph.owning_module
        assert isinstance(owner, fx.GraphModule)
        for node in graph.nodes:
            if node.op == "get_attr" and str(node.target).startswith(ORDER):
                values[node] = weight(owner, str(node.target))
            elif _is_constant(node, values):
                args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = node.target(*args, **kwargs)
        used = [node for node in values if any(user not in values for user in node.users)]
        for node in used:
            with graph.inserting_after(node):
                node.replace_all_uses_with(add_constant(graph, values[node]))
        return len(used)


def _is_constant(node: fx.Node, values: dict[fx.Node, torch.Tensor]) -> bool:
    found = node.meta.get("val")
    if node.op != "call_function" or not isinstance(found, torch.Tensor):
        return False
    if node.target in UNSET or torch.Tag.nondeterministic_seeded in getattr(
        node.target, "tags", ()
    ):
        return False
    return found.numel() <= LARGEST and values.keys() >= set(node.all_input_nodes)


def add_constant(graph: fx.Graph, constant: torch.Tensor) -> fx.Node:
    """Make a constant a weight of the graph's module, named after its content."""
    kind = dtype_name(constant.dtype).upper()
    return add_weight(graph, constant_name(constant.shape, kind, raw_bytes(constant)), constant)
