"""Keys of its own for each attention: a(q, k, v), b(r, k, v)   becomes   …, b(r, k[all], v[all]).

TensorRT-RTX 1.7 ends with a segmentation fault where two attentions share keys and values and a
third takes some of them, as where a step computes both full attention and a window around text.
Copies of the keys keep the library from joining the two.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

__all__ = ["with_own_keys"]

TOKENS = 2
"""Axis of the tokens of keys and values."""
KEY, VALUE = 1, 2
"""Inputs of an attention."""


def with_own_keys(graph: bytes) -> bytes:
    """Return a graph in which no two attentions share keys or values.

    Numbers are the same; equal graphs give equal bytes.

    Args:
        graph: serialised model whose attentions are `Attention` operators over [batch, heads,
            tokens, channels], the tokens' number known.
    """
    model = onnx.ModelProto.FromString(graph)
    shared = _shared(model)
    if not shared:
        return graph
    tokens = _tokens(model)
    nodes: list[onnx.NodeProto] = []
    used: set[int] = set()
    for number, node in enumerate(model.graph.node):
        for place in shared.get(number, ()):
            name = node.input[place]
            if name not in tokens:
                continue
            used.add(tokens[name])
            node.input[place] = f"{node.name}.{place}"
            inputs = [name, _rows(tokens[name])]
            nodes.append(helper.make_node("Gather", inputs, [node.input[place]], axis=TOKENS))
        nodes.append(node)
    for count in sorted(used):
        every = np.arange(count, dtype=np.int64)
        model.graph.initializer.append(numpy_helper.from_array(every, _rows(count)))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    raw: bytes = model.SerializeToString(deterministic=True)
    return raw


def _shared(model: onnx.ModelProto) -> dict[int, list[int]]:
    """Return, by an attention's number among nodes, which inputs one before it has too."""
    taken: set[str] = set()
    found: dict[int, list[int]] = {}
    for number, node in enumerate(model.graph.node):
        if node.op_type != "Attention":
            continue
        for place in (KEY, VALUE):
            if node.input[place] in taken:
                found.setdefault(number, []).append(place)
            taken.add(node.input[place])
    return found


def _rows(count: int) -> str:
    """Return the name of the indices of so many tokens."""
    return f"ditc.rows.{count}"


def _tokens(model: onnx.ModelProto) -> dict[str, int]:
    """Return how many tokens every value of four axes has, by its name."""
    inferred = shape_inference.infer_shapes(model)
    found = {}
    for value in (*inferred.graph.input, *inferred.graph.value_info):
        dims = value.type.tensor_type.shape.dim
        if len(dims) > TOKENS and dims[TOKENS].dim_value:
            found[value.name] = dims[TOKENS].dim_value
    return found
