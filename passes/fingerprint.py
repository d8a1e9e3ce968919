"""Tell programs apart by what graphs are made from: structure and shapes, not weights' values."""

import hashlib

import torch
from torch import fx

from .program import Program

__all__ = ["graph_digest", "program_digest"]


def program_digest(program: Program) -> str:
    """Return the SHA-256 of a program's graph, inputs, sites and layout.

    Programs of equal digests make equal graphs under equal methods: nothing a pass looks at is
    left out, and no pass looks at the value of a weight.
    """
    return _digest(
        [
            f"cfg {program.cfg}",
            f"outputs {program.outputs}",
            *(f"input {entry}" for entry in program.inputs),
            *(f"site {site}" for site in program.sites),
            *(_line(node) for node in program.graph_module.graph.nodes),
        ]
    )


def graph_digest(graph: fx.Graph) -> str:
    """Return the SHA-256 of a graph's nodes."""
    return _digest([_line(node) for node in graph.nodes])


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def _line(node: fx.Node) -> str:
    value = _value(node.meta.get("val"))
    return f"{node.name} {node.op} {node.target} {node.args} {node.kwargs} {value}"


def _value(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, list | tuple):
        return " ".join(_value(entry) for entry in value)
    return "none"
