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
    taken: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    tokens: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type == "Attention":
            for place in (KEY, VALUE):
                name = node.input[place]
                if name in taken:
                    tokens = tokens or _tokens(model)
                if name in taken and name in tokens:
                    node.input[place] = f"{node.name}.{place}"
                    rows = f"ditc.rows.{tokens[name]}"
                    nodes.append(
                        helper.make_node("Gather", [name, rows], [node.input[place]], axis=TOKENS)
                    )
                taken.add(name)
        nodes.append(node)
    if not tokens:
        return graph
    used = {name for node in nodes for name in node.input}
    for count in sorted({*tokens.values()}):
        if f"ditc.rows.{count}" in used:
            every = np.arange(count, dtype=np.int64)
            model.graph.initializer.append(numpy_helper.from_array(every, f"ditc.rows.{count}"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    raw: bytes = model.SerializeToString(deterministic=True)
    return raw


def _tokens(model: onnx.ModelProto) -> dict[str, int]:
    """Return how many tokens every value of four axes has, by its name."""
    inferred = shape_inference.infer_shapes(model)
    found = {}
    for value in (*inferred.graph.input, *inferred.graph.value_info):
        dims = value.type.tensor_type.shape.dim
        if len(dims) > TOKENS and dims[TOKENS].dim_value:
            found[value.name] = dims[TOKENS].dim_value
    return found
