"""Fold the timestep of a graph that runs one step: t → f(t)   becomes   full(t_k) → f(t_k)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from .base import Pass
from .graphs import find, infer, shape_of

__all__ = ["FoldTimestep"]


@dataclass(frozen=True)
class FoldTimestep(Pass):
    """Have a graph compute with one timestep, whatever it is given.

    The input stays, used by nothing, so that all buckets take the same arguments. What is made of
    the timestep alone, as its sine and cosine, is then constant.

    Attributes:
        argument: name of the timestep's input.
        timestep: what the model is told; None for a graph that is told.
    """

    name: ClassVar[str] = "fold-timestep"
    argument: str
    timestep: float | None

    def rewrite(self, graph: fx.Graph) -> int:
        """Replace the input's uses and return of how many inputs."""
        given = find(graph, self.argument)
        if self.timestep is None or given is None or not given.users:
            return 0
        value = given.meta["val"]
        kind = {"dtype": value.dtype, "device": value.device}
        with graph.inserting_after(graph.find_nodes(op="placeholder")[-1]):
            held = graph.call_function(
                torch.ops.aten.full.default, (list(shape_of(given)), self.timestep), kind
            )
        infer([held])
        given.replace_all_uses_with(held)
        return 1
