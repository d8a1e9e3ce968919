"""TensorRT on the GPU at hand, in the place of a library that isn't there: timings and refit."""

import hashlib
import importlib
import json
import lzma
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import save_file

from ditc.export import compile as compile_bundle
from ditc.export import engine_worker
from ditc.export.engine_file import EngineFile
from ditc.export.library import Library
from ditc.export.tensorrt import EngineJob
from ditc.export.variants import swap_weights
from ditc.export.window_plugin import PLUGIN
from ditc.passes import Schedule, Window, schedule
from ditc.runtime.errors import BundleError, EngineError, LoweringError
from ditc.runtime.manifest import Manifest

from . import models
from .compiled import planned, workshop
from .fake_gpu import FakeDevice
from .samples import sample
from .test_window_plugin import Interface

PLANS = ("b00", "b01")


@pytest.fixture
def tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Have a TensorRT and a GPU here, and return what exchanges the GPU."""
    place = tmp_path / "libraries"
    place.mkdir()
    shutil.copy(Path(__file__).with_name("fake_tensorrt.py"), place / "tensorrt.py")
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("PYTHONPATH", str(place))
    importlib.invalidate_caches()
    sys.modules.pop("tensorrt", None)

    def use(gpu: str) -> None:
        monkeypatch.setattr("ditc.export.library.gpu_at_hand", lambda: (gpu, "sm90"))

    use("Fake H100")
    yield use
    sys.modules.pop("tensorrt", None)


@lru_cache
def two_graphs() -> Schedule:
    """A step that keeps a residual, and one in a window that adds it."""
    program = sample("small", "cond-first").program
    return schedule(program, planned(program, "full", "wa-rs", window=Window(3)))


@lru_cache
def lowered_cache() -> Path:
    """Return a cache that holds the graphs, so that only engines are built."""
    cache = workshop() / "refitting-cache"
    compile_bundle(two_graphs(), workshop() / "refitting", cache=cache, jobs=1)
    return cache


def compiled(place: Path, **options: object) -> tuple[Manifest, dict[str, dict]]:
    """Compile and return the manifest and what each engine says of itself."""
    cache = place.parent / "cache"
    if not cache.exists():
        shutil.copytree(lowered_cache(), cache)
    options = {"cache": cache, "jobs": 2} | options
    compile_bundle(two_graphs(), place, target="tensorrt", **options)
    manifest = Manifest.from_json((place / "manifest.json").read_text())

    def opened(raw: bytes) -> dict:
        return json.loads(raw if manifest.engine.weights == "baked" else lzma.decompress(raw))

    files = sorted(place.glob("*.engine"))
    return manifest, {path.stem: opened(path.read_bytes()) for path in files}


def timings(cache: Path) -> list[Path]:
    return sorted(cache.glob("tensorrt-10.16.1.11-*.timings"))


def test_engines_for_the_gpu_at_hand_share_timings(
    tensorrt: Callable[[str], None], tmp_path: Path
) -> None:
    manifest, plans = compiled(tmp_path / "b")
    info = manifest.engine
    assert (info.library, info.version, info.capabilities) == ("tensorrt", "10.16.1.11", ("sm90",))
    assert not info.refittable
    assert tuple(plans) == PLANS
    assert all(plan["flags"] == [] for plan in plans.values())  # no TF32, no refit
    (file,) = timings(tmp_path / "cache")
    assert set(file.read_text().split()) == {plan["graph"] for plan in plans.values()}
    _, baked = compiled(tmp_path / "baked", weights="baked")
    assert all(plan["known"] >= 2 for plan in baked.values())
    assert len(file.read_text().split()) == 4
    assert not list((tmp_path / "cache").glob(".*.part"))


def test_another_gpu_has_its_own_engines_and_timings(
    tensorrt: Callable[[str], None], tmp_path: Path
) -> None:
    compiled(tmp_path / "b")
    told: list[str] = []
    compiled(tmp_path / "again", log=told.append)
    assert sum("engine found in the cache" in line for line in told) == 2
    tensorrt("Fake A100")
    told.clear()
    compiled(tmp_path / "other", log=told.append)
    assert sum("engine built in" in line for line in told) == 2
    assert len(timings(tmp_path / "cache")) == 2


@pytest.mark.parametrize("content", ["damaged", "another-gpu"])
def test_timings_that_the_library_does_not_take(
    content: str, tensorrt: Callable[[str], None], tmp_path: Path
) -> None:
    compiled(tmp_path / "b")
    (file,) = timings(tmp_path / "cache")
    file.write_text(content)
    _, plans = compiled(tmp_path / "baked", weights="baked", jobs=1)
    assert plans["b00"]["known"] == 0
    assert {plan["graph"] for plan in plans.values()} <= set(file.read_text().split())


def checkpoint(path: Path, alter: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    tensors = {name: value.clone() for name, value in models.small().state_dict().items()}
    alter(tensors)
    save_file(tensors, path)
    return path


def scaled(tensors: dict[str, torch.Tensor]) -> None:
    for tensor in tensors.values():
        tensor.mul_(1.25)


def swapped(
    monkeypatch: pytest.MonkeyPatch, place: Path, alter: Callable[[dict], object] = scaled
) -> Path:
    """Put another checkpoint into a bundle on a GPU that is a fake."""
    monkeypatch.setattr("ditc.export.refitting.open_device", lambda: FakeDevice(capability="sm90"))
    given = checkpoint(place.parent / "other.safetensors", alter)
    return swap_weights(place, given, place.parent / "swapped")


def test_engines_with_weights_are_refitted(
    tensorrt: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, plans = compiled(tmp_path / "b", weights="baked")
    assert manifest.engine.refittable
    assert "sources.json" in manifest.files
    assert "weights.safetensors" not in manifest.files
    assert all(plan["flags"] == ["REFIT"] for plan in plans.values())
    place = swapped(monkeypatch, tmp_path / "b")
    after = Manifest.from_json((place / "manifest.json").read_text())
    assert after.weights_sha256 is not None
    found = {name: json.loads((place / f"{name}.engine").read_bytes()) for name in PLANS}
    values = {n: 1.25 * v for n, v in models.small().state_dict().items()}
    bias = hashlib.sha256(values["downs.0.bias"].numpy().tobytes()).hexdigest()
    product = values["downs.0.weight"].t().contiguous()
    matrix = hashlib.sha256(product.numpy().tobytes()).hexdigest()
    for name, plan in found.items():
        assert plan["kept"] == ["INCLUDE_REFIT"]
        assert plan["weights"]["downs.0.bias"] == bias != plans[name]["weights"]["downs.0.bias"]
        assert plan["weights"]["downs.0.weight_transposed"] == matrix
        constants = [key for key in plan["weights"] if key.startswith("constant_")]
        assert all(plan["weights"][key] == plans[name]["weights"][key] for key in constants)


def test_a_weight_that_is_refused(
    tensorrt: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled(tmp_path / "b", weights="baked")
    with pytest.raises(EngineError) as caught:
        swapped(monkeypatch, tmp_path / "b", lambda tensors: tensors["time.bias"].zero_())
    assert str(caught.value) == "b00: tensorrt 10.16.1.11 refuses time.bias: all are zero"
    assert not (tmp_path / "swapped").exists()


def test_engines_that_cannot_be_refitted(
    tensorrt: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled(tmp_path / "b", weights="baked")
    file = tmp_path / "b" / "manifest.json"
    manifest = Manifest.from_json(file.read_text())
    file.write_text(replace(manifest, engine=replace(manifest.engine, refittable=False)).to_json())
    with pytest.raises(BundleError, match=r"hold their weights and can't be refitted; compile it"):
        swapped(monkeypatch, tmp_path / "b")
    assert not (tmp_path / "swapped").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_nothing_is_built_or_refitted(
    tensorrt: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled(tmp_path / "b", weights="baked")
    given = checkpoint(tmp_path / "other.safetensors", scaled)
    with pytest.raises(EngineError, match="there is no NVIDIA driver here"):
        swap_weights(tmp_path / "b", given, tmp_path / "swapped")
    assert not (tmp_path / "swapped").exists()
    monkeypatch.undo()
    monkeypatch.syspath_prepend(str(tmp_path / "libraries"))
    sys.modules.pop("tensorrt", None)
    with pytest.raises(LoweringError) as caught:
        compile_bundle(two_graphs(), tmp_path / "c", target="tensorrt")
    assert str(caught.value).startswith(
        "target tensorrt: tensorrt 10.16.1.11 builds on the GPU at hand, and there is no NVIDIA "
        "driver here"
    )
    assert not (tmp_path / "c").exists()


def test_the_window_kernel_goes_into_engines(
    tensorrt: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that builds registers the plugin, then parses a graph that calls it."""
    with pytest.raises(LoweringError) as caught:
        compiled(tmp_path / "b", window_kernel=True)
    assert str(caught.value).startswith("target tensorrt: tensorrt takes no plugins from Python ")
    assert not (tmp_path / "b").exists()
    plugins = Interface()
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", plugins)
    lowered: list[bytes] = []

    def build(library: Library, jobs: list[EngineJob], *_: object) -> dict[str, EngineFile]:
        lowered.extend(job.graph for job in jobs)
        return {job.name: EngineFile(b"plan", library.version, {}, 1.0, 1) for job in jobs}

    monkeypatch.setattr("ditc.export.engines.build_engines", build)
    compiled_with = {"window_kernel": True, "cache": tmp_path / "cache"}
    compile_bundle(two_graphs(), tmp_path / "b", target="tensorrt", **compiled_with)
    calls = [onnx.ModelProto.FromString(raw).graph.node for raw in lowered]
    found = [node for nodes in calls for node in nodes if node.domain == "trt.plugins"]
    assert [node.op_type for node in found] == ["window_attention"] * 2  # a residual, a window
    assert {a.i for node in found for a in node.attribute if a.name == "capability"} == {90}
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(lowered[0])
    job = {"library": "tensorrt", "graph": str(graph), "window_kernel": True}
    network, _ = engine_worker.library.EngineLibrary(job, engine_worker.sibling).parsed()
    assert len(network.digest) == 64
    assert set(plugins.functions) == {f"describe {PLUGIN}", f"implement {PLUGIN}"}
