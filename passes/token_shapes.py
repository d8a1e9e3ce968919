"""How operators that shape values treat the axis of image tokens: reshapes, slices, joins."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate, pairwise

import torch
from torch import fx

from .graphs import given, shape_of
from .token_axis import TokenAxis, moved, reshaped
from .token_step import Axes, Rule, Step, dim_of, mixed, source_of

__all__ = ["SHAPE_RULES"]

aten = torch.ops.aten


def _reshape(node: fx.Node, axes: Axes) -> Step:
    source, axis = source_of(node, axes)
    found = reshaped(axis, shape_of(source), shape_of(node))
    return mixed(node) if found is None else Step(found)


def _transpose(node: fx.Node, axes: Axes) -> Step:
    source, axis = source_of(node, axes)
    rank = len(shape_of(source))
    first, second = dim_of(node, 1, rank), dim_of(node, 2, rank)
    return Step(moved(axis, {first: second, second: first}.get(axis.dim, axis.dim)))


def _permute(node: fx.Node, axes: Axes) -> Step:
    source, axis = source_of(node, axes)
    order = node.args[1]
    assert isinstance(order, list | tuple)
    places = [int(place) % len(shape_of(source)) for place in order]  # type: ignore[arg-type]
    return Step(moved(axis, places.index(axis.dim)))


def _expand(node: fx.Node, axes: Axes) -> Step:
    source, axis = source_of(node, axes)
    return Step(moved(axis, axis.dim + len(shape_of(node)) - len(shape_of(source))))


def _repeat(node: fx.Node, axes: Axes) -> Step:
    source, axis = source_of(node, axes)
    dim = axis.dim + len(shape_of(node)) - len(shape_of(source))
    times = shape_of(node)[dim] // axis.size
    return Step(replace(axis, dim=dim, outer=times * axis.outer))


def _repeat_each(node: fx.Node, axes: Axes) -> Step:
    _, axis = source_of(node, axes)
    if given(node, 2, "dim") is None:
        mixed(node)
    times = shape_of(node)[axis.dim] // axis.size
    return Step(replace(axis, inner=times * axis.inner))


def _slice(node: fx.Node, axes: Axes) -> Step:
    source, axis = source_of(node, axes)
    if dim_of(node, 1, len(shape_of(source))) != axis.dim:
        return Step(axis)
    ends = _ends(node, 2, shape_of(source)[axis.dim])
    return Step(_range(node, axis, *ends))


def _slice_written(node: fx.Node, axes: Axes) -> Step:
    """Writing along another axis needs both in order; along the tokens' the image is whole."""
    target, source = node.args[0], node.args[1]
    assert isinstance(target, fx.Node)
    assert isinstance(source, fx.Node)
    dim = dim_of(node, 2, len(shape_of(node)))
    axis, written = axes.get(target), axes.get(source)
    known = axis or written
    if not isinstance(known, TokenAxis):
        mixed(node)
    if dim != known.dim:
        return _written(node, axes, target, source, known, known)
    if not isinstance(axis, TokenAxis) or _range(node, axis, *_ends(node, 3, axis.size)) != written:
        mixed(node)
    return Step(axis)


def _select_written(node: fx.Node, axes: Axes) -> Step:
    target, source = node.args[0], node.args[1]
    assert isinstance(target, fx.Node)
    assert isinstance(source, fx.Node)
    dim = dim_of(node, 2, len(shape_of(node)))
    axis, written = axes.get(target), axes.get(source)
    if isinstance(written, TokenAxis):
        axis = moved(written, written.dim + (dim <= written.dim))
    if not isinstance(axis, TokenAxis) or dim == axis.dim:
        mixed(node)
    return _written(node, axes, target, source, axis, moved(axis, axis.dim - (dim < axis.dim)))


def _written(
    node: fx.Node, axes: Axes, target: fx.Node, source: fx.Node, whole: TokenAxis, part: TokenAxis
) -> Step:
    sides = []
    for arg, axis in ((target, whole), (source, part)):
        if axes.get(arg) is None:
            sides.append((arg, axis))
        elif axes[arg] != axis:
            mixed(node)
    return Step(whole, tuple(sides))


def _ends(node: fx.Node, position: int, size: int) -> tuple[int, int]:
    """Return the range of a slice."""
    start, stop = given(node, position, "start"), given(node, position + 1, "end")
    first = 0 if start is None else start
    last = size if stop is None else stop
    step = given(node, position + 2, "step", 1)
    if not isinstance(first, int) or not isinstance(last, int) or step != 1:
        mixed(node)
    return (max(0, first + size) if first < 0 else first), min(last + size * (last < 0), size)


def _range(node: fx.Node, axis: TokenAxis, first: int, last: int) -> TokenAxis | None:
    """Return where a range of an axis holds the image tokens: all of them, or none."""
    image = axis.first, axis.first + axis.image
    if not axis.alone or (
        first < image[1] and image[0] < last and not (first <= image[0] and image[1] <= last)
    ):
        mixed(node)
    if last <= image[0] or image[1] <= first:
        return None
    return replace(axis, length=last - first, first=axis.first - first)


def _select(node: fx.Node, axes: Axes) -> Step:
    source, axis = source_of(node, axes)
    rank = len(shape_of(source))
    dim = dim_of(node, 1, rank)
    if dim != axis.dim:
        return Step(moved(axis, axis.dim - (dim < axis.dim)))
    index = given(node, 2, "index")
    assert isinstance(index, int)
    index %= axis.size
    if not axis.alone or axis.first <= index < axis.first + axis.image:
        mixed(node)
    return Step(None)


def _split(node: fx.Node, axes: Axes) -> Step:
    source, axis = source_of(node, axes)
    dim = dim_of(node, 2, len(shape_of(source)))
    parts = [tuple(part.shape) for part in node.meta["val"]]
    if dim != axis.dim:
        return Step((axis,) * len(parts))
    ends = [0, *accumulate(shape[dim] for shape in parts)]
    return Step(tuple(_range(node, axis, first, last) for first, last in pairwise(ends)))


def _unbind(node: fx.Node, axes: Axes) -> Step:
    source, axis = source_of(node, axes)
    dim = dim_of(node, 1, len(shape_of(source)))
    if dim == axis.dim:
        mixed(node)
    return Step((moved(axis, axis.dim - (dim < axis.dim)),) * len(node.meta["val"]))


def _joined(node: fx.Node, axes: Axes) -> Step:
    """Along another axis all parts have to be in order; along the tokens' one holds the image."""
    parts = node.args[0]
    assert isinstance(parts, list | tuple)
    nodes = [part for part in parts if isinstance(part, fx.Node)]
    held = {axes.get(part) for part in nodes} - {None}
    if len(held) != 1:
        mixed(node)
    axis = held.pop()
    assert isinstance(axis, TokenAxis)
    rank = len(shape_of(node))
    dim = dim_of(node, 1, rank)
    if node.target is aten.stack.default or dim != axis.dim:
        sides = tuple((part, axis) for part in dict.fromkeys(nodes) if axes.get(part) is None)
        new = node.target is aten.stack.default and dim <= axis.dim
        return Step(moved(axis, axis.dim + new), sides)
    at = [number for number, part in enumerate(nodes) if axes.get(part) is not None]
    if len(at) != 1 or not axis.alone:
        mixed(node)
    before = sum(shape_of(part)[dim] for part in nodes[: at[0]])
    return Step(replace(axis, length=shape_of(node)[dim], first=before + axis.first))


def _padded(node: fx.Node, axes: Axes) -> Step:
    source, axis = source_of(node, axes)
    pads = node.args[1]
    assert isinstance(pads, list | tuple)
    place = 2 * (len(shape_of(source)) - 1 - axis.dim)
    left, right = (*pads[place : place + 2], 0, 0)[:2] if place < len(pads) else (0, 0)
    if (left, right) == (0, 0):
        return Step(axis)
    if not axis.alone or not isinstance(left, int) or left < 0:
        mixed(node)
    return Step(replace(axis, length=shape_of(node)[axis.dim], first=axis.first + left))


SHAPE_RULES: Mapping[object, Rule] = {
    target: rule
    for targets, rule in (
        ((aten.view.default, aten.reshape.default, aten._unsafe_view.default), _reshape),
        ((aten.flatten.using_ints, aten.unflatten.int), _reshape),
        ((aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default), _reshape),
        ((aten.transpose.int,), _transpose),
        ((aten.permute.default,), _permute),
        ((aten.expand.default,), _expand),
        ((aten.repeat.default,), _repeat),
        ((aten.repeat_interleave.self_int,), _repeat_each),
        ((aten.slice.Tensor,), _slice),
        ((aten.select.int,), _select),
        ((aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default), _split),
        ((aten.unbind.int,), _unbind),
        ((aten.cat.default, aten.stack.default), _joined),
        ((aten.constant_pad_nd.default, aten.pad.default), _padded),
        ((aten.slice_scatter.default,), _slice_written),
        ((aten.select_scatter.default,), _select_written),
    )
    for target in targets
}
"""The rule of each operator that moves values without computing any."""
