"""Engines on a GPU in host memory: the numbers of ONNX Runtime, and what is refused."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ditc.runtime import Bundle
from ditc.runtime.batches import resized
from ditc.runtime.errors import BundleError, DitcError, EngineError
from ditc.runtime.manifest import MANIFEST_FILE, Manifest
from ditc.runtime.rtx import TensorRtBackend
from ditc.tools.cli import main

from .bundles import write_manifest
from .compiled import arrays, sampling_bundle, small_bundle
from .fake_gpu import INFO, MOST_SAMPLES, FakeDevice, engine_bundle, fake_tensorrt
from .samples import sample
from .test_batching import ranged
from .test_export_calls import bundles


def opened(
    place: Path, device: FakeDevice | None = None, module: ModuleType | None = None, **options: bool
) -> Bundle:
    device = device or FakeDevice()
    backend = TensorRtBackend(device=device, module=module or fake_tensorrt(device), **options)
    return Bundle.open(place, backend=backend)


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_steps_are_those_of_onnx_runtime(tmp_path: Path, cuda_graphs: bool) -> None:
    """Every method; three times over, so that recorded graphs run on new inputs."""
    device = FakeDevice()
    bundle = opened(engine_bundle(small_bundle(), tmp_path / "b"), device, cuda_graphs=cuda_graphs)
    reference = Bundle.open(small_bundle(), threads=1)
    for turn in range(3):
        for step in range(4):
            kwargs = sample("small", "cond-first").kwargs(7 * turn + step)
            given = arrays(sample("small", "cond-first").program, kwargs)
            found, expected = bundle.step(step, **given), reference.step(step, **given)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert device.launches == (8 if cuda_graphs else 0)


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_batch_sizes_are_those_of_onnx_runtime(tmp_path: Path, cuda_graphs: bool) -> None:
    """From one size to the next and back, slots and recorded graphs with it."""
    source = ranged("fused-qkv", "cond-first")
    device = FakeDevice()
    bundle = opened(engine_bundle(source, tmp_path / "b"), device, cuda_graphs=cuda_graphs)
    reference = Bundle.open(source, threads=1)
    draw = np.random.default_rng(11)
    for samples in (2, 1, MOST_SAMPLES, 3, 1):
        for step in range(6):
            given = {
                info.name: draw.standard_normal(info.shape).astype(np.float32)
                for info in resized(bundle.manifest, samples).inputs
            }
            found, expected = bundle.step(step, **given), reference.step(step, **given)
            assert found.shape[0] == 2 * samples
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    largest = resized(bundle.manifest, MOST_SAMPLES)
    assert device.allocated["slots"] >= sum(largest.storage_bytes.values())
    assert device.allocated["inputs and outputs"] >= sum(
        4 * math.prod(info.shape) for info in largest.inputs
    )
    told = refused(EngineError, lambda: bundle.step(0, **{n: a[:0] for n, a in given.items()}))
    assert "samples" in told


def test_a_generation_with_a_prologue(tmp_path: Path) -> None:
    """What the prologue makes for a prompt is uploaded once for all steps of that prompt."""
    device = FakeDevice()
    bundle = opened(engine_bundle(sampling_bundle(), tmp_path / "b"), device)
    reference = Bundle.open(sampling_bundle(), threads=1)
    prologue = bundle.manifest.prologue
    assert prologue is not None
    assert prologue.prompt is not None
    for labels in ({}, {"class_labels": np.array([1, 3])}, {"class_labels": np.array([2, 3])}):
        before = len(device.uploads)
        found = bundle.generate(seed=3, guidance_scale=2.0, **labels)
        expected = reference.generate(seed=3, guidance_scale=2.0, **labels)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
        sent = Counter(address for address, _ in device.uploads[before:])
        assert bundle.manifest.steps > 2
        assert sum(count == 1 for count in sent.values()) >= len(prologue.prompt.outputs)


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_two_calls_a_step(tmp_path: Path, cuda_graphs: bool) -> None:
    """An engine that serves both calls, on the slots of each."""
    source = bundles()[1]
    bundle = opened(engine_bundle(source, tmp_path / "b"), cuda_graphs=cuda_graphs)
    assert len(bundle.manifest.calls) == 2
    for seed in (3, 4):
        found = bundle.generate(seed=seed, guidance_scale=2.5)
        expected = Bundle.open(source, threads=1).generate(seed=seed, guidance_scale=2.5)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_each_weight_is_copied_once_and_scratch_is_shared(tmp_path: Path) -> None:
    device = FakeDevice()
    bundle = opened(engine_bundle(small_bundle(), tmp_path / "b"), device)
    names = {name for graph in bundle.manifest.graphs for name in graph.weights}
    assert len(device.uploads) == len(names)
    assert len({address for address, _ in device.uploads}) == len(names)
    assert device.allocated["activations"] == 1000 * len(bundle.manifest.graphs)
    assert device.allocated["slots"] >= sum(bundle.manifest.storage_bytes.values())
    assert device.allocated["weights"] < sum(size for _, size in device.uploads) + 256 * len(names)
    assert bundle.device_bytes == sum(device.allocated.values())
    assert Bundle.open(small_bundle(), threads=1).device_bytes is None


def refused(kind: type[DitcError], act: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_gpu_driver_or_library(tmp_path: Path) -> None:
    place = engine_bundle(small_bundle(), tmp_path / "b")

    def told(device: FakeDevice, version: str = INFO.version) -> str:
        module = fake_tensorrt(device, version)
        return refused(EngineError, lambda: opened(place, device, module))

    assert told(FakeDevice(capability="sm86")) == (
        "the bundle's engines are for sm89, sm120, and Fake GPU is sm86: compile it with "
        "target='tensorrt-rtx:sm86'"
    )
    assert told(FakeDevice(), "1.6.0.5").startswith(
        "the bundle's engines were built by tensorrt_rtx 1.7.1.116, and 1.6.0.5 is installed"
    )
    assert "2.0.0.1 is installed" in told(FakeDevice(), "2.0.0.1")
    assert opened(place, *_here("1.8.0.1")).steps == 4


def _here(version: str) -> tuple[FakeDevice, ModuleType]:
    device = FakeDevice()
    return device, fake_tensorrt(device, version)


def test_a_driver_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's packages are named after the CUDA they need."""
    known = {"tensorrt_rtx_cu13_libs"}
    monkeypatch.setattr("ditc.runtime.rtx_library.installed", known.__contains__)
    place = engine_bundle(small_bundle(), tmp_path / "b")
    assert refused(EngineError, lambda: opened(place, FakeDevice(driver=(12, 8)))) == (
        "the driver of Fake GPU takes CUDA 12.8, tensorrt_rtx 1.7.1.116 needs CUDA 13: update the "
        "driver"
    )
    assert opened(place, FakeDevice(driver=(13, 0))).steps == 4


@pytest.mark.parametrize("what", ["weights", "slots", "inputs and outputs", "activations"])
def test_out_of_memory(tmp_path: Path, what: str) -> None:
    place = engine_bundle(small_bundle(), tmp_path / "b")
    full = FakeDevice()
    opened(place, full)
    before = list(full.allocated.values())[: list(full.allocated).index(what) + 1]
    tight = FakeDevice(room=sum(before) - 1)
    assert "Fake GPU has no room for " in refused(EngineError, lambda: opened(place, tight))
    assert what in refused(EngineError, lambda: opened(place, FakeDevice(room=sum(before) - 1)))


def test_an_engine_that_is_none(tmp_path: Path) -> None:
    place = engine_bundle(small_bundle(), tmp_path / "b")
    manifest = Manifest.from_json((place / MANIFEST_FILE).read_text())
    (place / "b01.engine").write_bytes(b"no xz")
    write_manifest(place, manifest)
    assert "b01.engine: can't be decompressed (" in refused(BundleError, lambda: opened(place))
    plain = replace(INFO, compression=None)
    write_manifest(place, replace(manifest, engine=plain))
    assert refused(EngineError, lambda: opened(place)) == (
        "bucket 'b00': tensorrt_rtx 1.7.1.116 can't load b00.engine: magic tag doesn't match"
    )


def test_an_engine_of_another_bucket(tmp_path: Path) -> None:
    place = engine_bundle(small_bundle(), tmp_path / "b")
    manifest = Manifest.from_json((place / MANIFEST_FILE).read_text())
    (place / "b01.engine").write_bytes((place / "b03.engine").read_bytes())
    write_manifest(place, manifest)
    message = refused(BundleError, lambda: opened(place))
    assert message.startswith("bucket 'b01': b01.engine doesn't fit the manifest: ")
    other = tuple(replace(info, dtype="float16") for info in manifest.outputs)
    place = engine_bundle(small_bundle(), tmp_path / "c")
    write_manifest(place, replace(manifest, outputs=other))
    assert "is float32 [4, 25, 16], expected float16 [4, 25, 16]" in refused(
        BundleError, lambda: opened(place)
    )


def test_a_weight_file_that_changed(tmp_path: Path) -> None:
    place = engine_bundle(small_bundle(), tmp_path / "b")
    store = place / "weights.safetensors"
    raw = bytearray(store.read_bytes())
    raw[-1] ^= 1
    store.write_bytes(raw)
    message = refused(BundleError, lambda: opened(place))
    assert message.startswith(f"{store}: has the SHA-256 ")
    assert message.endswith("; it was altered, copy or compile the bundle again")


def test_a_library_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = engine_bundle(small_bundle(), tmp_path / "b")
    device = FakeDevice()
    module = fake_tensorrt(device)
    bundle = opened(place, device, module)
    given = arrays(sample("small", "cond-first").program, sample("small", "cond-first").kwargs(0))
    monkeypatch.setattr("tests.fake_gpu.FakeContext.execute_async_v3", lambda *_: False)
    assert refused(EngineError, lambda: bundle.step(0, **given)) == (
        "bucket 'b00': the engine failed: it gave no reason"
    )
    monkeypatch.setattr("tests.fake_gpu.FakeEngine.create_execution_context", lambda *_: None)
    assert refused(EngineError, lambda: opened(place, device, module)) == (
        "bucket 'b00': tensorrt_rtx 1.7.1.116 makes no context: it gave no reason"
    )


def test_nothing_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU here, no library, or options of another engine: one line each, and no CPU."""
    place = engine_bundle(small_bundle(), tmp_path / "b")
    missing = replace(INFO, library="tensorrt")
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    other = engine_bundle(small_bundle(), tmp_path / "c", INFO)
    manifest = Manifest.from_json((other / MANIFEST_FILE).read_text())
    write_manifest(other, replace(manifest, target="tensorrt", engine=missing))
    message = refused(EngineError, lambda: Bundle.open(other))
    told = f"the bundle's engines need tensorrt {INFO.version}, which can't be imported ("
    assert message.startswith(told)
    way = "install ditc's extra [tensorrt] (in a clone: pip install '.[tensorrt]')"
    assert message.endswith(way)
    assert refused(EngineError, lambda: Bundle.open(place, ["CPUExecutionProvider"])) == (
        "providers ['CPUExecutionProvider'] is ONNX Runtime's, and the bundle's target is "
        "'tensorrt-rtx': leave it out, or compile with target='onnx'"
    )
    assert "threads 2 is ONNX Runtime's" in refused(
        EngineError, lambda: Bundle.open(place, threads=2)
    )
    assert "CUDA graphs are of TensorRT's engines" in refused(
        EngineError, lambda: Bundle.open(small_bundle(), cuda_graphs=True)
    )


def test_inspect_tells_of_engines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = replace(INFO, decomposed={"attentions.0": "no kernel for fp32"})
    place = engine_bundle(small_bundle(), tmp_path / "b", info)
    assert main(["inspect", str(place)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "target     tensorrt-rtx, fp32, CFG cond-first"
    assert lines[3] == "engines    tensorrt_rtx 1.7.1.116, for sm89, sm120, weights inputs"
    assert lines[4] == "           attentions.0: attention written out: no kernel for fp32"
