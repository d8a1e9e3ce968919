"""Halve the batch of a region of a graph: follow the batch axis, fix sizes written into nodes."""

import math
import operator
from collections.abc import Sequence

import torch
from torch import fx

from ditc.runtime.errors import PassError

from .batch_rules import DROPS_AXIS, FILLED, KEEPING, MIXED_AXES, ON_AXIS, REDUCING, SIZED
from .graphs import BATCH_AXIS, BOTH_HALVES, LOST_AXIS, ONE_HALF, given, shape_of
from .operators import is_pointwise

__all__ = ["BatchAxes", "batch_axes"]

aten = torch.ops.aten


class _UnknownError(PassError):
    """It isn't known how an operator treats the batch."""


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
            PassError: if the operator is one whose treatment of the batch isn't known.
        """
        known = self._known(node)
        if not known:
            return
        axis = self.axis[known[0]]
        if node.target in SIZED:
            self.axis[node] = _halve_view(node, axis)
        elif node.target is aten.expand.default:
            self.axis[node] = _halve_expand(node, axis)
        else:
            self.axis[node] = self._after(node, axis, known)

    def follow(self, node: fx.Node, batch: int) -> None:
        """Find the batch axis of a node's value from its arguments' and leave the node as it is.

        Raises:
            PassError: if the batch can't be told from other axes in the value.
        """
        known = self._known(node)
        if not known:
            return
        axis = self.axis[known[0]]
        if node.target in SIZED:
            self.axis[node] = _viewed(node, axis, batch)
        elif node.target is aten.expand.default:
            self.axis[node] = axis + len(shape_of(node)) - len(shape_of(known[0]))
        else:
            self.axis[node] = self._after(node, axis, known)

    def _known(self, node: fx.Node) -> list[fx.Node]:
        return [arg for arg in node.all_input_nodes if arg in self.axis]

    def _after(self, node: fx.Node, axis: int, known: list[fx.Node]) -> int:
        """Return the batch axis behind an operator into which no sizes are written."""
        if node.target in (aten.transpose.int, aten.permute.default):
            return _permuted(node, axis)
        if node.target in (aten.unsqueeze.default, aten.squeeze.dim):
            return _shifted(node, axis)
        if node.target is aten.flatten.using_ints:
            return _flattened(node, axis)
        if node.target is aten.unflatten.int:
            return _unflattened(node, axis)
        if node.target is aten.stack.default:
            at = _axis(given(node, 1, "dim", 0), len(shape_of(node)))
            return axis + (at <= axis)
        if node.target is aten.repeat_interleave.self_int and _repeats_other(node, axis):
            return axis
        if node.target in REDUCING:
            return _reduced(node, axis)
        if node.target in ON_AXIS:
            return _along(node, axis)
        if node.target is operator.getitem:
            return axis
        if node.target in KEEPING:
            return _kept(node, axis)
        if is_pointwise(node) or node.target is aten.expand_as.default:
            return self._broadcast(node, known)
        raise _UnknownError(
            f"node {node.name}: it isn't known how {node.target} treats the batch, so the "
            "site can't share across CFG: use a method without asc there"
        )

    def _broadcast(self, node: fx.Node, known: list[fx.Node]) -> int:
        """Axes align from the right; every batched argument has to agree."""
        rank = len(shape_of(node))
        axes = {self.axis[arg] + rank - len(shape_of(arg)) for arg in known}
        if len(axes) != 1:
            raise PassError(f"node {node.name}: its arguments have the batch on different axes")
        return axes.pop()


def batch_axes(graph: fx.Graph, sources: Sequence[fx.Node], batch: int) -> dict[fx.Node, int]:
    """Return on which axis the values of a graph hold the batch, outermost where it is merged.

    A value is left out where the batch is lost among other axes. Of operators that aren't known,
    as convolutions, those are taken to keep the batch first that keep the size of the first axis.

    Args:
        graph: the whole graph; values of one half alone are left out.
        sources: its inputs that have the batch first.
        batch: its size.
    """
    axes = BatchAxes(sources)
    lost: set[fx.Node] = set()
    for node in graph.nodes:
        if node.meta.get(BATCH_AXIS) == LOST_AXIS:
            lost.add(node)
        elif node.meta.get(BATCH_AXIS, node.meta.get(BOTH_HALVES)) is not None:
            axes.axis[node] = node.meta.get(BATCH_AXIS, node.meta.get(BOTH_HALVES))
            continue
        if node.op != "call_function" or ONE_HALF in node.meta or node.target in FILLED:
            continue
        if any(arg in lost for arg in node.all_input_nodes):
            lost.add(node)
            continue
        try:
            axes.follow(node, batch)
        except _UnknownError:
            known = [arg for arg in node.all_input_nodes if arg in axes.axis]
            if _keeps_first(node, known, axes, batch):
                axes.axis[node] = 0
            else:
                lost.add(node)
        except PassError:
            lost.add(node)
    return axes.axis


def _keeps_first(node: fx.Node, known: list[fx.Node], axes: BatchAxes, batch: int) -> bool:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.dim() == 0 or any(axes.axis[a] for a in known):
        return False
    if node.target is aten.repeat_interleave.self_int:
        return True
    return value.shape[0] in {batch, *(shape_of(arg)[0] for arg in known)}


def _repeats_other(node: fx.Node, axis: int) -> bool:
    """Whether entries are repeated along another axis than the batch's."""
    dim = given(node, 2, "dim")
    return isinstance(dim, int) and dim % len(shape_of(node)) != axis


def _viewed(node: fx.Node, axis: int, batch: int) -> int:
    """Find the axis that begins where the batch's did and holds it whole."""
    before = math.prod(shape_of(node.all_input_nodes[0])[:axis])
    shape = shape_of(node)
    for at, size in enumerate(shape):
        if math.prod(shape[:at]) == before and size % batch == 0:
            return at
    raise PassError(f"node {node.name}: the batch is lost among other axes")


def _kept(node: fx.Node, axis: int) -> int:
    """Operators that mix values along axes at the end, among which the batch can't be."""
    rank = len(shape_of(node))
    if axis >= rank - MIXED_AXES.get(node.target, 0):
        raise PassError(
            f"node {node.name}: {node.target} mixes values along axis {axis}, where the batch is: "
            "sites can share across CFG only with the batch first"
        )
    return axis


def _halve_view(node: fx.Node, axis: int) -> int:
    if axis != 0:
        raise PassError(f"node {node.name}: a view while the batch is on axis {axis}")
    sizes = _sizes(node)
    if sizes[0] != -1:
        if sizes[0] % 2:
            raise PassError(f"node {node.name}: first size {sizes[0]} of a view has no halves")
        sizes[0] //= 2
    node.args = (node.args[0], sizes, *node.args[2:])
    return 0


def _halve_expand(node: fx.Node, axis: int) -> int:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    sizes = _sizes(node)
    moved = axis + len(sizes) - len(shape_of(source))
    if sizes[moved] != -1:
        sizes[moved] //= 2
    node.args = (source, sizes, *node.args[2:])
    return moved


def _permuted(node: fx.Node, axis: int) -> int:
    rank = len(shape_of(node))
    if node.target is aten.permute.default:
        return [size % rank for size in _sizes(node)].index(axis)
    first, second = (_axis(arg, rank) for arg in node.args[1:3])
    return {first: second, second: first}.get(axis, axis)


def _shifted(node: fx.Node, axis: int) -> int:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    before, after = len(shape_of(source)), len(shape_of(node))
    at = _axis(node.args[1], max(before, after))
    if after > before:
        return axis + (at <= axis)
    return axis - (after < before and at < axis)


def _flattened(node: fx.Node, axis: int) -> int:
    source = node.all_input_nodes[0]
    rank = len(shape_of(source))
    first, last = (_axis(arg, rank) for arg in (*node.args[1:], *(0, -1)[len(node.args) - 1 :]))
    if first < axis <= last:
        raise PassError(f"node {node.name}: the batch is merged into axis {first}, not outermost")
    return axis - (last - first) if axis > last else axis


def _unflattened(node: fx.Node, axis: int) -> int:
    rank = len(shape_of(node.all_input_nodes[0]))
    at = _axis(node.args[1], rank)
    if at == axis:
        raise PassError(f"node {node.name}: the axis that holds the batch is split")
    return axis + (len(shape_of(node)) - rank if at < axis else 0)


def _reduced(node: fx.Node, axis: int) -> int:
    rank = len(shape_of(node.all_input_nodes[0]))
    position = 2 if node.target is aten.linalg_vector_norm.default else 1
    dims = given(node, position, "dim")
    reduced = {_axis(at, rank) for at in dims} if isinstance(dims, list | tuple) else {axis}
    if axis in reduced:
        raise PassError(f"node {node.name}: {node.target} reduces the batch")
    kept = len(shape_of(node)) == rank
    return axis if kept else axis - sum(at < axis for at in reduced)


def _along(node: fx.Node, axis: int) -> int:
    """Operators that work along one axis, which has to be another than the batch."""
    source = node.all_input_nodes[0]
    rank = len(shape_of(source))
    position = 1
    if node.target in (aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default):
        position = 2
    at = _axis(given(node, position, "dim", 0), rank)
    if at == axis:
        raise PassError(f"node {node.name}: {node.target} works along the batch")
    return axis - (node.target in DROPS_AXIS and at < axis)


def _sizes(node: fx.Node) -> list[int]:
    stated = node.args[1]
    assert isinstance(stated, list | tuple)
    sizes = [size for size in stated if isinstance(size, int)]
    if len(sizes) != len(stated):
        raise PassError(f"node {node.name}: its sizes aren't numbers")
    return sizes


def _axis(value: object, rank: int) -> int:
    assert isinstance(value, int)
    return value % rank
