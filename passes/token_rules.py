"""How operators treat the axis of image tokens: what each keeps, moves or drops.

Every rule answers with where the result holds the tokens, and with the operands that have to be put
into the same order: position embeddings, rotary tables, masks. An operator without a rule, or one
that parts or mixes tokens, raises `MixedError`: it needs them in the model's own order.
"""

import operator
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import fx

from .graphs import given, shape_of
from .operators import CASTS, MATMUL, SOFTMAX, is_pointwise
from .token_axis import TokenAxis, moved
from .token_shapes import SHAPE_RULES
from .token_step import Axes, Rule, Step, dim_of, mixed, source_of

__all__ = ["step"]

aten = torch.ops.aten


def step(node: fx.Node, axes: Axes) -> Step:
    """Follow the image tokens through an operator.

    Args:
        node: a call, of which at least one argument holds tokens.
        axes: where values hold tokens.

    Raises:
        MixedError: if the operator takes tokens for more than a set.
    """
    if node.target is operator.getitem:
        return _item(node, axes)
    rule = RULES.get(node.target, _pointwise if is_pointwise(node) else None)
    return mixed(node) if rule is None else rule(node, axes)


def _item(node: fx.Node, axes: Axes) -> Step:
    source, number = node.args
    assert isinstance(source, fx.Node)
    assert isinstance(number, int)
    held = axes[source]
    return Step(held[number] if isinstance(held, tuple) else None)


def _kept(node: fx.Node, axes: Axes) -> Step:
    return Step(source_of(node, axes)[1])


def _cast_as(node: fx.Node, axes: Axes) -> Step:
    """Of its second argument only the dtype counts."""
    first = node.args[0]
    return Step(axes.get(first) if isinstance(first, fx.Node) else None)


def _nowhere(node: fx.Node, axes: Axes) -> Step:
    """Values that are the same in whatever order tokens are."""
    del node, axes
    return Step(None)


def _pointwise(node: fx.Node, axes: Axes) -> Step:
    """Axes align from the right."""
    rank = len(shape_of(node))
    aligned = {
        replace(held, dim=held.dim + rank - len(shape_of(arg)))
        for arg in node.all_input_nodes
        if isinstance(held := axes.get(arg), TokenAxis)
    }
    if len(aligned) != 1:
        mixed(node)
    (axis,) = aligned
    if shape_of(node)[axis.dim] != axis.size:
        mixed(node)
    sides = []
    for arg in node.all_input_nodes:
        dim = axis.dim - rank + len(shape_of(arg))
        if axes.get(arg) is None and dim >= 0 and shape_of(arg)[dim] > 1:
            sides.append((arg, moved(axis, dim)))
    return Step(axis, tuple(sides))


def _rows(node: fx.Node, axes: Axes) -> Step:
    """Each row is taken for itself."""
    return _in_front(node, axes, 1)


def _normalised(node: fx.Node, axes: Axes) -> Step:
    shape = node.args[1]
    return _in_front(node, axes, len(shape) if isinstance(shape, list | tuple) else 1)


def _in_front(node: fx.Node, axes: Axes, mixing: int) -> Step:
    """Tokens have to be in front of so many of the last axes, along which values are mixed."""
    source, axis = source_of(node, axes)
    return Step(axis) if axis.dim < len(shape_of(source)) - mixing else mixed(node)


def _softmax(node: fx.Node, axes: Axes) -> Step:
    source, axis = source_of(node, axes)
    if dim_of(node, 1, len(shape_of(source))) == axis.dim:
        mixed(node)
    return Step(axis)


def _addmm(node: fx.Node, axes: Axes) -> Step:
    first = node.args[1]
    rows = axes.get(first) if isinstance(first, fx.Node) else None
    if not isinstance(rows, TokenAxis) or rows.dim != 0:
        mixed(node)
    return Step(rows)


def _matmul(node: fx.Node, axes: Axes) -> Step:
    """Rows and batches keep their places; tokens as columns, or summed over, don't."""
    first, second = node.args[0], node.args[1]
    assert isinstance(first, fx.Node)
    assert isinstance(second, fx.Node)
    axis, rank = axes.get(first), len(shape_of(node))
    if not isinstance(axis, TokenAxis) or axes.get(second) is not None:
        mixed(node)
    place = axis.dim + rank - len(shape_of(first))
    if place >= rank - 1:
        mixed(node)
    dim = place - rank + len(shape_of(second))
    batched = place < rank - 2 and dim >= 0 and shape_of(second)[dim] > 1
    return Step(moved(axis, place), ((second, moved(axis, dim)),) if batched else ())


def _along(node: fx.Node, axes: Axes) -> Step:
    """Selecting by index, or reducing, or rolling along another axis."""
    source, axis = source_of(node, axes)
    if dim_of(node, 1, len(shape_of(source))) == axis.dim:
        mixed(node)
    return Step(axis)


def _reduced(node: fx.Node, axes: Axes) -> Step:
    """A sum over tokens doesn't mind their order; what is left of other axes shifts."""
    source, axis = source_of(node, axes)
    rank = len(shape_of(source))
    reduced = given(node, 2 if node.target is aten.linalg_vector_norm.default else 1, "dim")
    listed = reduced if isinstance(reduced, list | tuple) else [reduced]
    dims = {dim % rank for dim in listed if isinstance(dim, int)} or set(range(rank))
    if axis.dim in dims:
        return Step(None) if axis.alone else mixed(node)
    kept = len(shape_of(node)) == rank
    return Step(axis if kept else moved(axis, axis.dim - sum(dim < axis.dim for dim in dims)))


OWN_RULES: Mapping[object, Rule] = {
    target: rule
    for targets, rule in (
        (CASTS, _kept),
        ((aten.type_as.default,), _cast_as),
        ((aten.contiguous.default, aten.clone.default, aten.view_as_complex.default), _kept),
        ((aten.view_as_real.default, aten.detach.default), _kept),
        ((aten.zeros_like.default, aten.ones_like.default, aten.empty_like.default), _nowhere),
        ((aten.full_like.default, aten.new_zeros.default, aten.new_ones.default), _nowhere),
        ((aten.new_empty.default, aten.new_full.default), _nowhere),
        ((aten.linear.default, aten.mm.default), _rows),
        ((aten.layer_norm.default, aten.rms_norm.default), _normalised),
        (SOFTMAX, _softmax),
        ((aten.addmm.default,), _addmm),
        (MATMUL, _matmul),
        ((aten.index_select.default, aten.cumsum.default), _along),
        ((aten.mean.dim, aten.sum.dim_IntList, aten.amax.default), _reduced),
        ((aten.var.correction, aten.linalg_vector_norm.default), _reduced),
        ((aten.expand_as.default, aten.copy.default), _pointwise),
    )
    for target in targets
}
RULES: Mapping[object, Rule] = {**OWN_RULES, **SHAPE_RULES}
