"""What the values of a program depend on: nothing, the prompt, the timestep, or the latents."""

from enum import IntEnum

import torch
from torch import fx

from .program import Program

__all__ = ["Level", "levels"]

LARGEST_CONSTANT = 2**16
"""Elements up to which a constant is a table in the graph rather than something to compute."""


class Level(IntEnum):
    """How often a value is another one; a value is at the highest level of what it is made from."""

    CONSTANT = 0
    """Never: it depends on no input and no weight."""
    PROMPT = 1
    """With the conditioning, or with the weights alone."""
    STEP = 2
    """With the timestep."""
    LATENTS = 3
    """At every run."""


def levels(program: Program) -> dict[fx.Node, Level]:
    """Return the level of every value of a program's graph, found by dependence alone."""
    of_input = {
        entry.name: {"condition": Level.PROMPT, "timestep": Level.STEP}.get(
            entry.role, Level.LATENTS
        )
        for entry in program.inputs
    }
    found: dict[fx.Node, Level] = {}
    for node in program.graph_module.graph.nodes:
        if node.op == "placeholder":
            found[node] = of_input.get(node.name, Level.LATENTS)
        elif node.op == "get_attr":
            found[node] = Level.PROMPT
        elif node.op == "call_function":
            found[node] = max((found[arg] for arg in node.all_input_nodes), default=_alone(node))
            if found[node] is Level.CONSTANT and _elements(node) > LARGEST_CONSTANT:
                found[node] = Level.PROMPT
    return found


def _alone(node: fx.Node) -> Level:
    """Return the level of what is made from nothing: numbers, unless they are random."""
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return Level.LATENTS if random else Level.CONSTANT


def _elements(node: fx.Node) -> int:
    value = node.meta.get("val")
    return value.numel() if isinstance(value, torch.Tensor) else 0
