"""Predict the bytes that running a program takes: weights, and values alive at once in a step."""

import torch
from torch import fx

from .graphs import weight
from .program import Program

__all__ = ["activation_bytes", "weight_bytes"]


def weight_bytes(program: Program) -> int:
    """Return the bytes of all tensors that a program's graph refers to, each memory once."""
    module = program.graph_module
    names = {str(node.target) for node in module.graph.find_nodes(op="get_attr")}
    held = {
        (found.untyped_storage()._cdata, found.storage_offset(), found.shape): _bytes(found)
        for found in (weight(module, name) for name in names)
    }
    return sum(held.values())


def activation_bytes(program: Program) -> int:
    """Return the most bytes that values of an uncompressed step hold at once.

    Values live from the node that makes them to the last that uses them, views as what they are
    views of. Inputs and outputs count, weights don't. Engines fuse operators, which takes less,
    and keep room for reuse, which takes more.
    """
    graph = program.graph_module.graph
    owner = _owners(graph)
    last = {owner[used]: at for at, node in enumerate(graph.nodes) for used in node.all_input_nodes}
    alive: dict[fx.Node, int] = {}
    most = 0
    for at, node in enumerate(graph.nodes):
        if node.op != "get_attr" and owner[node] is node:
            alive[node] = _node_bytes(node)
        most = max(most, sum(alive.values()))
        alive = {held: size for held, size in alive.items() if last.get(held, at) > at}
    return most


def _owners(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Return for each node the one whose memory its value lies in."""
    owner: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        sources = node.all_input_nodes
        owner[node] = owner[sources[0]] if sources and _is_view(node) else node
    return owner


def _is_view(node: fx.Node) -> bool:
    """Whether an operator returns its argument's own memory: its schema says so."""
    if node.op != "call_function":
        return False
    if not isinstance(node.target, torch._ops.OpOverload):  # takes one of several views
        return True
    return any(value.alias_info is not None for value in node.target._schema.returns)


def _node_bytes(node: fx.Node) -> int:
    value = node.meta.get("val")
    values = value if isinstance(value, list | tuple) else (value,)
    return sum(_bytes(entry) for entry in values if isinstance(entry, torch.Tensor))


def _bytes(value: torch.Tensor) -> int:
    return value.dtype.itemsize * value.shape.numel()
