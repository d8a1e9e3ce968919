"""Clean for inference: x → assert, dropout, cast to its own dtype → y   becomes   x → y."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from .base import Pass
from .operators import CASTS

__all__ = ["CleanInference"]

aten = torch.ops.aten

CHECKS = (aten._assert_tensor_metadata.default, aten.sym_constrain_range_for_size.default)
ALIASES = (aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default)


@dataclass(frozen=True)
class CleanInference(Pass):
    """Replace nodes whose value is, to the bit, their argument's."""

    name: ClassVar[str] = "clean-inference"

    def rewrite(self, graph: fx.Graph) -> int:
        """Remove checks and identities and return how many; values stay equal to the bit."""
        changed = 0
        for node in list(graph.nodes):
            if node.target in CHECKS:
                graph.erase_node(node)
                changed += 1
            elif _is_identity(node):
                source = node.args[0]
                assert isinstance(source, fx.Node)
                node.replace_all_uses_with(source)
                graph.erase_node(node)
                changed += 1
        return changed


def _is_identity(node: fx.Node) -> bool:
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    before, after = node.args[0].meta.get("val"), node.meta.get("val")
    if not (isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor)):
        return False
    if before.shape != after.shape or before.dtype != after.dtype:
        return False
    return before.device == after.device and _does_nothing(node)


def _does_nothing(node: fx.Node) -> bool:
    if node.target in ALIASES or node.target in CASTS or node.target is aten.type_as.default:
        return True
    if node.target is aten.dropout.default:
        return bool(node.args[1] == 0) or node.args[2] is False
    if node.target in (aten.mul.Tensor, aten.div.Tensor):
        return isinstance(node.args[1], int | float) and bool(node.args[1] == 1)
    return False
