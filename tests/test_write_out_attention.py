"""Attention(q, k, v, mask)   becomes   softmax(scale · q kᵀ + mask) v."""

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from ditc.export.write_out_attention import write_out_attention

Array = npt.NDArray[np.float32]
SHAPES = {"q": (2, 3, 7, 8), "k": (2, 3, 5, 8), "v": (2, 3, 5, 6), "m": (7, 5)}


def graph(*inputs: str, **attributes: object) -> bytes:
    values = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, SHAPES[n]) for n in inputs]
    made = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, (2, 3, 7, 6))
    node = helper.make_node("Attention", list(inputs), ["y"], name="site#0", **attributes)
    model = helper.make_model(
        helper.make_graph([node], "g", values, [made]),
        opset_imports=[helper.make_opsetid("", 23)],
        ir_version=11,
    )
    raw: bytes = model.SerializeToString()
    return raw


def softmax(scores: Array) -> Array:
    raised = np.exp(scores - scores.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("masked", [False, True])
def test_it_is_softmax_of_scaled_scores(scale: float | None, masked: bool) -> None:
    draw = np.random.default_rng(3)
    given = {n: draw.standard_normal(shape).astype(np.float32) for n, shape in SHAPES.items()}
    names = ("q", "k", "v", "m") if masked else ("q", "k", "v")
    written = write_out_attention(graph(*names, **({} if scale is None else {"scale": scale})))
    model = onnx.ModelProto.FromString(written)
    onnx.checker.check_model(model, full_check=True)
    assert "Attention" not in {node.op_type for node in model.graph.node}
    session = ort.InferenceSession(written, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: given[name] for name in names})
    scores = given["q"] @ given["k"].transpose(0, 1, 3, 2) * (scale or 8**-0.5)
    expected = softmax(scores + given["m"] if masked else scores) @ given["v"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_equal_graphs_give_equal_bytes_and_another_run_changes_nothing() -> None:
    written = write_out_attention(graph("q", "k", "v"))
    assert written == write_out_attention(graph("q", "k", "v"))
    assert write_out_attention(written) == written


@pytest.mark.parametrize("attributes", [{"is_causal": 1}, {"softcap": 2.0}])
def test_other_kinds_stay(attributes: dict[str, object]) -> None:
    other = graph("q", "k", "v", **attributes)
    assert write_out_attention(other) == other
