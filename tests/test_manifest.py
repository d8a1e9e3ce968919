"""The manifest: what it accepts, what it refuses, and the files it vouches for."""

import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from ditc.runtime.asked import AskedInfo
from ditc.runtime.curve import CurveInfo
from ditc.runtime.engine_info import EngineInfo
from ditc.runtime.errors import BundleError
from ditc.runtime.fields import canonical_json, digest_of
from ditc.runtime.files import check_files, check_relative, read_text
from ditc.runtime.manifest import MANIFEST_FILE, FileInfo, Manifest
from ditc.runtime.weights import map_tensors

from .bundles import OUTPUT, RESIDUAL, info_of, make_manifest, make_weights, write_bundle

Document = dict[str, Any]


def edited(edit: Callable[[Document], object]) -> str:
    """Return a sound manifest's text after `edit`, with the digest made right again."""
    document: Document = json.loads(make_manifest().to_json())
    edit(document)
    document.pop("digest", None)
    return json.dumps({**document, "digest": digest_of(document)})


def setting(*path: str | int, value: object) -> Callable[[Document], None]:
    def edit(document: Document) -> None:
        place: Any = document
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return edit


def test_manifest_round_trip() -> None:
    for cfg in ("cond-first", "uncond-first", None):
        manifest = make_manifest(cfg)
        text = manifest.to_json()
        assert Manifest.from_json(text) == manifest
        assert Manifest.from_json(text).to_json() == text


ENGINE = EngineInfo("tensorrt_rtx", "1.7.1", ("sm89", "sm120"), "inputs", "xz", {"a": "no kernel"})


def engined() -> Manifest:
    return replace(make_manifest(), target="tensorrt-rtx", engine=ENGINE)


def test_engines_round_trip_and_others_have_none() -> None:
    assert Manifest.from_json(engined().to_json()) == engined()
    assert "refittable" not in engined().to_json()
    whole = replace(engined(), target="torch-tensorrt", engine=replace(ENGINE, refittable=True))
    assert Manifest.from_json(whole.to_json()) == whole
    assert '"engine"' not in make_manifest().to_json()


@pytest.mark.parametrize(
    ("found", "target", "message"),
    [
        (ENGINE, "onnx", "engine: is tensorrt_rtx, expected none for the target 'onnx'"),
        (None, "tensorrt-rtx", "engine: is missing, expected tensorrt_rtx for the target"),
        (ENGINE, "tensorrt", "engine: is tensorrt_rtx, expected tensorrt for the target"),
        (None, "torch-tensorrt", "engine: is missing, expected tensorrt or tensorrt_rtx for the"),
    ],
)
def test_engines_of_another_target(found: EngineInfo | None, target: str, message: str) -> None:
    with pytest.raises(BundleError, match=re.escape(message)):
        replace(make_manifest(), target=target, engine=found)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("library", "coreml", "engine.library: is 'coreml', expected one of 'tensorrt', 'tensor"),
        ("weights", "both", "engine.weights: is 'both', expected one of 'inputs', 'baked'"),
        ("capabilities", ["sm89", ""], "engine.capabilities[1]: is empty, expected a name"),
        ("compression", "zip", "engine.compression: is 'zip', expected one of 'xz', null"),
        ("version", None, "engine.version: expected a string, found a NoneType"),
        ("decomposed", {"a": 1}, "engine.decomposed.a: expected a string, found a int"),
        ("refittable", 1, "engine.refittable: is 1, expected true or false"),
        ("more", 1, "engine: unknown field 'more'"),
    ],
)
def test_what_is_no_record_of_engines(field: str, value: object, message: str) -> None:
    document: Document = json.loads(engined().to_json())
    document.pop("digest")
    document["engine"][field] = value
    with pytest.raises(BundleError, match=re.escape(message)):
        Manifest.from_json(json.dumps({**document, "digest": digest_of(document)}))


def test_manifest_without_sampler_round_trips() -> None:
    manifest = make_manifest(sampler=None)
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_what_was_asked_for_round_trips() -> None:
    steps = make_manifest().steps
    manifest = replace(make_manifest(), asked=AskedInfo("k", tuple("abcdefgh"[:steps])))
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert '"asked"' not in make_manifest().to_json()
    with pytest.raises(BundleError, match=f"^asked.steps: has 1 entries, expected {steps}"):
        replace(make_manifest(), asked=AskedInfo("k", ("a",)))


def test_a_curve_round_trips() -> None:
    manifest = replace(make_manifest(), curve=CurveInfo((9.0, 4.5, 4.5), 12.0))
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_text_is_canonical_and_digest_covers_all_else() -> None:
    text = make_manifest().to_json()
    document = json.loads(text)
    assert text == canonical_json(document)
    digest = document.pop("digest")
    assert digest == hashlib.sha256(canonical_json(document).encode()).hexdigest()


def test_bucket_of_names_the_bucket_of_a_step() -> None:
    manifest = make_manifest()
    assert [manifest.bucket_of(k).name for k in range(5)] == [
        "full",
        "shared",
        "rest",
        "shared",
        "full",
    ]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (setting("format", value="zip"), "the format is 'zip', expected 'ditc-bundle'"),
        (setting("version", value=2), r"written by a newer ditc \('0.1.0'\).*upgrade"),
        (setting("version", value="1"), "version: expected an integer, found a str"),
        (lambda d: d.pop("steps"), "the field 'steps' is missing"),
        (setting("colour", value=1), "unknown field 'colour'"),
        (setting("precision", value="\ud800"), r"precision: is '\\ud800', expected printable text"),
        (setting("model", "class", value="a\x1b[2J"), "model.class: is .* printable text"),
        (setting("sampler", "scheduler", value="a\nb"), "sampler.scheduler: is .* printable"),
        (setting("buckets", 0, "methods", value={"\n": "full"}), "methods: a field: is '.n'"),
        (lambda d: d["files"].update({"\ud800": d["files"]["full.onnx"]}), "files: a field: is "),
        (setting("buckets", 1, "methods", value={"b": "ast"}), "has other sites than bucket 'f"),
        (setting("rows", value=[1]), "rows: expected an object, found a list"),
        (setting("rows", value={"class_labels": 0}), "rows.class_labels: is 0, expected 1 to"),
        (setting("rows", value={"hidden_states": 3}), "rows: 'hidden_states' is no input of int"),
        (setting("rows", value={"mask": 3}), "rows: 'mask' is no input of integers"),
        (setting("cfg", value="both"), "cfg: is 'both', expected one of 'cond-first'"),
        (setting("asked", value=[1.0]), "asked: expected an object, found a list"),
        (setting("asked", value={"key": "", "steps": []}), "asked.key: is empty, expected a name"),
        (
            setting("asked", value={"key": "k", "steps": [1]}),
            r"asked.steps\[0\]: expected a str",
        ),
        (setting("curve", value=[1.0]), "curve: expected an object, found a list"),
        (setting("curve", value={"costs": [], "full": 1.0}), "curve.costs: expected numbers that"),
        (setting("curve", value={"costs": [1.0, 2.0], "full": 3}), "curve.costs: expected num"),
        (setting("curve", value={"costs": [1.0, -2.0], "full": 3}), "curve.costs: expected num"),
        (setting("steps", value=True), "steps: expected an integer, found a bool"),
        (setting("steps", value=5.0), "steps: expected an integer, found a float"),
        (setting("steps", value=10_001), "steps: is 10001, expected 1 to 10000"),
        (setting("steps", value=0), "steps: is 0, expected 1 to 10000"),
        (setting("steps", value=6), "buckets: 0 hold step 5, expected exactly one"),
        (setting("steps", value=4), "one holds step 4, expected steps 0 to 3"),
        (setting("buckets", 0, "steps", value=[0, 1, 4]), "2 hold step 1, expected exactly one"),
        (setting("buckets", 0, "steps", value=[0, 0, 4]), "2 hold step 0, expected exactly one"),
        (setting("inputs", value={}), "inputs: expected a list, found a dict"),
        (setting("inputs", 0, "role", value="image"), r"inputs\[0\].role: is 'image'"),
        (setting("inputs", 0, "role", value=None), r"inputs\[0\].role: is None"),
        (setting("inputs", 1, "role", value="latents"), "several have the role 'latents'"),
        (setting("inputs", 0, "dtype", value="object"), r"inputs\[0\].dtype: is 'object'"),
        (setting("inputs", 0, "shape", value=[2, -1]), r"shape\[1\]: is -1, expected 1 to"),
        (setting("inputs", 0, "shape", value=[2**30, 2**30]), "expected at most 1099511627776"),
        (setting("inputs", 0, "shape", value=[3, 2, 3, 5]), "expected an even batch"),
        (setting("inputs", 0, "name", value=OUTPUT), "inputs and slots: 2 are named"),
        (setting("inputs", 0, "name", value=""), r"inputs\[0\].name: is empty"),
        (setting("outputs", value=[]), "outputs: is empty, expected at least one"),
        (setting("outputs", 0, "name", value=OUTPUT), "outputs and slots: 2 are named"),
        (setting("slots", 0, "kind", value="other"), "kind: is 'other', expected one of 'output'"),
        (setting("buckets", 1, "name", value="full"), "buckets: 2 are named 'full'"),
        (setting("buckets", 1, "inputs", value=["mask"]), "bucket 'shared': inputs names 'mask'"),
        (setting("buckets", 1, "reads", value=["x"]), "bucket 'shared': reads names 'x'"),
        (setting("buckets", 1, "writes", value=["x"]), "bucket 'shared': writes names 'x'"),
        (setting("buckets", 1, "writes", value=[OUTPUT]), "both reads and writes slot"),
        (setting("buckets", 1, "reads", value=[OUTPUT, OUTPUT]), "twice, expected it once"),
        (setting("buckets", 1, "graph", value="../b.onnx"), r"'../b.onnx' leaves the bundle"),
        (setting("buckets", 1, "graph", value="b.onnx"), "its graph 'b.onnx' isn't in files"),
        (setting("buckets", 0, "multiply_adds", value=-1), "multiply_adds: is -1, expected 0"),
        (setting("buckets", 0, "methods", value={"a": 1}), "methods.a: expected a string"),
        (setting("model", "config_sha256", value="xyz"), "config_sha256: is 'xyz'"),
        (setting("sampler", "noise", value=[0.0]), "noise: has 1 entries, expected 5"),
        (setting("sampler", value=3), "sampler: expected an object"),
        (setting("files", "full.onnx", "bytes", value=-1), "files.full.onnx.bytes: is -1"),
        (setting("files", "full.onnx", "sha256", value="F" * 64), "expected 64 hexadecimal"),
        (lambda d: d["files"].pop("weights.safetensors"), "'weights.safetensors' is missing"),
        (
            lambda d: d["files"].pop("conditioning.safetensors"),
            "'conditioning.safetensors' is missing",
        ),
        (lambda d: d["files"].update({"/etc/x": d["files"]["full.onnx"]}), "'/etc/x' leaves"),
    ],
)
def test_manifest_refuses(edit: Callable[[Document], object], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(edited(edit))


def test_read_needs_an_earlier_write() -> None:
    full, shared, rest = make_manifest().buckets
    buckets = (replace(full, steps=(1, 4)), replace(shared, steps=(0, 3)), rest)
    with pytest.raises(BundleError, match=f"step 0 reads slot '{OUTPUT}' that no earlier step"):
        replace(make_manifest(), buckets=buckets)


def test_bucket_needs_steps() -> None:
    empty = replace(make_manifest().buckets[0], name="none", steps=())
    with pytest.raises(BundleError, match="bucket 'none': has no steps"):
        replace(make_manifest(), buckets=(*make_manifest().buckets, empty))


def test_sampler_has_the_steps_of_the_bundle() -> None:
    full, shared, rest = make_manifest().buckets
    with pytest.raises(BundleError, match="sampler: has 5 steps, expected the bundle's 6"):
        replace(make_manifest(), steps=6, buckets=(replace(full, steps=(0, 4, 5)), shared, rest))


def test_a_batch_need_not_be_even_without_guidance() -> None:
    first, *others = make_manifest(None).inputs
    odd = replace(first, shape=(3, 2, 3, 5))
    assert replace(make_manifest(None), inputs=(odd, *others)).inputs[0].shape[0] == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "manifest.json: is no JSON"),
        ("[" * 100_000, "manifest.json: is no JSON"),
        ("[]", "this is no ditc bundle"),
        ('{"a": 1, "a": 1}', "the key 'a' occurs twice"),
        ('{"a": NaN}', "holds the number NaN, expected finite"),
        ('{"a": -Infinity}', "holds the number -Infinity, expected finite"),
        ('{"a": 1e999}', "holds the number 1e999, expected finite"),
        ('{"a": ' + "9" * 5000 + "}", "manifest.json: is no JSON"),
    ],
)
def test_text_that_is_no_manifest(text: str, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(text)


def test_changed_manifest_has_another_digest() -> None:
    text = make_manifest().to_json().replace('"precision": "fp32"', '"precision": "fp16"')
    with pytest.raises(BundleError, match="it was changed, copy or compile the bundle again"):
        Manifest.from_json(text)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_change_is_refused(data: st.DataObject) -> None:
    text = make_manifest().to_json()
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from([c for c in '09aZ"{}[],:.-é' if c != text[at]]))
    changed = text[:at] + other + text[at + 1 :]
    try:
        found = Manifest.from_json(changed)
    except BundleError:
        return
    assert found == make_manifest()  # only whitespace or another spelling of the same value


@pytest.mark.parametrize(
    "path", ["", "/a", "../a", "a/../b", "a//b", "./a", "a/", "C:a", "a\\b", "a\0", ".."]
)
def test_paths_stay_inside(path: str) -> None:
    with pytest.raises(BundleError, match=r"files: the path .* leaves the bundle or isn't normal"):
        check_relative(path, "files")
    assert check_relative("a/b.onnx", "files") == "a/b.onnx"


def test_files_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "w.bin"
    file.write_bytes(b"12345678")
    expected = {"w.bin": info_of(file)}
    check_files(tmp_path, expected)
    file.write_bytes(b"12345679")
    with pytest.raises(BundleError, match=r"w.bin: has the SHA-256 \w{64}, expected \w{64}; it"):
        check_files(tmp_path, expected)
    file.write_bytes(b"1234")
    with pytest.raises(BundleError, match=r"w.bin: has 4 bytes, expected 8; it was cut short"):
        check_files(tmp_path, expected)
    file.unlink()
    with pytest.raises(BundleError, match=r"w.bin: is missing, .*copy or compile"):
        check_files(tmp_path, expected)


def test_links_are_refused(tmp_path: Path) -> None:
    inside = tmp_path / "bundle"
    (tmp_path / "real").mkdir()
    inside.mkdir()
    (tmp_path / "real" / "w.bin").write_bytes(b"1")
    (inside / "folder").symlink_to(tmp_path / "real")
    (inside / "w.bin").symlink_to(tmp_path / "real" / "w.bin")
    info = FileInfo(hashlib.sha256(b"1").hexdigest(), 1)
    for path in ("w.bin", "folder/w.bin"):
        with pytest.raises(BundleError, match="is a symbolic link, expected the file itself"):
            check_files(inside, {path: info})


def test_text_must_be_utf8_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / MANIFEST_FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(BundleError, match="is no UTF-8 text"):
        read_text(tmp_path, MANIFEST_FILE)
    monkeypatch.setattr("ditc.runtime.files.MAX_TEXT_BYTES", 1)
    with pytest.raises(BundleError, match="has 2 bytes, expected at most 1"):
        read_text(tmp_path, MANIFEST_FILE)


def test_written_bundle_reads_back(tmp_path: Path) -> None:
    root = write_bundle(tmp_path / "b")
    manifest = Manifest.from_json(read_text(root, MANIFEST_FILE))
    check_files(root, manifest.files)
    assert [slot.name for slot in manifest.slots] == [OUTPUT, RESIDUAL]


def test_tensors_are_views_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    weights = {**make_weights(), "flags": np.array([True, False]), "n": np.array(3, np.int64)}
    save_file(weights, path, metadata={"note": "kept out"})
    found = map_tensors(path)
    assert set(found) == set(weights)
    for name, array in weights.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
        assert not found[name].flags.writeable
        assert not found[name].flags.owndata


def save_raw(path: Path, header: str, data: bytes = b"") -> Path:
    text = header.encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{x", "the header: is no JSON"),
        ("[]", "the header is .*expected an object"),
        ('{"a": 1}', "tensor 'a': expected an object"),
        ('{"a": {"dtype": "F32", "shape": [1]}}', "'data_offsets' is missing"),
        ('{"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}', "has dtype F8"),
        ('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', "expected 8 bytes"),
        ('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}', "is 12, expected 0 to"),
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}', "expected 4 bytes"),
        ('{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', "is -1, expected 1"),
    ],
)
def test_bad_safetensors(tmp_path: Path, header: str, message: str) -> None:
    path = save_raw(tmp_path / "w.safetensors", header, bytes(8))
    with pytest.raises(BundleError, match=message):
        map_tensors(path)


@pytest.mark.parametrize("content", [b"", b"1234", (2**62).to_bytes(8, "little") + b"{}"])
def test_no_safetensors_at_all(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(BundleError, match="it is no safetensors file"):
        map_tensors(path)


def test_numbers_in_a_manifest_are_finite() -> None:
    table = make_manifest().sampler
    assert table is not None
    with pytest.raises(BundleError, match="init_noise_scale: holds nan"):
        replace(table, init_noise_scale=math.nan)
