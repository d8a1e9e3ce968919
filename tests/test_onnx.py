"""The ONNX files of a bundle: standard, bare of traces, with all weights in one store."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from google.protobuf.message import Message

from ditc.export.lifting import INLINE_BYTES
from ditc.export.onnx import OPSET, lower
from ditc.passes import TorchSession, capture, schedule
from ditc.runtime import Bundle
from ditc.runtime.errors import LoweringError
from ditc.runtime.weights import map_tensors

from .compiled import arrays, planned, small_bundle, small_schedule
from .samples import sample

STORE = "weights.safetensors"


def graphs() -> list[Path]:
    return sorted(small_bundle().glob("*.onnx"))


def load(path: Path) -> onnx.ModelProto:
    return onnx.load(str(path), load_external_data=False)


def external(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def texts(message: Message) -> Iterator[str]:
    """Yield every string in a message."""
    for field, value in message.ListFields():
        for item in value if field.is_repeated else [value]:
            if isinstance(item, Message):
                yield from texts(item)
            elif isinstance(item, str):
                yield item


def test_a_graph_for_every_bucket() -> None:
    assert [path.name for path in graphs()] == ["b00.onnx", "b01.onnx", "b02.onnx", "b03.onnx"]


def test_the_checker_passes_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in graphs():
        onnx.checker.check_model(str(path), full_check=True)


def test_only_standard_operators() -> None:
    for path in graphs():
        model = load(path)
        assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
        assert not model.functions


def test_nothing_tells_of_the_machine_or_the_tools() -> None:
    marks = (b"site-packages", str(Path.home()).encode(), str(Path.cwd()).encode(), b".py")
    for path in graphs():
        raw = path.read_bytes()
        assert not [mark for mark in marks if mark in raw]
        model = load(path)
        assert model.producer_name == "ditc"
        assert not model.metadata_props
        assert not model.graph.metadata_props
        assert not [node.name for node in model.graph.node if node.metadata_props]
        assert not [text for text in texts(model) if "/" in text or "torch" in text]


def test_weights_lie_in_the_store_and_nowhere_else() -> None:
    size = (small_bundle() / STORE).stat().st_size
    stored = map_tensors(small_bundle() / STORE)
    raw = (small_bundle() / STORE).read_bytes()
    seen = set()
    for path in graphs():
        for tensor in load(path).graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                assert tensor.ByteSize() <= INLINE_BYTES + 200
                continue
            place = external(tensor)
            first, length = int(place["offset"]), int(place["length"])
            assert place["location"] == STORE
            assert 0 <= first < first + length <= size
            assert raw[first : first + length] == stored[tensor.name].tobytes()
            assert tuple(tensor.dims) == stored[tensor.name].shape
            seen.add(tensor.name)
    assert seen == set(stored)


def test_no_weight_is_transposed_in_the_graph() -> None:
    """Engines would fold the transpose at load, into a copy for every session."""
    for path in graphs():
        graph = load(path).graph
        weights = {tensor.name for tensor in graph.initializer}
        transposed = [node for node in graph.node if node.op_type == "Transpose"]
        assert not [node.name for node in transposed if weights & set(node.input)]
        assert {node.op_type for node in graph.node} >= {"MatMul", "Add"}


def test_a_masked_window_is_no_square() -> None:
    windowed = load(small_bundle() / "b01.onnx").graph
    attentions = [node for node in windowed.node if node.op_type == "Attention"]
    assert len(attentions) == 1
    assert attentions[0].input[3].startswith("constant_25x25_")


def test_plain_onnx_runtime_gives_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No line of this project between the files and the numbers."""
    monkeypatch.chdir(tmp_path)
    sched, bundle = small_schedule(), Bundle.open(small_bundle(), threads=1)
    slots: dict[str, np.ndarray] = {}
    for step, bucket in enumerate(bundle.manifest.buckets):
        inputs = arrays(sched.program, sample("small", "cond-first").kwargs(step))
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(
            str(small_bundle() / bucket.graph), options, providers=["CPUExecutionProvider"]
        )
        names = [output.name for output in session.get_outputs()]
        feeds = inputs | slots
        values = session.run(
            None, {entry.name: feeds[entry.name] for entry in session.get_inputs()}
        )
        results = dict(zip(names, values, strict=True))
        slots |= {name: results[name] for name in bucket.writes}
        ours = bundle.step(step, **inputs)
        assert isinstance(ours, np.ndarray)
        plain = results[bundle.manifest.outputs[0].name]
        # Prepacked weights are multiplied by another kernel.
        assert np.abs(ours - plain).max() / np.abs(plain).max() <= 1e-6


COMPILE = """
import sys
from tests.compiled import compile_bundle, planned
from tests.samples import sample
from ditc.passes import Window, schedule
from diffusers import DDIMScheduler
program = sample("small", "cond-first").program
plan = planned(program, "full", "wa-rs", window=Window(3))
sampler = DDIMScheduler(clip_sample=False)
compile_bundle(schedule(program, plan), sys.argv[1], sampler=sampler)
"""


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    running = [
        subprocess.Popen(
            [sys.executable, "-c", COMPILE, str(tmp_path / seed)],
            env=os.environ | {"PYTHONHASHSEED": seed},
        )
        for seed in ("1", "2")
    ]
    assert [process.wait() for process in running] == [0, 0]
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / seed).iterdir()}
        for seed in ("1", "2")
    )
    assert len(first) == 7
    assert first == second


class Odd(torch.nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x + torch.special.bessel_j0(t)[:, None, None]


def test_an_operator_without_counterpart_is_named() -> None:
    kwargs = sample("small", "cond-first").kwargs(0)
    program = capture(Odd(), kwargs, cfg=None)
    sched = schedule(program, planned(program, "full"))
    assert isinstance(TorchSession(sched)(0, **kwargs), torch.Tensor)
    with pytest.raises(LoweringError, match=r"^bucket b00: can't be expressed in ONNX: .*bessel"):
        lower(sched.buckets[0])
