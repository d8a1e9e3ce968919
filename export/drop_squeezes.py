"""Drop squeezes: squeeze(x, 1) of a dimension that isn't 1   becomes   x, which is its value."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from ditc.passes.base import Pass
from ditc.passes.graphs import shape_of

__all__ = ["DropSqueezes"]


@dataclass(frozen=True)
class DropSqueezes(Pass):
    """Remove squeezes that leave a tensor as it is: torch allows them, ONNX doesn't."""

    name: ClassVar[str] = "drop-squeezes"

    def rewrite(self, graph: fx.Graph) -> int:
        """Remove squeezes and return how many."""
        changed = 0
        for node in graph.find_nodes(op="call_function", target=torch.ops.aten.squeeze.dim):
            source = node.args[0]
            assert isinstance(source, fx.Node)
            if shape_of(source) != shape_of(node):
                continue
            node.replace_all_uses_with(source)
            graph.erase_node(node)
            changed += 1
        return changed
