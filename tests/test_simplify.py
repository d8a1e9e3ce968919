"""Simplified graphs: constants folded, what nobody uses gone, what is equal computed once."""

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
from onnx import helper, numpy_helper

from ditc.export.simplify import simplify

FLOAT = onnx.TensorProto.FLOAT


def model() -> onnx_ir.Model:
    """Return x · (2 + 3) + x · (2 + 3), and a root that nobody takes."""
    nodes = [
        helper.make_node("Add", ["two", "three"], ["five"]),
        helper.make_node("Mul", ["x", "five"], ["first"]),
        helper.make_node("Mul", ["x", "five"], ["second"]),
        helper.make_node("Sqrt", ["x"], ["unused"]),
        helper.make_node("Add", ["first", "second"], ["y"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([value], np.float32), name)
        for name, value in (("two", 2), ("three", 3))
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, (4,))],
        [helper.make_tensor_value_info("y", FLOAT, (4,))],
        constants,
    )
    opsets = [helper.make_opsetid("", 23)]
    return onnx_ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=11))


def test_what_is_left_computes_the_same() -> None:
    made = model()
    simplify(made)
    assert [node.op_type for node in made.graph] == ["Mul", "Add"]
    raw = onnx_ir.to_proto(made).SerializeToString()
    session = ort.InferenceSession(raw, providers=["CPUExecutionProvider"])
    x = np.array([1, -2, 0.5, 7], np.float32)
    (found,) = session.run(None, {made.graph.inputs[0].name: x})
    assert np.array_equal(found, 10 * x)


def test_another_run_changes_nothing() -> None:
    made = model()
    simplify(made)
    before = onnx_ir.to_proto(made).SerializeToString(deterministic=True)
    simplify(made)
    assert onnx_ir.to_proto(made).SerializeToString(deterministic=True) == before
