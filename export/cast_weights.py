"""Cast weights: to(W, float16)   becomes   W_float16, a weight that is stored in that dtype."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from ditc.passes.base import Pass
from ditc.passes.graphs import add_weight, dtype_name, shape_of

__all__ = ["CastWeights"]

aten = torch.ops.aten


@dataclass(frozen=True)
class CastWeights(Pass):
    """Store weights as they are used. No value is cast before it is written."""

    name: ClassVar[str] = "cast-weights"

    def rewrite(self, graph: fx.Graph) -> int:
        """Replace casts of weights and return how many."""
        made: dict[str, fx.Node] = {}
        changed = 0
        for node in graph.find_nodes(op="call_function", target=aten.to.dtype):
            stored, dtype = node.args[:2]
            if not isinstance(stored, fx.Node) or stored.op != "get_attr":
                continue
            assert isinstance(dtype, torch.dtype)
            name = f"{stored.target}_{dtype_name(dtype)}"
            if name not in made:
                empty = torch.empty(shape_of(stored), dtype=dtype, device="meta")
                with graph.inserting_after(stored):
                    made[name] = add_weight(graph, name, empty)
            node.replace_all_uses_with(made[name])
            graph.erase_node(node)
            changed += 1
        return changed
