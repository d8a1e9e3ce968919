"""ONNX Runtime behind the seam: slots in place, weights shared, no silent fallback."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from ditc.runtime import Bundle, OrtBackend
from ditc.runtime.engine import Array
from ditc.runtime.entries import BucketInfo, InputInfo, OutputInfo
from ditc.runtime.errors import BundleError, EngineError
from ditc.runtime.files import read_text
from ditc.runtime.manifest import MANIFEST_FILE, Manifest
from ditc.runtime.ort import OrtEngine
from ditc.runtime.ort_checks import check_given
from ditc.runtime.weights import map_tensors

from .bundles import (
    INPUTS,
    OUTPUT,
    RESIDUAL,
    SHAPE,
    Floats,
    Reference,
    arrays_for,
    external,
    make_manifest,
    make_model,
    make_weights,
    output_info,
    save_weights,
    value_of,
    write_bundle,
    write_manifest,
)

SMAPS = Path("/proc/self/smaps_rollup")


def load(root: Path, backend: OrtBackend | None = None) -> dict[str, OrtEngine]:
    manifest = Manifest.from_json(read_text(root, MANIFEST_FILE))
    weights = map_tensors(root / "weights.safetensors")
    return (backend or OrtBackend(threads=1)).load(root, manifest, weights)


def test_slots_are_bound_once_and_never_copied(tmp_path: Path) -> None:
    engines = load(write_bundle(tmp_path / "b"))
    storages = engines["full"].storages
    addresses = {number: value.data_ptr() for number, value in storages.items()}
    assert {number: v.numpy().ctypes.data for number, v in storages.items()} == addresses
    assert all(engine.storages is storages for engine in engines.values())
    views = {
        info.name: storages[info.storage].numpy().view(info.dtype).reshape(info.shape)
        for info in make_manifest().slots
    }
    reference = Reference(make_weights())
    for k, kind in enumerate(("full", "shared", "rest", "shared", "full")):
        arrays = arrays_for(k)
        found = engines[kind].run(arrays)["sample"]
        np.testing.assert_allclose(found, reference.step(k, **arrays), rtol=1e-6, atol=1e-6)
        for name in (OUTPUT, RESIDUAL):
            np.testing.assert_allclose(views[name], reference.slots[name], rtol=1e-6, atol=1e-6)
        assert addresses == {number: value.data_ptr() for number, value in storages.items()}


def test_a_reader_sees_what_is_put_in_the_slot_itself(tmp_path: Path) -> None:
    engines = load(write_bundle(tmp_path / "b"))
    arrays = arrays_for(1)
    before = engines["full"].run(arrays)["sample"]
    view = engines["full"].storages[0].numpy().view(np.float32)
    view += 1
    after = engines["shared"].run(arrays)["sample"]
    np.testing.assert_allclose(after, before + 1, rtol=1e-6, atol=1e-6)


def test_outputs_are_not_overwritten_by_the_next_run(tmp_path: Path) -> None:
    engine = load(write_bundle(tmp_path / "b"))["full"]
    first = engine.run(arrays_for(0))["sample"]
    kept = first.copy()
    second = engine.run(arrays_for(1))["sample"]
    np.testing.assert_array_equal(first, kept)
    assert not np.array_equal(first, second)


def test_tables_that_onnxruntime_turns_are_not_handed_over(tmp_path: Path) -> None:
    """Between two transposes it turns what is broadcast, and drops them."""
    rows, columns = SHAPE[1], SHAPE[3]
    table = np.random.default_rng(3).standard_normal((1, 1, rows, columns)).astype(np.float32)
    offsets = save_weights(tmp_path / "weights.safetensors", {"table": table})
    nodes = [
        helper.make_node("Transpose", ["hidden_states"], ["turned"], perm=[0, 2, 1, 3]),
        helper.make_node("Mul", ["turned", "table"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["sample"], perm=[0, 2, 1, 3]),
    ]
    held = external("table", table, offsets["table"])
    inputs = [value_of(info) for info in INPUTS]
    graph = helper.make_graph(nodes, "turning", inputs, [value_of(output_info(False))], [held])
    (tmp_path / "full.onnx").write_bytes(make_model(graph))
    manifest = make_manifest(sampler=None)
    bucket = replace(
        manifest.buckets[0], reads=(), writes=(), weights=("table",), steps=tuple(range(5))
    )
    weights = map_tensors(tmp_path / "weights.safetensors")
    alone = replace(manifest, buckets=(bucket,), slots=())
    engine = OrtBackend(threads=1).load(tmp_path, alone, weights)["full"]
    arrays = arrays_for(0)
    expected = arrays["hidden_states"] * table.transpose(0, 2, 1, 3)
    np.testing.assert_array_equal(engine.run(arrays)["sample"], expected)


@pytest.mark.parametrize("prepack", [True, False])
def test_prepacking_changes_no_result(tmp_path: Path, prepack: bool) -> None:
    engine = load(write_bundle(tmp_path / "b"), OrtBackend(threads=2, prepack=prepack))["full"]
    arrays = arrays_for(0)
    expected = Reference(make_weights()).step(0, **arrays)
    np.testing.assert_allclose(engine.run(arrays)["sample"], expected, rtol=1e-6, atol=1e-6)


def test_provider_that_is_not_there(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "b")
    with pytest.raises(
        EngineError,
        match=r"'CUDAExecutionProvider' isn't in .*CPUExecutionProvider; .*extra \[cuda\]",
    ):
        Bundle.open(root, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(EngineError, match=r"'NoProvider' isn't in .*install a build that has it"):
        Bundle.open(root, providers=["NoProvider"])
    with pytest.raises(EngineError, match="no provider was given, expected some of"):
        OrtBackend(()).load(root, make_manifest(), {})


@pytest.mark.filterwarnings("ignore:Specified provider")  # ONNX Runtime warns as it falls back
def test_another_provider_than_asked_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_bundle(tmp_path / "b")
    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: available)
    with pytest.raises(
        EngineError, match=r"^ONNX Runtime \S+ can't put .* MB of weights on cuda: "
    ):
        Bundle.open(root, providers=["CUDAExecutionProvider"])


def test_given_providers_are_compared_with_those_asked_for() -> None:
    bucket = make_manifest().buckets[0]
    check_given(bucket, ["CPUExecutionProvider"], ["CPUExecutionProvider"])
    with pytest.raises(EngineError, match="bucket 'full': asked for 'A', ONNX Runtime gave B; "):
        check_given(bucket, ["A"], ["B"])


def test_missing_onnxruntime_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_bundle(tmp_path / "b")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match=r": install ditc\'s extra \[ort\] .* or \[cuda\] for"):
        Bundle.open(root)


def test_weight_that_is_not_in_the_store(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "b")
    full, *others = make_manifest().buckets
    more = replace(make_manifest(), buckets=(replace(full, weights=("w", "gone")), *others))
    write_manifest(root, more)
    with pytest.raises(BundleError, match="bucket 'full': uses the weight 'gone'"):
        load(root)


def test_graph_of_another_interface(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "b")
    (root / "shared.onnx").write_bytes((root / "rest.onnx").read_bytes())
    write_manifest(root, make_manifest())
    with pytest.raises(
        BundleError, match=r"bucket 'shared': shared.onnx has the inputs .*expected"
    ):
        load(root)


def test_graph_that_does_not_load(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "b")
    (root / "full.onnx").write_bytes(b"nonsense")
    write_manifest(root, make_manifest())
    with pytest.raises(EngineError, match=r"bucket 'full': ONNX Runtime .* can't load full.onnx"):
        load(root)


def test_failing_run_names_the_bucket(tmp_path: Path) -> None:
    engine = load(write_bundle(tmp_path / "b"))["full"]
    out_of_range = {**arrays_for(0), "class_labels": np.array([99, 0], np.int64)}
    with pytest.raises(EngineError, match=r"bucket 'full': ONNX Runtime failed: .*indices"):
        engine.run(out_of_range)


def make_wide(root: Path, buckets: int, width: int = 1536, layers: int = 3) -> Path:
    """Write a bundle of equal buckets over `layers` weights of `width` squared."""
    root.mkdir()
    draw = np.random.default_rng(0)
    weights: dict[str, Floats] = {
        f"w{i}": draw.standard_normal((width, width), np.float32) / 40 for i in range(layers)
    }
    offsets = save_weights(root / "weights.safetensors", weights)
    names = ["x", *(f"h{i}" for i in range(layers - 1)), "y"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(layers)]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [8, width]) for n in ("x", "y"))
    tensors = [external(name, weights[name], offsets[name]) for name in weights]
    graph = make_model(helper.make_graph(nodes, "wide", [x], [y], tensors))
    infos = []
    for k in range(buckets):
        (root / f"b{k}.onnx").write_bytes(graph)
        infos.append(BucketInfo(f"b{k}", f"b{k}.onnx", (k,), ("x",), (), (), {}, 0, tuple(weights)))
    paths = [*(info.graph for info in infos), "weights.safetensors"]
    placeholder = make_manifest().files["full.onnx"]
    manifest = replace(
        make_manifest(None, None),
        steps=buckets,
        inputs=(InputInfo("x", (8, width), "float32", "latents"),),
        outputs=(OutputInfo("y", (8, width), "float32"),),
        slots=(),
        buckets=tuple(infos),
        files=dict.fromkeys(paths, placeholder),
    )
    return write_manifest(root, manifest)


MEASURE = """
import sys
import numpy as np
from pathlib import Path
from ditc.runtime import Bundle

bundle = Bundle.open(sys.argv[1], threads=2, prepack=sys.argv[2] == "prepack")
x = np.ones(bundle.manifest.inputs[0].shape, np.float32)
for k in range(bundle.steps):
    bundle.step(k, x=x)
lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
print(next(int(line.split()[1]) for line in lines if line.startswith("Pss:")))
assert "torch" not in sys.modules
"""


def proportional_kib(root: Path, prepack: str = "") -> int:
    command = [sys.executable, "-W", "error", "-c", MEASURE, str(root), prepack]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return int(done.stdout)


@pytest.mark.skipif(not SMAPS.exists(), reason="waits for a system that tells proportional memory")
def test_ten_buckets_share_one_copy_of_the_weights(tmp_path: Path) -> None:
    one = proportional_kib(make_wide(tmp_path / "one", 1))
    root = make_wide(tmp_path / "ten", 10)
    assert proportional_kib(root) <= 1.3 * one
    assert proportional_kib(root, "prepack") > 2 * one  # so the measure tells copies from sharing


def test_inputs_of_the_tiny_bundle_are_all_used(tmp_path: Path) -> None:
    engines: dict[str, OrtEngine] = load(write_bundle(tmp_path / "b"))
    arrays: dict[str, Array] = arrays_for(0)
    assert set(arrays) == {info.name for info in INPUTS}
    for name in arrays:
        changed = {**arrays, name: arrays[name] + np.ones((), arrays[name].dtype)}
        if name == "class_labels":
            changed[name] = np.array([1, 2], np.int64)
        found = engines["full"].run(changed)["sample"]
        assert not np.array_equal(found, engines["full"].run(arrays)["sample"])
