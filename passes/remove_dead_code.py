"""Remove dead code: x → y, x → z with z used by nobody   becomes   x → y."""

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from .base import Pass

__all__ = ["RemoveDeadCode"]


@dataclass(frozen=True)
class RemoveDeadCode(Pass):
    """Remove every node that no output needs; inputs stay."""

    name: ClassVar[str] = "remove-dead-code"

    def rewrite(self, graph: fx.Graph) -> int:
        """Remove dead nodes and return how many."""
        before = len(graph.nodes)
        graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
        return before - len(graph.nodes)
