"""Halve the batch of a region of a graph: follow the batch axis, fix sizes written into nodes."""

from collections.abc import Sequence

import torch
from torch import fx

from ditc.runtime.errors import PassError

from .batch_moves import asked, carriers, indifferent, moved, numbers
from .batch_rules import SIZED
from .graphs import call, shape_of

__all__ = ["BatchAxes", "check_half", "take_half", "write_half"]

aten = torch.ops.aten


class BatchAxes:
    """Where the batch axis lies in the values of a region, node after node.

    A value is split into halves along its batch axis. Merged into a larger first axis the batch
    is outermost, so that the halves of that axis are still the halves of the batch.
    """

    def __init__(self, sources: Sequence[fx.Node]) -> None:
        self.axis: dict[fx.Node, int] = dict.fromkeys(sources, 0)

    def halve(self, node: fx.Node) -> None:
        """Find the batch axis of a node's value from its arguments' and halve written sizes.

        Raises:
            PassError: if the operator is one whose treatment of the batch isn't known, or an
                argument whose axis isn't known would have to be halved.
        """
        self.follow(node, 2)
        if node not in self.axis:
            return
        axis = self.axis[node]
        for source in carriers(node):
            if source not in self.axis and asked(node, source, axis) is not None:
                raise PassError(f"node {node.name}: {source.name} holds both halves")
        write_half(node, axis)

    def follow(self, node: fx.Node, batch: int) -> None:
        """Find the batch axis of a node's value from its arguments' and leave the node as it is.

        Raises:
            PassError: if the batch can't be told from other axes in the value.
        """
        held = [arg for arg in node.all_input_nodes if arg in self.axis]
        held = [arg for arg in held if not indifferent(node, arg)]
        if not held:
            return
        known = [arg for arg in carriers(node) if arg in self.axis]
        for arg in held:
            if known and arg not in known:
                raise PassError(f"node {node.name}: {arg.name} holds the batch where it mixes it")
        axes = {moved(node, arg, self.axis[arg], batch) for arg in known or held}
        if not known:
            raise PassError(f"node {node.name}: the batch is lost among other axes")
        if len(axes) > 1:
            raise PassError(f"node {node.name}: its arguments have the batch on different axes")
        self.axis[node] = axes.pop()


def take_half(source: fx.Node, axis: int, *, last: bool = False) -> fx.Node:
    """Return a new node, where the graph inserts, that takes the first or last half of a value."""
    size = shape_of(source)[axis] // 2
    start = size if last else 0
    return call(source.graph, aten.slice.Tensor, source, axis, start, start + size)


def write_half(node: fx.Node, axis: int) -> None:
    """Halve the size of an axis where it is written into a node.

    Raises:
        PassError: if it has no halves.
    """
    if node.target in (*SIZED, aten.expand.default):
        sizes = numbers(node, node.args[1])
        node.args = (node.args[0], _half(node, sizes, axis), *node.args[2:])
    elif node.target is aten.unflatten.int:
        _halve_unflatten(node, axis)
    elif node.target is aten.repeat.default:
        counts = numbers(node, node.args[1])
        if counts[axis] > 1:
            node.args = (node.args[0], _half(node, counts, axis))
    elif node.target is aten.repeat_interleave.self_int and "output_size" in node.kwargs:
        node.kwargs = {k: v for k, v in node.kwargs.items() if k != "output_size"}


def check_half(node: fx.Node, before: object, axis: int) -> None:
    """Check that a node's value has half the size along an axis that it had before.

    Raises:
        PassError: if it has another shape.
    """
    if not isinstance(before, torch.Tensor):
        return
    shape = list(before.shape)
    shape[axis] //= 2
    if list(node.meta["val"].shape) != shape:
        raise PassError(f"node {node.name}: isn't half of what it was")


def _halve_unflatten(node: fx.Node, axis: int) -> None:
    dim, sizes = node.args[1], numbers(node, node.args[2])
    assert isinstance(dim, int)
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if dim % len(shape_of(source)) == axis:
        node.args = (source, dim, _half(node, sizes, 0), *node.args[3:])


def _half(node: fx.Node, sizes: list[int], axis: int) -> list[int]:
    """Return sizes with that of an axis halved; -1 says that it follows from the others."""
    if sizes[axis] == -1:
        return sizes
    if sizes[axis] % 2:
        raise PassError(f"node {node.name}: size {sizes[axis]} of axis {axis} has no halves")
    return [size // 2 if at == axis else size for at, size in enumerate(sizes)]
