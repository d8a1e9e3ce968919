"""Weights as inputs: the graph that engines are built from computes what the bucket does."""

import onnx
import onnxruntime as ort
import pytest
import torch

from ditc.export.weight_inputs import with_weight_inputs
from ditc.passes import TorchSession
from ditc.runtime.errors import LoweringError

from . import engines

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3}


def initializers(graph: bytes) -> dict[str, onnx.TensorProto]:
    return {entry.name: entry for entry in onnx.ModelProto.FromString(graph).graph.initializer}


def test_stored_weights_move_behind_the_inputs_and_small_constants_stay() -> None:
    lowered = engines.lowered(torch.float16, 1)["b00"]
    graph = with_weight_inputs(lowered.graph)
    model = onnx.ModelProto.FromString(graph)
    names = [entry.name for entry in model.graph.input]
    assert names[: len(lowered.inputs)] == list(lowered.inputs)
    assert sorted(names[len(lowered.inputs) :]) == list(lowered.names)
    before = initializers(lowered.graph)
    assert set(initializers(graph)) == set(before) - set(lowered.names)
    for entry in model.graph.input[len(lowered.inputs) :]:
        held, was = entry.type.tensor_type, before[entry.name]
        assert held.elem_type == was.data_type
        assert [axis.dim_value for axis in held.shape.dim] == list(was.dims)
    assert len(graph) < 100_000
    assert with_weight_inputs(lowered.graph) == graph


@pytest.mark.parametrize(("dtype", "block"), [(torch.float32, 20), (torch.float16, 1)])
def test_it_computes_the_same(dtype: torch.dtype, block: int) -> None:
    """In ONNX Runtime, slots carried by hand; against the schedule in torch, in fp32."""
    sched = engines.planned_schedule(dtype, block)
    reference = TorchSession(engines.planned_schedule(dtype, block, torch.float32))
    sessions, slots = {}, {}
    for name, lowered in engines.lowered(dtype, block).items():
        sessions[name] = ort.InferenceSession(
            with_weight_inputs(lowered.graph), providers=["CPUExecutionProvider"]
        )
    for step in range(sched.steps):
        bucket = sched.bucket_of(step)
        lowered = engines.lowered(dtype, block)[bucket.name]
        x = torch.randn(engines.BATCH, engines.TOKENS, 128, generator=torch.manual_seed(step))
        t = torch.full((engines.BATCH,), 1 - step / 10)
        weights = {n: tensor.numpy() for n, tensor in engines.tensors(lowered, dtype).items()}
        reads = {name: slots[name] for name in (slot.name for slot in bucket.reads)}
        given = {"x": x.to(dtype).numpy(), "t": t.to(dtype).numpy(), **reads, **weights}
        found = sessions[bucket.name].run(list(lowered.outputs), given)
        slots |= dict(zip(lowered.outputs, found, strict=True))
        expected = reference(step, x=x, t=t)
        error = (torch.from_numpy(found[0]).float() - expected).norm() / expected.norm()
        assert error < TOLERANCE[dtype]


def test_what_the_checker_refuses() -> None:
    model = onnx.ModelProto.FromString(engines.lowered(torch.float16, 1)["b00"].graph)
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(LoweringError, match=r"^weights as inputs: refused by onnx.checker: "):
        with_weight_inputs(model.SerializeToString())
