"""Windows lowered to blocks: exact, small, and standard ONNX."""

import warnings
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from ditc.export.blocks import (
    MOST_SCORES,
    blocked_window_attention,
    blocks_of,
    multiply_adds,
    query_block,
)
from ditc.passes.window import Window
from ditc.runtime.errors import LoweringError

SCALE = 0.3


def masked(query: Tensor, key: Tensor, value: Tensor, window: Window, scale: float) -> Tensor:
    """Full attention under a mask, written straight from the window's definition."""
    blocks = np.arange(query.shape[2]) // window.block
    seen = np.abs(np.subtract.outer(blocks, blocks)) * window.block <= window.radius
    scores = (query @ key.transpose(2, 3) * scale).masked_fill(torch.from_numpy(~seen), -torch.inf)
    return scores.softmax(dim=-1) @ value


def inputs(tokens: int, head_dim: int = 6, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return [torch.randn(2, 3, tokens, head_dim, generator=generator, dtype=dtype) for _ in range(3)]


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


class Attention(nn.Module):
    def __init__(self, window: Window) -> None:
        super().__init__()
        self.window = window

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return blocked_window_attention(query, key, value, self.window, SCALE)


def export(window: Window, example: list[Tensor], opset: int) -> onnx.ModelProto:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about how it traces
        program = torch.onnx.export(
            Attention(window).eval(),
            tuple(example),
            input_names=["query", "key", "value"],
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


@pytest.mark.parametrize("block", [1, 4, 7, 16])
@pytest.mark.parametrize("tokens", [1, 2, 17, 64, 100, 129, 300])
def test_equals_masked_attention(tokens: int, block: int) -> None:
    query, key, value = inputs(tokens)
    for reach in {0, 1, 3, 40 // block, -(-tokens // block), 2 * tokens}:
        window = Window(reach * block, block)
        found = blocked_window_attention(query, key, value, window, SCALE)
        expected = masked(query, key, value, window, SCALE)
        assert relative_error(found, expected) <= 1e-12, window


@settings(max_examples=60, deadline=None)
@given(tokens=st.integers(1, 200), block=st.integers(1, 90), reach=st.integers(0, 70))
def test_equals_masked_attention_whatever_the_sizes(tokens: int, block: int, reach: int) -> None:
    window = Window(reach * block, block)
    query, key, value = inputs(tokens, head_dim=2)
    found = blocked_window_attention(query, key, value, window, SCALE)
    assert relative_error(found, masked(query, key, value, window, SCALE)) <= 1e-12


def test_float32_and_another_value_size() -> None:
    query, key, value = inputs(300, dtype=torch.float32)
    value = torch.cat([value, value + 1], dim=3)
    found = blocked_window_attention(query, key, value, Window(33), SCALE)
    expected = masked(query.double(), key.double(), value.double(), Window(33), SCALE)
    assert found.shape == (2, 3, 300, 12)
    assert found.dtype == torch.float32
    assert relative_error(found.double(), expected) <= 1e-6


def test_hidden_keys_weigh_exactly_nothing() -> None:
    query, key, value = inputs(300, dtype=torch.float32)
    before = blocked_window_attention(query, key, value, Window(33), SCALE)[:, :, :100]
    key[:, :, 133:] = 1e4  # the first hundred queries see keys up to 132
    value[:, :, 133:] = 1e30
    after = blocked_window_attention(query, key, value, Window(33), SCALE)[:, :, :100]
    assert torch.equal(before, after)


@given(tokens=st.integers(1, 5000), block=st.integers(1, 300), reach=st.integers(0, 3000))
def test_blocks_cover_all_queries_and_just_the_keys_they_see(
    tokens: int, block: int, reach: int
) -> None:
    window = Window(reach * block, block)
    blocks = blocks_of(tokens, window)
    assert [b.start for b in blocks] == [0, *(b.stop for b in blocks[:-1])]
    assert blocks[-1].stop == tokens
    assert len(blocks) <= max(64, -(-tokens // window.block))
    for b in blocks:
        assert b.start % window.block == 0
        assert (b.first, b.last) == window.keys_of(b.start, b.stop, tokens)
    if all(b.uniform for b in blocks):
        assert multiply_adds(tokens, 1, window) == 2 * window.pairs(tokens)


@pytest.mark.parametrize(
    ("tokens", "window", "size", "overhead"),
    [
        (4096, Window(512), 208, 1.19),
        (4096, Window(512, 64), 256, 1.18),
        (4096, Window(512, 128), 128, 1.0),
        (16384, Window(2048), 256, 1.07),
        (1024, Window(128), 64, 1.25),
        (256, Window(32), 32, 1.5),
    ],
)
def test_query_block_and_the_work_beyond_the_window(
    tokens: int, window: Window, size: int, overhead: float
) -> None:
    assert query_block(tokens, window) == size
    found = multiply_adds(tokens, 72, window) / (2 * 72 * window.pairs(tokens))
    assert 1.0 <= found <= overhead


def test_traced_matmuls_do_the_stated_work() -> None:
    window = Window(512)
    like = [torch.empty(1, 1, 4096, 8) for _ in range(3)]
    traced = make_fx(Attention(window), tracing_mode="fake", pre_dispatch=True)(*like)
    attentions = [
        node
        for node in traced.graph.nodes
        if node.target == torch.ops.aten.scaled_dot_product_attention.default
    ]
    shapes = [[arg.meta["val"].shape for arg in node.args[:3]] for node in attentions]
    work = sum(2 * query[1] * query[2] * key[2] * query[3] for query, key, _ in shapes)
    assert [query[1] for query, *_ in shapes] == [1, 1, 1, 14, 1, 1, 1]  # inner blocks as heads
    assert work == multiply_adds(4096, 8, window)
    assert work <= 1.35 * 2 * 8 * window.pairs(4096)


def test_one_call_holds_no_more_scores_than_its_limit() -> None:
    window = Window(512)
    like = [torch.empty(2, 16, 4096, 8) for _ in range(3)]
    traced = make_fx(Attention(window), tracing_mode="fake", pre_dispatch=True)(*like)
    attentions = traced.graph.find_nodes(
        op="call_function", target=torch.ops.aten.scaled_dot_product_attention.default
    )
    heads = [node.args[0].meta["val"].shape[1] // 16 for node in attentions]
    assert heads == [1, 1, 1, 4, 4, 4, 2, 1, 1, 1]
    assert 4 * 32 * 208 * 1232 <= MOST_SCORES < 5 * 32 * 208 * 1232


def test_sees_all_is_plain_attention() -> None:
    traced = make_fx(Attention(Window(40)), pre_dispatch=True)(*inputs(40))
    calls = Counter(node.op for node in traced.graph.nodes)
    assert calls == {"placeholder": 3, "call_function": 1, "output": 1}


@pytest.mark.parametrize(
    ("tokens", "window", "opset"),
    [(300, Window(33), 23), (256, Window(32), 18), (200, Window(32, 16), 23)],
)
def test_onnx_agrees_and_holds_no_square(tokens: int, window: Window, opset: int) -> None:
    example = inputs(tokens, head_dim=8, dtype=torch.float32)
    model = export(window, example, opset)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}

    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    shapes = [
        [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        for info in inferred.graph.value_info
    ]
    shapes += [list(tensor.dims) for tensor in model.graph.initializer]
    assert shapes
    assert all(shape.count(tokens) < 2 for shape in shapes)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [i.name for i in session.get_inputs()]
    feeds = {name: t.numpy() for name, t in zip(names, example, strict=True)}
    found = np.asarray(session.run(None, feeds)[0])
    expected = masked(*(t.double() for t in example), window, SCALE)
    assert relative_error(torch.from_numpy(found).double(), expected) <= 1e-5


def test_refuses_keys_of_another_length() -> None:
    query, key, value = inputs(40)
    with pytest.raises(LoweringError, match="40 queries, 39 keys and 40 values"):
        blocked_window_attention(query, key[:, :, 1:], value, Window(8), SCALE)
