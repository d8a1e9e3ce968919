"""Follow marks through a graph: which elements of each value come from the latents.

A mark is a boolean tensor of the value's shape. Where it is the same along an axis it is expanded
along it, so that it takes no more memory than it says.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import fx
from torch.fx.node import Argument
from torch.utils import _pytree as pytree

from ditc.runtime.errors import PassError

from .graphs import shape_of, weight
from .operators import CASTS, LINEAR, MATMUL, MOVES, SDPA, SOFTMAX, activation_of, is_pointwise

__all__ = ["Marks", "any_of"]

aten = torch.ops.aten
Mark = torch.Tensor

UNKNOWN = object()
"""In the place of a value that only latents and weights tell."""

SAME = {
    **dict.fromkeys((*CASTS, aten.contiguous.default, aten.clone.default, aten.type_as.default), 0),
    aten.copy.default: -1,
}
"""Operators whose value lies as that of one argument does, and which."""

MADE_LIKE = (
    aten.empty_like.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.new_zeros.default,
    aten.new_ones.default,
)
"""Operators that take shape and dtype from their argument, and nothing of its values."""

CHOICES: Mapping[object, int] = {
    aten.index_select.default: 2,
    aten.index.Tensor: 1,
    aten.index_put.default: 1,
    aten.gather.default: 2,
    aten.where.self: 0,
    aten.masked_fill.Scalar: 1,
}
"""Operators that move or drop elements as an argument's values say, and which argument."""


class Marks:
    """The marks of a graph's values, as far as they were followed.

    Args:
        module: a captured graph.
        example: arguments it may be run with, by input name.
        latents: name of the input that is marked.
        where: which of its elements are, expanded to its shape; all if None.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        example: Mapping[str, torch.Tensor],
        latents: str,
        where: Mark | None = None,
    ) -> None:
        self._module = module
        self._where = torch.tensor(True) if where is None else where
        self._example = example
        self._latents = latents
        self._marks: dict[fx.Node, object] = {}
        self._values: dict[fx.Node, object] = {}

    def of(self, node: fx.Node) -> Mark:
        """Return the mark of a node that was followed and makes one tensor."""
        mark = self._marks[node]
        assert isinstance(mark, torch.Tensor)
        return mark

    def set(self, node: fx.Node, mark: Mark) -> None:
        """Give a node its mark."""
        self._marks[node] = mark

    def forget(self, node: fx.Node) -> None:
        """Drop a mark that nobody asks for any more."""
        self._marks.pop(node, None)

    def follow(self, node: fx.Node) -> None:
        """Mark a node's value by its arguments' marks.

        Raises:
            PassError: if it can't be told what its operator does.
        """
        self._marks[node] = self._followed(node)

    def _followed(self, node: fx.Node) -> object:
        if node.op == "placeholder":
            given = self._where if node.name == self._latents else torch.tensor(False)
            return given.expand(shape_of(node))
        if node.op == "get_attr" or not any(self._marked(arg) for arg in node.all_input_nodes):
            return pytree.tree_map(_unmarked, node.meta["val"])
        if node.target in MOVES:
            return self._moved(node)
        if node.target in CHOICES:
            return self._chosen(node)
        mark = self._by_rule(node)
        return self._tried(node) if mark is None else mark.expand(shape_of(node))

    def _marked(self, node: fx.Node) -> bool:
        return any(bool(_thin(mark).any()) for mark in pytree.tree_leaves(self._marks[node]))

    def _by_rule(self, node: fx.Node) -> Mark | None:
        """Return what expands to the mark of a value, None if there is no rule for its operator."""
        if node.target in MADE_LIKE:
            return torch.tensor(False)
        marks = [self.of(arg) for arg in node.all_input_nodes]
        if node.target in SAME:
            return marks[SAME[node.target]]
        if is_pointwise(node):
            return _either(marks)
        if node.target in LINEAR:
            return any_of(self.of(activation_of(node)), (-1,))
        if node.target in MIXED:
            return any_of(marks[0], MIXED[node.target](node))
        if node.target in MATMUL:
            rows, columns = marks
            if rows.dim() == 1 or columns.dim() == 1:  # that axis goes
                return None
            return _either([any_of(rows, (-1,)), any_of(columns, (-2,))])
        if node.target is SDPA:
            query, key, value, *mask = marks
            masked = [any_of(part, (-1,)) for part in mask]
            parts = [any_of(query, (-1,)), any_of(key, (-1, -2)), any_of(value, (-2,)), *masked]
            return _either(parts)
        return None

    def _moved(self, node: fx.Node) -> object:
        held = cast("Callable[[fx.Node], Argument]", self._marks.__getitem__)
        args, kwargs = fx.map_arg((node.args, node.kwargs), held)
        assert callable(node.target)
        if node.target is aten.cat.default:
            return _joined(*args).expand(shape_of(node))  # type: ignore[arg-type]
        if node.target is aten._unsafe_view.default:
            return aten.reshape.default(*args)
        return node.target(*args, **kwargs)

    def _chosen(self, node: fx.Node) -> object:
        """Do to marks what indices and conditions say; mark all where they aren't known."""
        assert callable(node.target)
        choosing = CHOICES[node.target]

        def stand_in(arg: fx.Node) -> Argument:
            return cast("Argument", self._marks[arg])

        def known(arg: fx.Node) -> Argument:
            return cast("Argument", self._value(arg))

        args = [
            fx.map_arg(arg, known if place == choosing else stand_in)
            for place, arg in enumerate(node.args)
        ]
        if any(leaf is UNKNOWN for leaf in pytree.tree_leaves(args[choosing])):
            return torch.tensor(True).expand(shape_of(node))
        numbers = [False if isinstance(arg, float) else arg for arg in args]
        return node.target(*numbers)

    def _tried(self, node: fx.Node) -> object:
        """Run an operator on ones, with NaN where its arguments are marked."""
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._stand_in)
        assert callable(node.target)
        with torch.no_grad():
            result = node.target(*args, **kwargs)
        return pytree.tree_map(torch.isnan, result)

    def _stand_in(self, node: fx.Node) -> Argument:
        marks, values = self._marks[node], node.meta["val"]
        if isinstance(values, torch.Tensor) and not _can_be_nan(values):
            found = self._value(node)
            if found is UNKNOWN:
                found = torch.zeros(values.shape, dtype=values.dtype)
            return cast("Argument", found)
        return cast("Argument", pytree.tree_map(_nan_where, marks, values))

    def _value(self, node: fx.Node) -> object:
        """Return a value that comes from neither latents nor weights, `UNKNOWN` of others."""
        if node not in self._values:
            self._values[node] = self._computed(node)
        return self._values[node]

    def _computed(self, node: fx.Node) -> object:
        if node.op == "placeholder":
            return UNKNOWN if node.name == self._latents else self._example[node.name]
        if node.op == "get_attr":
            held = weight(self._module, str(node.target))
            return UNKNOWN if held.is_meta else held
        if not callable(node.target):
            raise PassError(f"node {node.name}: a {node.op} can't be run")
        if any(self._value(arg) is UNKNOWN for arg in node.all_input_nodes):
            return UNKNOWN
        held_ = cast("Callable[[fx.Node], Argument]", self._value)
        args, kwargs = fx.map_arg((node.args, node.kwargs), held_)
        with torch.no_grad():
            return node.target(*args, **kwargs)


def any_of(mark: Mark, axes: Sequence[int]) -> Mark:
    """Return whether any is marked along axes, which stay with one element."""
    return _thin(mark).any(dim=tuple(axes), keepdim=True)


def _thin(mark: Mark) -> Mark:
    """Return the mark with one element along the axes on which it is expanded."""
    for axis, (size, stride) in enumerate(zip(mark.shape, mark.stride(), strict=True)):
        if stride == 0 and size > 1:
            mark = mark.narrow(axis, 0, 1)
    return mark


def _either(marks: Sequence[Mark]) -> Mark:
    first, *more = (_thin(mark) for mark in marks)
    for mark in more:
        first = first | mark
    return first


def _joined(marks: Sequence[Mark], axis: int = 0) -> Mark:
    """Concatenate marks, which stay expanded where all of them are."""
    for at in range(marks[0].dim()):
        if at != axis % marks[0].dim() and all(mark.stride(at) == 0 for mark in marks):
            marks = [mark.narrow(at, 0, 1) for mark in marks]
    return torch.cat(list(marks), axis)


def _unmarked(value: torch.Tensor) -> Mark:
    return torch.tensor(False).expand(value.shape)


def _can_be_nan(value: torch.Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def _nan_where(mark: Mark, value: torch.Tensor) -> torch.Tensor:
    return torch.ones(value.shape, dtype=value.dtype).masked_fill(mark, float("nan"))


def _normalised(node: fx.Node) -> tuple[int, ...]:
    shape = node.args[1]
    assert isinstance(shape, list | tuple)
    return tuple(range(-len(shape), 0))


def _axis(node: fx.Node) -> tuple[int, ...]:
    axis = node.args[1]
    assert isinstance(axis, int)
    return (axis,)


MIXED: Mapping[object, Callable[[fx.Node], tuple[int, ...]]] = {
    aten.layer_norm.default: _normalised,
    aten.rms_norm.default: _normalised,
    **dict.fromkeys(SOFTMAX, _axis),
}
"""Operators that mix along axes, and which those are."""
