"""Predict the bytes that running a program takes: weights, what is kept, values alive at once."""

from collections.abc import Iterator, Set

import torch
from torch import fx

from .calls import calls_of
from .graphs import weight
from .program import Program
from .prologue import Part

__all__ = ["activation_bytes", "prologue_bytes", "weight_bytes"]

aten = torch.ops.aten


def weight_bytes(program: Program) -> int:
    """Return the bytes of all tensors that a program's graphs refer to, each memory once.

    Those of the steps and of the prologue. A weight that is cast before it is used is stored as
    what it is cast to.
    """
    parts = program.prologue.parts if program.prologue is not None else ()
    held: dict[object, int] = {}
    for module in (program.graph_module, *(part.graph_module for part in parts)):
        for node in module.graph.find_nodes(op="get_attr"):
            found = weight(module, str(node.target))
            memory = found.untyped_storage()._cdata, found.storage_offset(), found.shape
            for dtype in _stored_as(node, found.dtype):
                held[memory, dtype] = dtype.itemsize * found.numel()
    return sum(held.values())


def _stored_as(node: fx.Node, own: torch.dtype) -> Iterator[torch.dtype]:
    for user in node.users:
        cast = user.args[1] if user.target is aten.to.dtype else own
        assert isinstance(cast, torch.dtype)
        yield cast


def prologue_bytes(program: Program) -> int:
    """Return the bytes of what a prologue keeps for the steps: a prompt's values, every step's.

    Where a step is two calls, each has values of its own.
    """
    kept = program.prologue.stored_bytes if program.prologue is not None else 0
    return len(calls_of(program.cfg)) * kept


def activation_bytes(program: Program) -> int:
    """Return the most bytes that values hold at once, beside what a prologue keeps.

    Of an uncompressed step, or of the prologue, whose part for all steps runs once for all. Values
    live from the node that makes them to the last that uses them, views as what they are views
    of. Inputs and outputs count, but not what `prologue_bytes` counts; weights don't. Engines fuse
    operators, which takes less, and keep room for reuse, which takes more.
    """
    most = _most_alive(program.graph_module.graph, _values(program))
    prologue = program.prologue
    if prologue is None:
        return most
    prompt = _part_bytes(prologue.prompt, program)
    return max(most, prompt, prologue.steps * _part_bytes(prologue.step, program))


def _values(program: Program) -> set[str]:
    """Return the names of what a prologue keeps."""
    parts = program.prologue.parts if program.prologue is not None else ()
    return {value.name for part in parts for value in part.values}


def _part_bytes(part: Part | None, program: Program) -> int:
    return 0 if part is None else _most_alive(part.graph_module.graph, _values(program))


def _most_alive(graph: fx.Graph, kept: Set[str]) -> int:
    """Return the most bytes of a graph's values at once, but for those that are kept anyhow."""
    owner = _owners(graph)
    last = {owner[used]: at for at, node in enumerate(graph.nodes) for used in node.all_input_nodes}
    alive: dict[fx.Node, int] = {}
    most = 0
    for at, node in enumerate(graph.nodes):
        if owner[node] is node and node.name not in kept and not _is_stored(node):
            alive[node] = _node_bytes(node)
        most = max(most, sum(alive.values()))
        alive = {held: size for held, size in alive.items() if last.get(held, at) > at}
    return most


def _is_stored(node: fx.Node) -> bool:
    """Whether a value is a weight, or one that is cast: engines read it as it is stored."""
    cast = node.target is aten.to.dtype and node.all_input_nodes[0].op == "get_attr"
    return node.op == "get_attr" or cast


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
    return sum(entry.nbytes for entry in values if isinstance(entry, torch.Tensor))
