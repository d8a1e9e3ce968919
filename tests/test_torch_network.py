"""Networks of Torch-TensorRT: named, whole, with weights baked where they are to be."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import fx

from ditc.export.torch_network import NotConvertibleError, import_dynamo, lowered, make_network
from ditc.export.torch_program import lower, lower_graph
from ditc.passes import Window, schedule

from . import fake_torch_tensorrt
from .compiled import planned
from .samples import sample


@pytest.fixture(autouse=True)
def _torch_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_torch_tensorrt.install(monkeypatch)
    monkeypatch.setattr(torch.cuda, "get_device_capability", torch.cuda.get_device_capability)
    monkeypatch.setattr(torch.cuda, "current_device", torch.cuda.current_device)


def small_bucket():
    program = sample("small", "cond-first").program
    return schedule(program, planned(program, "full", "wa-rs", window=Window(3))).buckets[0]


def written(place: Path, graph: bytes, **more: object) -> dict[str, object]:
    path = place / "graph.pt2"
    path.write_bytes(graph)
    return {"graph": str(path), "capabilities": ("sm120",), **more}


def test_inputs_and_outputs_are_named(tmp_path: Path) -> None:
    bucket = small_bucket()
    found = lower(bucket)
    made = make_network(written(tmp_path, found.graph))
    names = [tensor.name for tensor in made.network.inputs]
    assert names[: len(found.inputs)] == list(found.inputs)
    assert sorted(names[len(found.inputs) :]) == list(found.names)
    assert [tensor.name for tensor in made.network.outputs] == list(found.outputs)
    assert made.attentions[0] == "attentions.0"
    assert made.builder == "the builder"
    assert torch.cuda.get_device_capability() == (12, 0)


def test_weights_are_baked(tmp_path: Path) -> None:
    bucket = small_bucket()
    found = lower(bucket)
    held = {name: s.tensor(bucket.program).contiguous() for name, s in found.weights.items()}
    save_file({**held, **found.constants}, tmp_path / "weights.safetensors")
    store = str(tmp_path / "weights.safetensors")
    made = make_network(written(tmp_path, found.graph, store=store))
    assert [tensor.name for tensor in made.network.inputs] == list(found.inputs)
    assert sum(layer.startswith("baked_") for layer in made.network.layers) == len(found.names)


def traced(tmp_path: Path, function, outputs: list[str]) -> dict[str, object]:
    """Write the program of a function of one tensor."""
    program = sample("small", "cond-first").program
    graph = fx.Graph()
    node = graph.placeholder("x")
    node.meta["val"] = torch.empty(3, 4)
    made = graph.call_function(function, (node,))
    made.meta["val"] = torch.empty(3, 4)
    graph.output(tuple(made for _ in outputs))
    module = fx.GraphModule({}, graph)
    return written(tmp_path, lower_graph(module, ["x"], outputs, program, "b00").graph)


def test_an_output_that_is_given_twice(tmp_path: Path) -> None:
    made = make_network(traced(tmp_path, torch.ops.aten.sin.default, ["y", "kept"]))
    assert [tensor.name for tensor in made.network.outputs] == ["y", "kept"]
    assert made.network.layers[-1] == "identity"


def test_an_operator_that_cannot_be_converted(tmp_path: Path) -> None:
    with pytest.raises(NotConvertibleError) as caught:
        make_network(traced(tmp_path, fake_torch_tensorrt.REFUSED, ["y"]))
    assert str(caught.value) == (
        "Torch-TensorRT: Conversion of function aten.tanh.default not currently supported!"
    )


def test_settings_that_the_version_does_not_know(tmp_path: Path) -> None:
    job = traced(tmp_path, torch.ops.aten.sin.default, ["y"])
    exported = torch.export.load(job["graph"])
    _, settings = lowered(import_dynamo(()), exported, True)
    assert settings == fake_torch_tensorrt.Settings(1, True, True)


def test_versions_that_are_too_old_or_do_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sys.modules["torch_tensorrt.dynamo.lowering"], "post_lowering")
    with pytest.raises(NotConvertibleError, match=r"^this Torch-TensorRT has no post_lowering$"):
        import_dynamo(())
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    with pytest.raises(NotConvertibleError, match=r"^torch_tensorrt can't be imported: "):
        import_dynamo(("sm89",))
