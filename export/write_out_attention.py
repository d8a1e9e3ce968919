"""Write attention out: Attention(q, k, v, mask)   becomes   softmax(scale · q kᵀ + mask) v."""

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["write_out_attention"]


def write_out_attention(graph: bytes) -> bytes:
    """Return a graph with every `Attention` as products and a softmax, in the query's dtype.

    For engines that take the operator and fail on it. One that is causal or capped, or has grouped
    heads, stays. Equal graphs give equal bytes.

    Args:
        graph: serialised model, in which shapes can be inferred.
    """
    model = onnx.ModelProto.FromString(graph)
    inferred = onnx.shape_inference.infer_shapes(model)
    shapes = {
        value.name: value.type.tensor_type
        for value in (*inferred.graph.value_info, *model.graph.input, *model.graph.output)
    }
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type != "Attention" or not _is_plain(node, shapes):
            nodes.append(node)
            continue
        scale, written = _written(node, shapes)
        model.graph.initializer.append(scale)
        nodes.extend(written)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    raw: bytes = model.SerializeToString(deterministic=True)
    return raw


def _is_plain(node: onnx.NodeProto, shapes: Mapping[str, onnx.TypeProto.Tensor]) -> bool:
    given = _attributes(node)
    query, key = (_sizes(shapes[name]) for name in node.input[:2])
    unset = not given.get("is_causal") and not given.get("softcap") and len(node.output) == 1
    scaled = "scale" in given or query[-1] > 0  # 0 where it can't be inferred
    return unset and scaled and len(query) == len(key) == 4 and query[1] == key[1]


def _attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


def _sizes(kind: onnx.TypeProto.Tensor) -> list[int]:
    return [axis.dim_value for axis in kind.shape.dim]


def _written(
    node: onnx.NodeProto, shapes: Mapping[str, onnx.TypeProto.Tensor]
) -> tuple[onnx.TensorProto, list[onnx.NodeProto]]:
    query, key, value = node.input[:3]
    dtype = helper.tensor_dtype_to_np_dtype(shapes[query].elem_type)
    given = _attributes(node)
    factor = np.array(given["scale"] if "scale" in given else _usual(shapes[query]), dtype)
    scale = numpy_helper.from_array(factor, f"{node.output[0]}.scale")
    mask = node.input[3] if len(node.input) > 3 else ""
    return scale, list(_nodes(node, (query, key, value, mask), scale.name))


def _usual(query: onnx.TypeProto.Tensor) -> float:
    """Return the factor where the operator states none."""
    return float(_sizes(query)[-1] ** -0.5)


def _nodes(
    node: onnx.NodeProto, inputs: tuple[str, str, str, str], scale: str
) -> Iterator[onnx.NodeProto]:
    query, key, value, mask = inputs
    name = node.output[0]

    def make(operator: str, given: list[str], made: str, **options: object) -> onnx.NodeProto:
        return helper.make_node(operator, given, [made], name=f"{node.name}.{made}", **options)

    yield make("Transpose", [key], f"{name}.key", perm=[0, 1, 3, 2])
    yield make("Mul", [query, scale], f"{name}.query")
    yield make("MatMul", [f"{name}.query", f"{name}.key"], f"{name}.scores")
    seen = f"{name}.scores"
    if mask:
        yield make("Add", [seen, mask], f"{name}.masked")
        seen = f"{name}.masked"
    yield make("Softmax", [seen], f"{name}.weights", axis=-1)
    yield make("MatMul", [f"{name}.weights", value], name)
