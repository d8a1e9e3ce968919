"""Batch a step's part over all steps: f(timestep) for each step   becomes   f(all timesteps).

Values that depend on the timestep get an axis of steps before all others. Projections stay the
operators they are, with more rows, so that weights are read once and stored once.
"""

import operator
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import fx

from ditc.runtime.errors import PassError

from .graphs import fake_mode, flat_outputs, given, infer, shape_of
from .operators import CASTS, is_pointwise
from .prologue import Part, Value

__all__ = ["batched", "can_batch"]

aten = torch.ops.aten


def can_batch(node: fx.Node) -> bool:
    """Whether it is known how to run an operator for all steps at once."""
    if node.target is aten.linear.default:
        return all(arg.op == "get_attr" for arg in node.all_input_nodes[1:])
    return node.target in RULES or is_pointwise(node)


def batched(part: Part, timestep: str, steps: int) -> Part:
    """Return a step's part that makes the values of all steps in one run.

    Args:
        part: of a program.
        timestep: the input that becomes `[steps, ...]`; others stay.
        steps: how many.

    Returns:
        A part of the same inputs and values, each value `[steps, ...]`.

    Raises:
        PassError: if it isn't known how to batch an operator.
    """
    source = part.graph_module.graph
    batching = _Batching(steps)
    for node in source.nodes:
        if node.op == "placeholder" and node.name == timestep:
            batching.add_input(node)
        elif node.op != "output":
            batching.add(node)
    batching.graph.output(tuple(batching.made[node] for node in flat_outputs(source)))
    values = tuple(Value(v.name, (steps, *v.shape), v.dtype) for v in part.values)
    module = fx.GraphModule(part.graph_module, batching.graph)
    return Part(module, part.inputs, values, steps * part.multiply_adds)


class _Batching:
    """A graph that grows node by node: those that depend on the timestep get an axis of steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.graph = fx.Graph()
        self.made: dict[fx.Node, fx.Node] = {}
        self._several: set[fx.Node] = set()

    def add_input(self, node: fx.Node) -> None:
        """Add the timesteps of all steps in the place of one."""
        made = self.graph.placeholder(node.name)
        value = node.meta["val"]
        with fake_mode(node.graph):
            made.meta["val"] = torch.empty((self.steps, *value.shape), dtype=value.dtype)
        self._keep(node, made)

    def add(self, node: fx.Node) -> None:
        """Add a node, batched if anything it takes is."""
        if not any(arg in self._several for arg in node.all_input_nodes):
            self.made[node] = self.graph.node_copy(node, self.made.__getitem__)
            return
        if not can_batch(node):
            raise PassError(f"node {node.name}: it isn't known how to run {node.target} for steps")
        rule = RULES.get(node.target, _pointwise)
        made = rule(self, node)
        found = made.meta["val"]
        if isinstance(found, torch.Tensor) and found.shape != (self.steps, *shape_of(node)):
            raise PassError(f"node {node.name}: is {list(found.shape)} when run for all steps")
        self._keep(node, made)

    def _keep(self, node: fx.Node, made: fx.Node) -> None:
        self.made[node] = made
        self._several.add(node)

    def again(self, node: fx.Node, *args: object) -> fx.Node:
        """Add a call of a node's operator with other arguments."""
        kwargs = fx.map_arg(node.kwargs, self.made.__getitem__)
        return self._call(node.target, args, kwargs)  # type: ignore[arg-type]

    def aligned(self, node: fx.Node, rank: int) -> fx.Node:
        """Return what stands for a node, with axes behind that of steps up to a rank of its own."""
        made = self.made[node]
        if node not in self._several or len(shape_of(node)) == rank:
            return made
        ones = [1] * (rank - len(shape_of(node)))
        return self.reshaped(made, (*ones, *shape_of(node)))

    def repeated(self, node: fx.Node) -> fx.Node:
        """Return what stands for a node, the same for every step if it doesn't depend on it."""
        made = self.made[node]
        if node in self._several:
            return made
        sizes = [self.steps, *shape_of(node)]
        return self._call(aten.expand.default, (made, sizes), {})

    def reshaped(self, made: fx.Node, shape: tuple[int, ...]) -> fx.Node:
        """Add a reshape to a shape of its own behind the axis of steps."""
        return self._call(aten.reshape.default, (made, [self.steps, *shape]), {})

    def _call(
        self,
        target: Callable[..., object],
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
    ) -> fx.Node:
        node = self.graph.create_node(
            "call_function",
            target,
            args,  # type: ignore[arg-type]
            dict(kwargs),  # type: ignore[arg-type]
        )
        infer([node])
        return node


Rule: TypeAlias = Callable[[_Batching, fx.Node], fx.Node]


def _pointwise(batching: _Batching, node: fx.Node) -> fx.Node:
    """Axes align from the right, so that those of less rank get ones behind the steps."""
    rank = len(shape_of(node))
    return batching.again(node, *fx.map_arg(node.args, lambda arg: batching.aligned(arg, rank)))


def _as_it_is(batching: _Batching, node: fx.Node) -> fx.Node:
    return batching.again(node, *fx.map_arg(node.args, batching.made.__getitem__))


def _to_shape(batching: _Batching, node: fx.Node) -> fx.Node:
    return batching.reshaped(batching.made[node.all_input_nodes[0]], shape_of(node))


def _expanded(batching: _Batching, node: fx.Node) -> fx.Node:
    source = batching.aligned(node.all_input_nodes[0], len(shape_of(node)))
    return batching.again(node, source, [batching.steps, *shape_of(node)])


def _joined(batching: _Batching, node: fx.Node) -> fx.Node:
    axis = given(node, 1, "dim", 0)
    parts = [batching.repeated(part) for part in node.all_input_nodes]
    return batching.again(node, parts, _moved(axis, len(shape_of(node))))


def _permuted(batching: _Batching, node: fx.Node) -> fx.Node:
    axes, rank = node.args[1], len(shape_of(node))
    assert isinstance(axes, list | tuple)
    moved = [_moved(axis, rank) for axis in axes]
    return batching.again(node, batching.made[node.all_input_nodes[0]], [0, *moved])


def _along(*positions: int, added: int = 0) -> Rule:
    """Return the rule of operators that name axes of their first argument at these positions."""

    def rule(batching: _Batching, node: fx.Node) -> fx.Node:
        source = node.all_input_nodes[0]
        rank = len(shape_of(source)) + added
        args = [batching.made[source], *node.args[1:]]
        for position in positions:
            if position == len(args):
                args.append(0)
            args[position] = _moved(args[position], rank)
        return batching.again(node, *args)

    return rule


def _moved(axis: object, rank: int) -> int:
    assert isinstance(axis, int)
    return axis % rank + 1


RULES: Mapping[object, Rule] = {
    aten.linear.default: _as_it_is,
    aten.embedding.default: _as_it_is,
    aten.layer_norm.default: _as_it_is,
    aten.rms_norm.default: _as_it_is,
    aten.contiguous.default: _as_it_is,
    aten.clone.default: _as_it_is,
    operator.getitem: _as_it_is,
    **dict.fromkeys(CASTS, _as_it_is),
    aten.view.default: _to_shape,
    aten.reshape.default: _to_shape,
    aten._unsafe_view.default: _to_shape,
    aten.flatten.using_ints: _to_shape,
    aten.unflatten.int: _to_shape,
    aten.unsqueeze.default: _to_shape,
    aten.squeeze.dim: _to_shape,
    aten.expand.default: _expanded,
    aten.transpose.int: _along(1, 2),
    aten.permute.default: _permuted,
    aten.slice.Tensor: _along(1),
    aten.select.int: _along(1),
    aten.unbind.int: _along(1),
    aten.chunk.default: _along(2),
    aten.split.Tensor: _along(2),
    aten.split_with_sizes.default: _along(2),
    aten.cat.default: _joined,
    aten.stack.default: _joined,
}
"""What runs each operator for all steps at once, beside those that work element by element."""
