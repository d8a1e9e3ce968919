"""Attentions with keys of their own: the same numbers, and engines where they were none."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as attention

from ditc.export.arrow_blocks import blocked_arrow_attention
from ditc.export.cache import EngineCache
from ditc.export.onnx import OPSET
from ditc.export.own_keys import with_own_keys
from ditc.export.tensorrt import EngineJob, build_engines
from ditc.passes.window import Window

from . import engines
from .models import noise
from .test_tensorrt import needs_rtx, quiet

TEXT, TOKENS = 32, 160


class Residual(nn.Module):
    """What a full step of a joint site computes for those that add a residual to a window."""

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        full = attention(query, key, value)
        near = blocked_arrow_attention(query, key, value, Window(32), (0, TEXT), 64**-0.5)
        outputs = [part.transpose(1, 2).flatten(2) for part in (full, near)]
        return outputs[0], outputs[0] - outputs[1]


def residual_graph(dtype: torch.dtype) -> bytes:
    parts = tuple(noise(1, 2, TOKENS, 64, seed=seed).to(dtype) for seed in range(3))
    names = {"input_names": ["query", "key", "value"], "opset_version": OPSET}
    program = torch.onnx.export(Residual().eval(), parts, dynamo=True, verbose=False, **names)
    assert program is not None
    raw: bytes = program.model_proto.SerializeToString()
    return raw


def keys_of(graph: bytes) -> list[str]:
    nodes = onnx.ModelProto.FromString(graph).graph.node
    return [name for node in nodes if node.op_type == "Attention" for name in node.input[1:3]]


def test_no_two_share_keys_and_numbers_are_the_same() -> None:
    graph = residual_graph(torch.float32)
    shared = keys_of(graph)
    assert len(set(shared)) < len(shared)
    changed = with_own_keys(graph)
    assert len(set(keys_of(changed))) == len(shared)
    onnx.checker.check_model(onnx.ModelProto.FromString(changed), full_check=True)
    assert with_own_keys(graph) == changed
    assert with_own_keys(changed) == changed
    draw = np.random.default_rng(5)
    shape = (1, 2, TOKENS, 64)
    feeds = {n: draw.standard_normal(shape, np.float32) for n in ("query", "key", "value")}
    first, second = (
        onnxruntime.InferenceSession(raw, providers=["CPUExecutionProvider"]).run(None, feeds)
        for raw in (graph, changed)
    )
    for before, after in zip(first, second, strict=True):
        np.testing.assert_array_equal(before, after)


@needs_rtx
def test_a_residual_around_text_builds_with_every_kernel(tmp_path: Path) -> None:
    """The library ends with a segmentation fault where these attentions share their keys."""
    job = EngineJob("b0", residual_graph(torch.float16))
    built = build_engines(engines.rtx(), [job], EngineCache(tmp_path), 1, quiet)
    assert built["b0"].decomposed == {}
