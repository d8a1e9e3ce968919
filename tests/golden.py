"""Graphs as compact text, for tests that hold a rewrite against what it should look like."""

import difflib
from collections.abc import Mapping

import torch
from torch import fx

from ditc.passes import Program, Site
from ditc.passes.base import Pass, run
from ditc.passes.graphs import SLOT, copy_module


def text_of(graph: fx.Graph) -> list[str]:
    """Return a line for each node: name, operator, arguments, shape."""
    return [_line(node) for node in graph.nodes]


def changes(before: fx.Graph, after: fx.Graph) -> str:
    """Return the lines that differ, `-` before and `+` after, in order."""
    lines = difflib.ndiff(text_of(before), text_of(after))
    return "\n".join(line for line in lines if line[0] in "-+")


def rewritten(program: Program, *passes: Pass) -> tuple[fx.GraphModule, Mapping[str, int]]:
    """Return a copy of a program's graph with passes run over it, and what they changed."""
    module = copy_module(program.graph_module)
    return module, run(passes, module)


def site_of(program: Program, index: int = 0) -> Site:
    return [site for site in program.sites if site.eligible][index]


def _line(node: fx.Node) -> str:
    if node.op == "output":
        return f"return {_text(node.args[0])}"
    value = node.meta["val"]
    shape = list(value.shape) if isinstance(value, torch.Tensor) else f"{len(value)} tensors"
    if node.op == "placeholder":
        slot = node.meta.get(SLOT)
        return f"{node.name} = slot {slot.name} {shape}" if slot else f"{node.name} = input {shape}"
    if node.op == "get_attr":
        return f"{node.name} = {node.target} {shape}"
    given = [_text(arg) for arg in node.args]
    given += [f"{key}={_text(arg)}" for key, arg in node.kwargs.items()]
    operator = str(node.target).removeprefix("aten.").removesuffix(".default")
    return f"{node.name} = {operator}({', '.join(given)}) {shape}"


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(_text(entry) for entry in value)}]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
