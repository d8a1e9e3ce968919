"""Put values into tile order, as near to where they are made as possible.

    table → cast → unsqueeze → site   becomes   table in tile order → cast → unsqueeze → site

So that what many sites read, such as a rotary table, is put in order once for all of them.
"""

import operator

import torch
from torch import fx

from .graphs import add_weight, call, given, shape_of
from .operators import CASTS, LINEAR, is_pointwise
from .tile_window import TileLayout
from .token_axis import TokenAxis, moved, order_of, reshaped

__all__ = ["ORDER", "RESHAPES", "Ordering"]

aten = torch.ops.aten
ORDER = "tile_order"
"""How the names of weights begin that hold the order of tokens, which no checkpoint has."""

UNARY = (
    *CASTS,
    aten.contiguous.default,
    aten.clone.default,
    aten.view_as_complex.default,
    aten.view_as_real.default,
)
PARTS = (
    aten.chunk.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.unbind.int,
)
SAME_EVERYWHERE = (
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.empty_like.default,
    aten.full_like.default,
    aten.zeros.default,
    aten.ones.default,
    aten.full.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.empty.memory_format,
)
RESHAPES = (
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.squeeze.dim,
    aten.unsqueeze.default,
)


class Ordering:
    """Nodes in tile order beside those of a graph in the model's; each is made once.

    Args:
        graph: where they are added, each behind the node that it is of.
        layout: the order.
    """

    def __init__(self, graph: fx.Graph, layout: TileLayout) -> None:
        self.graph = graph
        self.layout = layout
        self._made: dict[tuple[fx.Node, TokenAxis, bool], fx.Node] = {}
        self._orders: dict[tuple[TokenAxis, bool], fx.Node] = {}
        self._inputs = list(graph.find_nodes(op="placeholder"))

    def ordered(self, node: fx.Node, axis: TokenAxis) -> fx.Node:
        """Return a node's value with its entries along an axis in tile order."""
        key = (node, axis, False)
        if key not in self._made:
            self._made[key] = self._ordered(node, axis)
        return self._made[key]

    def _ordered(self, node: fx.Node, axis: TokenAxis) -> fx.Node:
        sources = _sources(node, axis)
        if sources is None:
            return self.select(node, axis)
        ordered = {arg: self.ordered(arg, at) for arg, at in sources.items()}
        if all(arg is made for arg, made in ordered.items()):
            return node
        if node.target in LINEAR:  # which is dearer than to put its value in order
            return self.select(node, axis)
        with self.graph.inserting_after(node):
            return self.graph.node_copy(node, lambda arg: ordered.get(arg, arg))

    def select(self, node: fx.Node, axis: TokenAxis, *, back: bool = False) -> fx.Node:
        """Return a node's value put in tile order right behind it, or back into the model's."""
        key = (node, axis, back)
        if key not in self._made:
            order = self._order(axis, back)
            with self.graph.inserting_after(order if node.op == "placeholder" else node):
                self._made[key] = call(self.graph, aten.index_select.default, node, axis.dim, order)
        return self._made[key]

    def _order(self, axis: TokenAxis, back: bool) -> fx.Node:
        key = (moved(axis, 0), back)
        if key not in self._orders:
            with self.graph.inserting_after(self._inputs[-1]):
                self._orders[key] = add_weight(
                    self.graph,
                    f"{ORDER}_{len(self._orders)}",
                    order_of(axis, self.layout, back=back),
                )
        return self._orders[key]


Sources = dict[fx.Node, TokenAxis]


def _sources(node: fx.Node, axis: TokenAxis) -> Sources | None:
    """Return what has to be in order for a node's value to be, None if only the value itself can.

    Empty where the value is the same for all tokens.
    """
    if node.op != "call_function":
        return None
    if node.target in SAME_EVERYWHERE:
        return {}
    if node.target is operator.getitem or node.target in PARTS:
        return _parted(node, axis)
    if node.target is aten.linear.default:
        rows = axis.dim < len(shape_of(node)) - 1
        return {node.all_input_nodes[0]: axis} if rows else None
    if node.target is aten.repeat_interleave.self_int:
        return _repeated(node, axis)
    if node.target in UNARY or node.target is aten.slice.Tensor or node.target is aten.select.int:
        return _same(node, axis)
    if node.target in RESHAPES:
        (source,) = node.all_input_nodes
        found = reshaped(axis, shape_of(node), shape_of(source))
        return None if found is None else {source: found}
    if node.target in (aten.transpose.int, aten.permute.default):
        return {node.all_input_nodes[0]: moved(axis, _came_from(node)[axis.dim])}
    if node.target is aten.expand.default or is_pointwise(node):
        return _broadcast(node, axis)
    if node.target in (aten.cat.default, aten.stack.default):
        return _joined(node, axis)
    return None


def _same(node: fx.Node, axis: TokenAxis) -> Sources | None:
    source = node.all_input_nodes[0]
    if node.target in UNARY:
        return {source: axis}
    dim = _dim(node, len(shape_of(source)))
    if node.target is aten.select.int:
        return {source: moved(axis, axis.dim + (dim <= axis.dim))}
    return None if dim == axis.dim else {source: axis}


def _parted(node: fx.Node, axis: TokenAxis) -> Sources | None:
    """A part is in order if the whole is, unless the whole is parted along the axis."""
    if node.target is not operator.getitem:
        return {node.all_input_nodes[0]: axis}
    (parts,) = node.all_input_nodes
    if parts.target not in PARTS:
        return None
    unbound = parts.target is aten.unbind.int
    rank = len(shape_of(parts.all_input_nodes[0]))
    dim = _dim(parts, rank, 1 if unbound else 2)
    if unbound:
        return {parts: moved(axis, axis.dim + (dim <= axis.dim))}
    return None if dim == axis.dim else {parts: axis}


def _repeated(node: fx.Node, axis: TokenAxis) -> Sources | None:
    """Repeated for each token a value is the same for all of them."""
    source = node.all_input_nodes[0]
    dim = given(node, 2, "dim")
    if not isinstance(dim, int):
        return None
    times = shape_of(node)[axis.dim] // shape_of(source)[axis.dim]
    if times % (axis.length * axis.inner) == 0:
        return {}
    return {source: axis} if times == 1 else None


def _broadcast(node: fx.Node, axis: TokenAxis) -> Sources:
    found = {}
    for source in node.all_input_nodes:
        dim = axis.dim - len(shape_of(node)) + len(shape_of(source))
        if dim >= 0 and shape_of(source)[dim] > 1:
            found[source] = moved(axis, dim)
    return found


def _joined(node: fx.Node, axis: TokenAxis) -> Sources | None:
    dim = _dim(node, len(shape_of(node)))
    if dim == axis.dim:
        return None
    before = node.target is aten.stack.default and dim < axis.dim
    return dict.fromkeys(node.all_input_nodes, moved(axis, axis.dim - before))


def _came_from(node: fx.Node) -> list[int]:
    """Return for each axis of a transposed value which one of the source it was."""
    rank = len(shape_of(node))
    places = list(range(rank))
    if node.target is aten.permute.default:
        order = node.args[1]
        assert isinstance(order, list | tuple)
        return [int(place) % rank for place in order]  # type: ignore[arg-type]
    first, second = (int(dim) % rank for dim in node.args[1:3])  # type: ignore[arg-type]
    places[first], places[second] = second, first
    return places


def _dim(node: fx.Node, rank: int, position: int = 1) -> int:
    dim = given(node, position, "dim", 0)
    assert isinstance(dim, int)
    return dim % rank
