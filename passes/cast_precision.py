"""Cast to a precision: linear(x, W)   becomes   linear(x as half, W as half).

Weights are cast where they are used, so that none is touched before it is written or run.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import fx

from .base import Pass
from .dependence import Level
from .graphs import call, flat_outputs, infer, shape_of, weight
from .key_masks import attention_mask
from .operators import CASTS, LINEAR, MATMUL, is_pointwise
from .precision_rules import FOLLOWS, JOINS, NARROW, NORMS, SUMS, WIDE

__all__ = ["CastPrecision", "cast"]

aten = torch.ops.aten

PRODUCTS = (*MATMUL, aten.baddbmm.default, aten.einsum.default)
TIME_PROJECTIONS = 2
"""Projections of a timestep's embedding that stay in full width: those of its MLP."""


@dataclass(frozen=True, eq=False)
class CastPrecision(Pass):
    """Compute in half precision what can be, and all else in full width.

    In full width stay written-out norms and softmaxes, what a timestep's embedding is made of up
    to its MLP, tables that are multiplied with, as rotary ones, and products of two activations
    outside attention. Queries, keys and values become halves before they are attended to. Inputs
    and outputs stay as they are.

    Attributes:
        dtype: torch.float16 or torch.bfloat16.
        level: what each node depends on, by name.
        scalars: inputs that are embedded as a timestep is, by name.
        operands: queries, keys and values of all attentions, by name.
        products: matrix products that attentions are written out with, by name.
        inner: what else lies between those, by name.
        keep: nodes that stay in full width, and so does what takes their values, by name.
    """

    name: ClassVar[str] = "cast-precision"

    dtype: torch.dtype
    level: Mapping[str, Level]
    scalars: Set[str]
    operands: Set[str]
    products: Set[str]
    inner: Set[str]
    keep: Set[str] = frozenset()
    _casts: dict[tuple[fx.Node, torch.dtype], fx.Node] = field(default_factory=dict)

    def rewrite(self, graph: fx.Graph) -> int:
        """Insert casts and return how many."""
        self._casts.clear()
        soft: set[fx.Node] = set()
        passed = self._projections_passed(graph)
        for node in list(graph.nodes):
            if _is_soft(node, soft):
                soft.add(node)
            if node.op == "call_function" and _holds_float(node):
                self._cast_arguments(node, self._wanted(node, soft, passed))
                infer([node])
            if node.name in self.operands:
                self._narrow(node)
        for value in dict.fromkeys(flat_outputs(graph)):
            if _dtype(value) is self.dtype:
                wide = self._cast(value, torch.float32)
                graph.output_node().replace_input_with(value, wide)
        return len(self._casts)

    def _wanted(
        self, node: fx.Node, soft: Set[fx.Node], passed: Mapping[fx.Node, int]
    ) -> torch.dtype:
        """Return the precision in which a node computes."""
        wide, floats = torch.float32, _floats(node)
        if node.name in self.keep or any(arg.name in self.keep for arg in floats):
            return wide
        if node.target in WIDE or node.name in self.inner:
            return wide
        if node.target in LINEAR and passed.get(node, TIME_PROJECTIONS + 1) <= TIME_PROJECTIONS:
            return wide
        if node.target in NARROW or node.name in self.products:
            return self.dtype
        if node.target in PRODUCTS:
            return self.dtype if any(arg in soft for arg in floats) else wide
        halves = [arg for arg in floats if _dtype(arg) is self.dtype]
        if not halves:
            return wide
        if node.target in FOLLOWS:
            return self.dtype if floats[0] in halves else wide
        if node.target in JOINS:
            return self.dtype
        if not is_pointwise(node):
            return wide
        others = [arg for arg in floats if arg not in halves and shape_of(arg) != ()]
        return self.dtype if all(self._yields(node, arg, soft) for arg in others) else wide

    def _yields(self, node: fx.Node, arg: fx.Node, soft: Set[fx.Node]) -> bool:
        """Whether an argument in full width gives way to halves in a pointwise operator."""
        return arg in soft or (node.target in SUMS and self._level(arg) < Level.LATENTS)

    def _level(self, node: fx.Node) -> Level:
        return self.level.get(node.name, Level.LATENTS)

    def _cast_arguments(self, node: fx.Node, dtype: torch.dtype) -> None:
        if node.target in CASTS or (node.target in FOLLOWS and node.target not in NORMS):
            return
        for arg in _floats(node):
            if _dtype(arg) not in (dtype, torch.float64):
                limited = arg is attention_mask(node)
                node.replace_input_with(arg, self._cast(arg, dtype, limited=limited))

    def _cast(self, node: fx.Node, dtype: torch.dtype, *, limited: bool = False) -> fx.Node:
        """Return a node's value in a precision; a mask within what a half can hold."""
        key = (node, dtype)
        if key in self._casts and not limited:
            return self._casts[key]
        with node.graph.inserting_after(_last_input(node)):
            source = (
                call(node.graph, aten.clamp_min.default, node, _least(dtype)) if limited else node
            )
        with node.graph.inserting_after(_last_input(source)):
            made = cast(source, dtype)
        if not limited:
            self._casts[key] = made
        return made

    def _narrow(self, node: fx.Node) -> None:
        """Make halves of a query, key or value; the cast has its users from then on."""
        if _dtype(node) is self.dtype:
            return
        users = list(node.users)
        narrow = self._cast(node, self.dtype)
        for user in users:
            if user is not narrow and user.op != "output":
                user.replace_input_with(node, narrow)

    def _projections_passed(self, graph: fx.Graph) -> dict[fx.Node, int]:
        """Return how many projections lie between a timestep and each node made of it alone."""
        passed: dict[fx.Node, int] = {}
        for node in graph.nodes:
            if node.op == "placeholder" and node.name in self.scalars:
                passed[node] = 0
            if node.op != "call_function" or self._level(node) is Level.LATENTS:
                continue
            before = [passed[arg] for arg in node.all_input_nodes if arg in passed]
            if before:
                passed[node] = max(before) + (node.target in LINEAR)
        return passed


def cast(node: fx.Node, dtype: torch.dtype) -> fx.Node:
    """Add a cast of a node's value at the insert point."""
    return call(node.graph, aten.to.dtype, node, dtype)


def _least(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).min


def _last_input(node: fx.Node) -> fx.Node:
    """Return the node behind which a cast may stand: inputs come before all else."""
    if node.op != "placeholder":
        return node
    *_, last = node.graph.find_nodes(op="placeholder")
    assert isinstance(last, fx.Node)
    return last


def _is_soft(node: fx.Node, soft: Set[fx.Node]) -> bool:
    """Whether a value is a parameter or one number, at most moved about."""
    if node.op == "get_attr":
        owner = node.graph.owning_module
        assert owner is not None
        return isinstance(weight(owner, str(node.target)), torch.nn.Parameter)
    if node.op != "call_function":
        return False
    inputs = node.all_input_nodes
    if not inputs:
        return node.target in (aten.zeros.default, aten.ones.default, aten.full.default)
    return node.target in FOLLOWS and all(arg in soft for arg in inputs)


def _dtype(node: fx.Node) -> torch.dtype | None:
    value = node.meta.get("val")
    if isinstance(value, list | tuple) and value:
        value = value[0]
    return value.dtype if isinstance(value, torch.Tensor) else None


def _floats(node: fx.Node) -> list[fx.Node]:
    """Return the arguments that hold floating-point numbers."""
    found = ((arg, _dtype(arg)) for arg in node.all_input_nodes)
    return [arg for arg, dtype in found if dtype is not None and dtype.is_floating_point]


def _holds_float(node: fx.Node) -> bool:
    return bool(_floats(node))
