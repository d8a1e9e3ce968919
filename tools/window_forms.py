"""One attention in every form as an ONNX model: full, under a mask, lowered to blocks."""

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from ditc.export.blocks import blocked_window_attention
from ditc.export.onnx import OPSET
from ditc.passes.window import Window

__all__ = ["Form", "Shape", "blocked", "forms"]

IR_VERSION = 11
MEMORY_SHARE = 0.6

Constants = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Shape:
    """What query, key and value look like: [batch, heads, tokens, head_dim], float32."""

    batch: int
    heads: int
    tokens: int
    head_dim: int

    @property
    def scale(self) -> float:
        """The usual factor on the scores."""
        return 1 / math.sqrt(self.head_dim)


@dataclass(frozen=True)
class Form:
    """One way to write the attention: a model of query, key and value, full without a window.

    Query and output are [batch, tokens, heads * head_dim] where `merged`.
    """

    name: str
    model: onnx.ModelProto
    window: Window | None
    merged: bool = False


class _Blocked(nn.Module):
    def __init__(self, window: Window, scale: float) -> None:
        super().__init__()
        self.window = window
        self.scale = scale

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return blocked_window_attention(query, key, value, self.window, self.scale)


def blocked(shape: Shape, window: Window) -> onnx.ModelProto:
    """Return the ONNX model of window attention lowered to blocks."""
    size = (shape.batch, shape.heads, shape.tokens, shape.head_dim)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about how it traces
        program = torch.onnx.export(
            _Blocked(window, shape.scale).eval(),
            tuple(torch.zeros(size) for _ in range(3)),  # one passed thrice would be one input
            input_names=["query", "key", "value"],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # None comes only with dynamo=False
    return program.model_proto


def _model(
    shape: Shape, nodes: Sequence[onnx.NodeProto], constants: Constants, merged: bool = False
) -> onnx.ModelProto:
    apart = [shape.batch, shape.heads, shape.tokens, shape.head_dim]
    together = [shape.batch, shape.tokens, shape.heads * shape.head_dim]
    shapes = {"query": together if merged else apart, "key": apart, "value": apart}
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, shapes["query"])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def _written_out(shape: Shape, window: Window | None) -> onnx.ModelProto:
    constants: Constants = {"scale": np.array(shape.scale, np.float32)}
    node = helper.make_node
    nodes = [
        node("Mul", ["query", "scale"], ["scaled"]),
        node("Transpose", ["key"], ["turned"], perm=[0, 1, 3, 2]),
        node("MatMul", ["scaled", "turned"], ["scores"]),
    ]
    scores = "scores"
    if window is not None:
        places = np.arange(shape.tokens) // window.block
        hidden = np.abs(places[:, None] - places) > window.radius // window.block
        mask = np.where(hidden, np.finfo(np.float32).min, 0).astype(np.float32)
        constants = {**constants, "mask": mask}
        nodes.append(node("Add", ["scores", "mask"], ["masked"]))
        scores = "masked"
    nodes.append(node("Softmax", [scores], ["weights"], axis=-1))
    nodes.append(node("MatMul", ["weights", "value"], ["output"]))
    return _model(shape, nodes, constants)


def forms(shape: Shape, radius: int, block: int) -> tuple[Form, ...]:
    """Return every form of the attention, the windows with `radius` tokens on each side.

    Those that may hold all scores at once are left out where these don't fit into memory twice.
    """
    inputs = ["query", "key", "value"]
    fused = helper.make_node("Attention", inputs, ["output"], scale=shape.scale)
    options = {"domain": "com.microsoft", "num_heads": shape.heads, "scale": shape.scale}
    tiled = helper.make_node("MultiHeadAttention", inputs, ["output"], **options)
    band, whole = Window(radius), Window(radius, block)
    made = []
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    score_bytes = 4 * shape.batch * shape.heads * shape.tokens**2
    if 2 * score_bytes <= MEMORY_SHARE * memory_bytes:
        model = _model(shape, [tiled], {}, merged=True)
        made.append(Form("full, MultiHeadAttention", model, None, merged=True))
        made.append(Form("full, Attention", _model(shape, [fused], {}), None))
        made.append(Form("full, written out", _written_out(shape, None), None))
        made.append(Form("masked, written out", _written_out(shape, band), band))
    made.append(Form("blocked band", blocked(shape, band), band))
    made.append(Form(f"blocked, blocks of {block}", blocked(shape, whole), whole))
    return tuple(made)
