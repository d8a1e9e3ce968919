"""Where an operator's value holds what its arguments hold on an axis, and the way back.

Samples of a batch don't mix in a denoiser: an operator carries the axis of the batch along, and
half of its value along that axis is made from half of what it takes.
"""

import math
import operator
from collections.abc import Sequence

import torch
from torch import fx

from ditc.runtime.errors import PassError

from .batch_rules import (
    ALIGNED,
    DROPS_AXIS,
    FILLED,
    INDEXING,
    KEEPING,
    MIXED_AXES,
    ON_AXIS,
    PADDING,
    REDUCING,
    SIZED,
    WRITING,
)
from .graphs import given, shape_of
from .operators import LINEAR, activation_of, is_pointwise

__all__ = ["BATCH", "UnknownOperatorError", "asked", "carriers", "indifferent", "moved", "numbers"]

aten = torch.ops.aten
BATCH = 2
"""Samples of the smallest batch that has halves."""


class UnknownOperatorError(PassError):
    """It isn't known how an operator treats the batch."""


def carriers(node: fx.Node) -> list[fx.Node]:
    """Return the arguments of which a node's value may hold the batch; weights are none of them."""
    if node.target in FILLED:
        return []
    if node.target in LINEAR:
        return [activation_of(node)]
    if node.target in ALIGNED or is_pointwise(node):
        return list(node.all_input_nodes)
    if node.target in (aten.cat.default, aten.stack.default, aten.einsum.default):
        return list(node.all_input_nodes)
    places = WRITING.get(node.target) or INDEXING.get(node.target, (0,))
    values = [node.args[at] for at in places if at < len(node.args)]
    return [value for value in values if isinstance(value, fx.Node)]


def moved(node: fx.Node, source: fx.Node, axis: int, batch: int = BATCH) -> int:
    """Return the axis of a node's value that holds the batch if an argument has it on an axis.

    Merged into a larger axis the batch is outermost, so that the halves of that axis are still
    the halves of the batch.

    Args:
        node: an operator.
        source: one of its carriers.
        axis: of the argument's value.
        batch: how many samples there are at least.

    Raises:
        PassError: if the batch is mixed, or lost among other axes.
        UnknownOperatorError: if it isn't known what the operator does with it.
    """
    if node.target in SIZED:
        return _viewed(node, source, axis, batch)
    if node.target in (aten.transpose.int, aten.permute.default):
        return _permuted(node, axis)
    if node.target in (aten.unsqueeze.default, aten.squeeze.dim):
        return _shifted(node, source, axis)
    if node.target is aten.flatten.using_ints:
        return _flattened(node, source, axis)
    if node.target is aten.unflatten.int:
        return _unflattened(node, source, axis, batch)
    if node.target is aten.stack.default:
        at = _axis(given(node, 1, "dim", 0), len(shape_of(node)))
        return axis + (at <= axis)
    if node.target is aten.repeat.default:
        return _repeated(node, source, axis)
    if node.target is aten.repeat_interleave.self_int and given(node, 2, "dim") is not None:
        return axis
    if node.target in REDUCING:
        return _reduced(node, source, axis)
    if node.target in ON_AXIS:
        return _along(node, source, axis)
    if node.target is aten.einsum.default:
        return _summed(node, source, axis)
    if node.target in PADDING:
        return _padded(node, axis)
    if node.target is operator.getitem:
        return axis
    if node.target in WRITING:
        return _written(node, source, axis)
    if node.target in KEEPING or node.target in INDEXING:
        return _kept(node, axis)
    if node.target in ALIGNED or node.target is aten.expand.default or is_pointwise(node):
        return _kept(node, axis + len(shape_of(node)) - len(shape_of(source)))
    raise UnknownOperatorError(
        f"node {node.name}: it isn't known how {node.target} treats the batch, so the "
        "site can't share across CFG: use a method without asc there"
    )


def asked(node: fx.Node, source: fx.Node, axis: int) -> int | None:
    """Return the axis of an argument of which half makes half of a node's value along an axis.

    None if the whole argument does, for it is broadcast along that axis.

    Raises:
        PassError: if half of the value isn't made from half of the argument.
    """
    if node.target is operator.getitem:
        return axis
    obstacle: PassError | None = None
    for at, size in enumerate(shape_of(source)):
        try:
            if moved(node, source, at) == axis and size % BATCH == 0:
                return at
        except UnknownOperatorError:
            raise
        except PassError as error:
            obstacle = error
    if _spreads(node):
        return None
    raise obstacle or PassError(f"node {node.name}: half of it isn't half of {source.name}")


def indifferent(node: fx.Node, source: fx.Node) -> bool:
    """Whether a node takes no more than a dtype and a device from an argument."""
    return node.target in FILLED or (
        node.target is aten.type_as.default and source is not node.args[0]
    )


def _spreads(node: fx.Node) -> bool:
    """Whether a node's value may have axes in front that an argument hasn't."""
    own = (aten.expand.default, aten.repeat.default, aten.copy.default, aten.einsum.default)
    return node.target in (*ALIGNED, *own) or is_pointwise(node)


def numbers(node: fx.Node, value: object) -> list[int]:
    """Return sizes, or numbers of axes, that are written into a node.

    Raises:
        PassError: if they aren't numbers.
    """
    assert isinstance(value, list | tuple)
    found = [size for size in value if isinstance(size, int)]
    if len(found) != len(value):
        raise PassError(f"node {node.name}: its sizes aren't numbers")
    return found


def _viewed(node: fx.Node, source: fx.Node, axis: int, batch: int) -> int:
    """Find the axis that begins where the batch's did and holds it whole."""
    before = math.prod(shape_of(source)[:axis])
    shape = shape_of(node)
    for at, size in enumerate(shape):
        if math.prod(shape[:at]) == before and size % batch == 0:
            return at
    raise PassError(f"node {node.name}: the batch is lost among other axes")


def _permuted(node: fx.Node, axis: int) -> int:
    rank = len(shape_of(node))
    if node.target is aten.permute.default:
        return [at % rank for at in numbers(node, node.args[1])].index(axis)
    first, second = (_axis(arg, rank) for arg in node.args[1:3])
    return {first: second, second: first}.get(axis, axis)


def _shifted(node: fx.Node, source: fx.Node, axis: int) -> int:
    before, after = len(shape_of(source)), len(shape_of(node))
    at = _axis(node.args[1], max(before, after))
    if after > before:
        return axis + (at <= axis)
    if after < before and at == axis:
        raise PassError(f"node {node.name}: the batch is squeezed")
    return axis - (after < before and at < axis)


def _flattened(node: fx.Node, source: fx.Node, axis: int) -> int:
    rank = len(shape_of(source))
    first, last = (_axis(arg, rank) for arg in (*node.args[1:], *(0, -1)[len(node.args) - 1 :]))
    if first < axis <= last and math.prod(shape_of(source)[first:axis]) > 1:
        raise PassError(f"node {node.name}: the batch is merged into axis {first}, not outermost")
    return axis - (last - first) if axis > last else min(axis, first)


def _unflattened(node: fx.Node, source: fx.Node, axis: int, batch: int) -> int:
    shape = shape_of(node)
    at = _axis(node.args[1], len(shape_of(source)))
    if at == axis and shape[at] % batch:
        raise PassError(f"node {node.name}: the axis that holds the batch is split")
    return axis + (len(shape) - len(shape_of(source)) if at < axis else 0)


def _repeated(node: fx.Node, source: fx.Node, axis: int) -> int:
    shift = len(shape_of(node)) - len(shape_of(source))
    size = shape_of(source)[axis]
    if size > 1 and numbers(node, node.args[1])[axis + shift] != 1:
        raise PassError(f"node {node.name}: the batch is repeated")
    return axis + shift


def _reduced(node: fx.Node, source: fx.Node, axis: int) -> int:
    rank = len(shape_of(source))
    position = 2 if node.target is aten.linalg_vector_norm.default else 1
    dims = given(node, position, "dim")
    reduced = {_axis(at, rank) for at in dims} if isinstance(dims, Sequence) else {axis}
    if axis in reduced:
        raise PassError(f"node {node.name}: {node.target} reduces the batch")
    kept = len(shape_of(node)) == rank
    return axis if kept else axis - sum(at < axis for at in reduced)


def _summed(node: fx.Node, source: fx.Node, axis: int) -> int:
    """Find the letter of an axis in the equation, and where that is in the result."""
    equation, operands = node.args[:2]
    assert isinstance(equation, str)
    assert isinstance(operands, Sequence)
    taken, _, made = equation.replace(" ", "").partition("->")
    if not made or "." in equation:
        raise UnknownOperatorError(
            f"node {node.name}: it isn't known where einsum {equation!r} puts the batch, so the "
            "site can't share across CFG: use a method without asc there"
        )
    terms = zip(taken.split(","), operands, strict=True)
    letters = {term[axis] for term, operand in terms if operand is source}
    if len(letters) > 1 or not letters <= set(made):
        raise PassError(f"node {node.name}: einsum {equation!r} sums over the batch")
    return made.index(letters.pop())


def _along(node: fx.Node, source: fx.Node, axis: int) -> int:
    """Operators that work along one axis, which has to be another than the batch."""
    rank = len(shape_of(source))
    position = 1
    if node.target in (aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default):
        position = 2
    at = _axis(given(node, position, "dim", 0), rank)
    if at == axis:
        raise PassError(f"node {node.name}: {node.target} works along the batch")
    return axis - (node.target in DROPS_AXIS and at < axis)


def _padded(node: fx.Node, axis: int) -> int:
    """Sizes to pad by come in pairs, those of the last axis first."""
    at = 2 * (len(shape_of(node)) - 1 - axis)
    if any(numbers(node, node.args[1])[at : at + 2]):
        raise PassError(f"node {node.name}: {node.target} pads the batch")
    return axis


def _written(node: fx.Node, source: fx.Node, axis: int) -> int:
    """Operators that write their second argument into their first, along one axis."""
    rank = len(shape_of(node))
    if node.target is aten.copy.default:
        return axis + rank - len(shape_of(source))
    position = 1 if node.target is aten.index_copy.default else 2
    at = _axis(given(node, position, "dim", 0), rank)
    if node.target is aten.select_scatter.default and source is not node.args[0]:
        return axis + (at <= axis)
    if at == axis:
        raise PassError(f"node {node.name}: {node.target} works along the batch")
    return axis


def _kept(node: fx.Node, axis: int) -> int:
    """Operators that mix values along axes at the end, among which the batch can't be."""
    rank = len(shape_of(node))
    if axis >= rank - MIXED_AXES.get(node.target, 0):
        raise PassError(
            f"node {node.name}: {node.target} mixes values along axis {axis}, where the batch is: "
            "sites can share across CFG only with the batch first"
        )
    return axis


def _axis(value: object, rank: int) -> int:
    assert isinstance(value, int)
    return value % rank
