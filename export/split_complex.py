"""Split complex numbers: z   becomes   its real and its imaginary part, a value each.

Engines have no complex numbers, which rotary embeddings are often written with. As both parts have
the shape of z, operators that only move elements do to each what they did to z.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx
from torch.utils import _pytree as pytree

from ditc.passes.base import Pass
from ditc.passes.graphs import call, infer, weight
from ditc.passes.operators import CASTS, MOVES
from ditc.runtime.errors import PassError

from .fold_constants import add_constant

__all__ = ["SplitComplex"]

aten = torch.ops.aten

Parts = tuple[fx.Node, fx.Node]
REAL = {
    torch.complex32: torch.float16,
    torch.complex64: torch.float32,
    torch.complex128: torch.float64,
}
EACH = frozenset(
    (
        *MOVES,
        *CASTS,
        aten.contiguous.default,
        aten.clone.default,
        aten.copy.default,
        aten.alias.default,
        aten.neg.default,
        aten.index.Tensor,
        aten.index_select.default,
        aten.gather.default,
        aten.zeros.default,
        aten.zeros_like.default,
        aten.new_zeros.default,
        aten.pad_sequence.default,
        aten.constant_pad_nd.default,
    )
)
"""Operators that do the same to each part."""


@dataclass(frozen=True)
class SplitComplex(Pass):
    """Compute with real numbers alone."""

    name: ClassVar[str] = "split-complex"

    def rewrite(self, graph: fx.Graph) -> int:
        """Replace complex values and return how many."""
        parts: dict[fx.Node, Parts] = {}
        for node in list(graph.nodes):
            takes = any(arg in parts for arg in node.all_input_nodes)
            if node.op == "output" and takes:
                raise PassError("the graph returns complex numbers, which engines don't have")
            if _is_complex(node):
                with graph.inserting_before(node):
                    parts[node] = _parts(graph, node, parts)
            elif takes:
                _real(graph, node, parts)
        for node in reversed(parts):
            graph.erase_node(node)
        return len(parts)


def _is_complex(node: fx.Node) -> bool:
    leaves = pytree.tree_leaves(node.meta.get("val"))
    return any(isinstance(leaf, torch.Tensor) and leaf.is_complex() for leaf in leaves)


def _parts(graph: fx.Graph, node: fx.Node, parts: Mapping[fx.Node, Parts]) -> Parts:
    """Add the two parts of a complex value at the insert point."""
    if node.op == "placeholder":
        raise PassError(f"input {node.name} is complex, which engines don't take")
    if node.op == "get_attr":
        owner = graph.owning_module
        assert isinstance(owner, fx.GraphModule)
        held = weight(owner, str(node.target))
        if held.is_meta:
            raise PassError(f"weight {node.target} is complex and isn't loaded: load the model")
        return add_constant(graph, held.real.clone()), add_constant(graph, held.imag.clone())
    if node.target in RULES:
        return RULES[node.target](graph, node, parts)
    if node.target not in EACH:
        raise PassError(
            f"node {node.name}: {node.target} makes complex numbers, which engines don't have"
        )
    real, imaginary = (_of_each(graph, node, parts, part) for part in (0, 1))
    return real, imaginary


def _of_each(graph: fx.Graph, node: fx.Node, parts: Mapping[fx.Node, Parts], part: int) -> fx.Node:
    """Add what an operator makes of the parts of its arguments; a real one has no imaginary."""

    def chosen(arg: fx.Node) -> fx.Node:
        if arg in parts:
            return parts[arg][part]
        floats = isinstance(arg.meta["val"], torch.Tensor) and arg.meta["val"].is_floating_point()
        return call(graph, aten.zeros_like.default, arg) if floats and part else arg

    made = graph.node_copy(node, chosen)
    made.args = pytree.tree_map(_real_dtype, made.args)
    made.kwargs = pytree.tree_map(_real_dtype, made.kwargs)
    infer([made])
    return made


def _real_dtype(value: object) -> object:
    return REAL.get(value, value) if isinstance(value, torch.dtype) else value


def _real(graph: fx.Graph, node: fx.Node, parts: Mapping[fx.Node, Parts]) -> None:
    """Have a node that makes real numbers of complex ones take their parts."""
    source = node.args[0]
    if not isinstance(source, fx.Node) or source not in parts:
        raise PassError(f"node {node.name}: {node.target} takes complex numbers as its second")
    real, imaginary = parts[source]
    if node.target is aten.view_as_real.default:
        node.target, node.args = aten.stack.default, ([real, imaginary], -1)
    elif node.target in (aten.real.default, aten.imag.default):
        part = real if node.target is aten.real.default else imaginary
        node.target, node.args = aten.clone.default, (part,)
    elif node.target is aten.abs.default:
        with graph.inserting_before(node):
            squares = [call(graph, aten.mul.Tensor, part, part) for part in (real, imaginary)]
            total = call(graph, aten.add.Tensor, *squares)
        node.target, node.args = aten.sqrt.default, (total,)
    else:
        raise PassError(
            f"node {node.name}: {node.target} takes complex numbers, which engines don't have"
        )


def _viewed(graph: fx.Graph, node: fx.Node, parts: Mapping[fx.Node, Parts]) -> Parts:
    del parts
    real, imaginary = (call(graph, aten.select.int, node.args[0], -1, part) for part in (0, 1))
    return real, imaginary


def _polar(graph: fx.Graph, node: fx.Node, parts: Mapping[fx.Node, Parts]) -> Parts:
    del parts
    length, angle = node.args
    cosine, sine = (call(graph, turn, angle) for turn in (aten.cos.default, aten.sin.default))
    return call(graph, aten.mul.Tensor, length, cosine), call(graph, aten.mul.Tensor, length, sine)


def _complex(graph: fx.Graph, node: fx.Node, parts: Mapping[fx.Node, Parts]) -> Parts:
    del graph, parts
    real, imaginary = node.args
    assert isinstance(real, fx.Node)
    assert isinstance(imaginary, fx.Node)
    return real, imaginary


def _conjugate(graph: fx.Graph, node: fx.Node, parts: Mapping[fx.Node, Parts]) -> Parts:
    real, imaginary = parts[node.all_input_nodes[0]]
    return real, call(graph, aten.neg.default, imaginary)


def _product(graph: fx.Graph, node: fx.Node, parts: Mapping[fx.Node, Parts]) -> Parts:
    """(a + bi) (c + di) = (ac - bd) + (ad + bc) i."""
    first, second = node.args[:2]

    def times(x: object, y: object) -> fx.Node:
        return call(graph, aten.mul.Tensor, x, y)

    if first not in parts:
        first, second = second, first
    assert isinstance(first, fx.Node)
    a, b = parts[first]
    if isinstance(second, complex):
        raise PassError(f"node {node.name}: a product with the complex number {second}")
    if not isinstance(second, fx.Node) or second not in parts:
        return times(a, second), times(b, second)
    c, d = parts[second]
    real = call(graph, aten.sub.Tensor, times(a, c), times(b, d))
    return real, call(graph, aten.add.Tensor, times(a, d), times(b, c))


def _sum(graph: fx.Graph, node: fx.Node, parts: Mapping[fx.Node, Parts]) -> Parts:
    if len(node.all_input_nodes) != 2 or not all(arg in parts for arg in node.args):
        raise PassError(f"node {node.name}: {node.target} of a complex number and a real one")
    real, imaginary = (_of_each(graph, node, parts, part) for part in (0, 1))
    return real, imaginary


RULES: Mapping[object, Callable[[fx.Graph, fx.Node, Mapping[fx.Node, Parts]], Parts]] = {
    aten.view_as_complex.default: _viewed,
    aten.polar.default: _polar,
    aten.complex.default: _complex,
    aten._conj.default: _conjugate,
    aten.conj_physical.default: _conjugate,
    aten.mul.Tensor: _product,
    aten.add.Tensor: _sum,
    aten.sub.Tensor: _sum,
}
"""Operators that make complex numbers, and what they are in parts."""
