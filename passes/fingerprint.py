"""Tell programs apart by what graphs are made from: structure and shapes, not weights' values."""

import hashlib

import torch
from torch import fx

from .program import Program

__all__ = ["program_digest"]


def program_digest(program: Program) -> str:
    """Return the SHA-256 of a program's graph, inputs, sites and layout.

    Programs of equal digests make equal graphs under equal methods: nothing a pass looks at is
    left out, and no pass looks at the value of a weight.
    """
    found = hashlib.sha256()
    for line in _lines(program):
        found.update(line.encode() + b"\n")
    return found.hexdigest()


def _lines(program: Program) -> list[str]:
    return [
        f"cfg {program.cfg}",
        f"outputs {program.outputs}",
        *(f"input {entry}" for entry in program.inputs),
        *(f"site {site}" for site in program.sites),
        *(_line(node) for node in program.graph_module.graph.nodes),
    ]


def _line(node: fx.Node) -> str:
    value = _value(node.meta.get("val"))
    return f"{node.name} {node.op} {node.target} {node.args} {node.kwargs} {value}"


def _value(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, list | tuple):
        return " ".join(_value(entry) for entry in value)
    return "none"
