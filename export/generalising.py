"""One graph for several batch sizes: what differs between two of them is computed from the batch.

A graph is lowered at two numbers of samples. Both have the same operators, and differ in sizes
that are written into them: of reshapes, slices and constants. Each such number is linear in the
samples, and is replaced by what computes it from the shape of an input.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from ditc.runtime.errors import LoweringError

from .lowered import Lowered
from .tensors import constant_name

__all__ = ["generalised", "input_shapes"]

ROWS = "batch"
"""Name of the axis that holds the batch, of both halves under guidance, in graphs."""

Numbers = npt.NDArray[np.generic]


def generalised(
    first: Lowered,
    second: Lowered,
    counts: tuple[int, int],
    halves: int,
    samples: int,
    where: str,
) -> Lowered:
    """Return one graph that is either of two, and all others between and beyond.

    Args:
        first: the graph at the first number of samples.
        second: the same at the second.
        counts: both numbers.
        halves: rows of the batch a sample.
        samples: that multiply-adds are told of.
        where: what to call it in messages.

    Raises:
        LoweringError: naming the operator, if they differ in more than sizes that are linear in
            the samples.
    """
    if first.graph == second.graph:  # as of what has no batch
        return first
    models = [onnx.ModelProto.FromString(graph.graph) for graph in (first, second)]
    if first.weights != second.weights:
        raise LoweringError(f"{where}: uses other weights at other batch sizes")
    merging = _Merging(models[0].graph, counts, halves, where)
    merging.constants = [
        _constants(model, graph) for model, graph in zip(models, (first, second), strict=True)
    ]
    axes = merging.spread_interface(models[1].graph)
    merging.spread_nodes(models[1].graph)
    graph = models[0].graph
    del graph.value_info[:]
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    step = second.multiply_adds - first.multiply_adds
    per_sample = step // (counts[1] - counts[0])
    return Lowered(
        graph=models[0].SerializeToString(deterministic=True),
        inputs=first.inputs,
        outputs=first.outputs,
        weights=first.weights,
        constants={name: value for name, value in first.constants.items() if name in used},
        multiply_adds=first.multiply_adds + per_sample * (samples - counts[0]),
        axes=axes,
    )


def _constants(model: onnx.ModelProto, lowered: Lowered) -> dict[str, Numbers]:
    """Return the values of a graph's constants; weights have none here."""
    inline = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_location != onnx.TensorProto.EXTERNAL
    }
    return {**inline, **{name: value.numpy() for name, value in lowered.constants.items()}}


@dataclass
class _Merging:
    """Turns a graph at one number of samples into one for all."""

    graph: onnx.GraphProto
    counts: tuple[int, int]
    halves: int
    where: str
    constants: Sequence[Mapping[str, Numbers]] = ()
    made: dict[tuple[str, str], str] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def spread_interface(self, other: onnx.GraphProto) -> dict[str, int]:
        """Make the batch's axis of inputs and outputs symbolic; return it by name."""
        found: dict[str, tuple[int, int]] = {}
        for mine, theirs in ((self.graph.input, other.input), (self.graph.output, other.output)):
            for one, two in zip(mine, theirs, strict=True):
                place = self._axis(one, two)
                if place is not None:
                    found[one.name] = place
                    _name_axis(one, *place, self.halves)
        taken = [value.name for value in self.graph.input if value.name in found]
        if not taken:
            raise LoweringError(f"{self.where}: takes nothing that has a batch")
        self._count(taken[0], *found[taken[0]])
        return {name: axis for name, (axis, _) in found.items()}

    def _axis(self, one: onnx.ValueInfoProto, two: onnx.ValueInfoProto) -> tuple[int, int] | None:
        """Return the axis that holds the batch, and how many rows a sample has there."""
        shapes = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in (one, two)]
        differs = [at for at, (a, b) in enumerate(zip(*shapes, strict=True)) if a != b]
        if not differs:
            return None
        rows = [
            shape[differs[0]] // count for shape, count in zip(shapes, self.counts, strict=True)
        ]
        exact = all(
            shape[differs[0]] == row * count
            for shape, row, count in zip(shapes, rows, self.counts, strict=True)
        )
        if len(differs) > 1 or rows[0] != rows[1] or not exact:
            raise LoweringError(
                f"{self.where}: {one.name} is {shapes[0]} for {self.counts[0]} samples and "
                f"{shapes[1]} for {self.counts[1]}, which tells no axis of the batch"
            )
        return differs[0], rows[0]

    def _count(self, name: str, axis: int, rows: int) -> None:
        """Compute the number of samples, `[1]` int64, from an input's shape."""
        self._node("Shape", [name], "ditc.rows", start=axis, end=axis + 1)
        self._node("Div", ["ditc.rows", self._number([rows])], "ditc.samples")

    def spread_nodes(self, other: onnx.GraphProto) -> None:
        """Replace constants that differ by what computes them."""
        nodes = list(self.graph.node)
        if len(nodes) != len(other.node):
            raise LoweringError(
                f"{self.where}: has {len(nodes)} operators for {self.counts[0]} samples and "
                f"{len(other.node)} for {self.counts[1]}: compile a bundle for each batch size"
            )
        for one, two in zip(nodes, other.node, strict=True):
            self._check_alike(one, two)
            for at, pair in enumerate(zip(one.input, two.input, strict=True)):
                if pair[0] != pair[1]:
                    one.input[at] = self._replaced(one, at, pair)
        del self.graph.node[:]
        self.graph.node.extend([*self.nodes, *nodes])

    def _check_alike(self, one: onnx.NodeProto, two: onnx.NodeProto) -> None:
        same = one.op_type == two.op_type and one.domain == two.domain
        attributes = [
            sorted(entry.SerializeToString(deterministic=True) for entry in node.attribute)
            for node in (one, two)
        ]
        if not same or attributes[0] != attributes[1] or list(one.output) != list(two.output):
            raise LoweringError(
                f"{self.where}: operator {one.name} is {one.op_type} with other attributes or "
                f"another one at other batch sizes: compile a bundle for each"
            )

    def _replaced(self, node: onnx.NodeProto, at: int, pair: tuple[str, str]) -> str:
        """Return the name of what takes a constant's place."""
        is_shape = node.op_type == "Reshape" and at == 1
        key = (f"-1 {pair[0]}" if is_shape else pair[0], pair[1])
        if key in self.made:
            return self.made[key]
        first, second = (
            values.get(name) for values, name in zip(self.constants, pair, strict=True)
        )
        if first is None or second is None:
            raise self._differ(node)
        made = self._free(first, second) if is_shape else None
        if made is None and first.shape == second.shape and first.dtype.kind in "iu":
            made = self._linear(node, first, second)
        if made is None:
            made = self._repeated(node, first, second)
        self.made[key] = made
        return made

    def _free(self, first: Numbers, second: Numbers) -> str | None:
        """Return a reshape's sizes with the one that differs left free; None if that can't be."""
        if first.shape != second.shape or (first == -1).any():
            return None
        differs = np.flatnonzero(first != second)
        if len(differs) != 1:
            return None
        free = first.copy()
        free[differs[0]] = -1
        return self._number(free.tolist())

    def _linear(self, node: onnx.NodeProto, first: Numbers, second: Numbers) -> str:
        """Return integers that are linear in the samples."""
        one, two = first.astype(np.int64), second.astype(np.int64)
        step = (two - one) // (self.counts[1] - self.counts[0])
        base = one - step * self.counts[0]
        if not np.array_equal(base + step * self.counts[1], two):
            raise self._differ(node)
        name = f"ditc.sizes.{len(self.made)}"
        scaled = self._node("Mul", ["ditc.samples", self._number(step)], f"{name}.scaled")
        if not first.ndim:
            scaled = self._node("Squeeze", [scaled], f"{name}.scalar")
        made = self._node("Add", [scaled, self._number(base)], name)
        if first.dtype == np.int64:
            return made
        kind = helper.np_dtype_to_tensor_dtype(first.dtype)
        return self._node("Cast", [made], f"{name}.cast", to=kind)

    def _repeated(self, node: onnx.NodeProto, first: Numbers, second: Numbers) -> str:
        """Return a constant that holds the same for every sample."""
        if first.ndim != second.ndim or first.dtype != second.dtype:
            raise self._differ(node)
        differs = [
            at for at, (a, b) in enumerate(zip(first.shape, second.shape, strict=True)) if a != b
        ]
        if len(differs) != 1 or first.shape[differs[0]] % self.counts[0]:
            raise self._differ(node)
        axis, rows = differs[0], first.shape[differs[0]] // self.counts[0]
        one = first.take(range(rows), axis)
        if not all(
            np.array_equal(np.concatenate([one] * count, axis), whole)
            for count, whole in zip(self.counts, (first, second), strict=True)
        ):
            raise self._differ(node)
        name = f"ditc.repeated.{len(self.made)}"
        tensor = numpy_helper.from_array(np.ascontiguousarray(one), f"{name}.one")
        self.graph.initializer.append(tensor)
        ones = [np.ones(axis, np.int64), np.ones(first.ndim - axis - 1, np.int64)]
        repeats = [self._number(part) for part in ones]
        counts = self._node(
            "Concat", [repeats[0], "ditc.samples", repeats[1]], f"{name}.counts", axis=0
        )
        return self._node("Tile", [f"{name}.one", counts], name)

    def _node(self, kind: str, inputs: Sequence[str], output: str, **attributes: int) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    def _number(self, value: npt.ArrayLike) -> str:
        """Return the name of an int64 constant."""
        array = np.array(value, np.int64)
        name = constant_name(array.shape, "INT64", array.tobytes())
        if all(tensor.name != name for tensor in self.graph.initializer):
            self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def _differ(self, node: onnx.NodeProto) -> LoweringError:
        return LoweringError(
            f"{self.where}: operator {node.name} ({node.op_type}) takes a constant that isn't "
            "linear in the samples: compile a bundle for each batch size"
        )


def input_shapes(graph: bytes, halves: int, samples: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes, at a number of samples, of a graph's inputs that hold the batch.

    Args:
        graph: serialised model, as `generalised` returns.
        halves: rows of the batch a sample.
        samples: how many.
    """
    found = {}
    for value in onnx.ModelProto.FromString(graph).graph.input:
        dims = value.type.tensor_type.shape.dim
        if any(dim.dim_param for dim in dims):
            found[value.name] = tuple(
                dim.dim_value or samples * _rows(dim.dim_param, halves) for dim in dims
            )
    return found


def _rows(name: str, halves: int) -> int:
    """Return how many rows a sample has on an axis that `_name_axis` named."""
    return halves if name == ROWS else int(name.removeprefix(f"{ROWS}_x").partition("_")[0])


def _name_axis(value: onnx.ValueInfoProto, axis: int, rows: int, halves: int) -> None:
    dim = value.type.tensor_type.shape.dim[axis]
    dim.Clear()
    dim.dim_param = ROWS if rows == halves else f"{ROWS}_x{rows}_of_{halves}"
