"""`ditc run`: arrays and pictures of what a bundle generates, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ditc.runtime import Bundle
from ditc.runtime.errors import DitcError
from ditc.tools import running
from ditc.tools.cli import main

from .commands import Capture, fails
from .compiled import sampling_bundle, small_bundle
from .test_export_bundle import tree


def test_run_writes_arrays_and_pictures(capsys: Capture, tmp_path: Path) -> None:
    options = ["--seed", "3", "--input", "class_labels=5", "--negative", "class_labels=10"]
    options += ["--guidance-scale", "1.5", "--threads", "1"]
    for name in ("out.npy", "out.png"):
        place = tmp_path / name
        assert main(["run", str(sampling_bundle()), "-o", str(place), *options]) == 0
        assert capsys.readouterr().out == f"{place}: [1, 3, 10, 10], seed 3\n"
    expected = Bundle.open(sampling_bundle(), threads=1).generate(
        seed=3,
        guidance_scale=1.5,
        class_labels=np.array([5]),
        negative={"class_labels": np.array([10])},
    )
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)
    with Image.open(tmp_path / "out.png") as picture:
        assert (picture.size, picture.mode) == ((10, 10), "RGB")
        shown = np.asarray(picture)
    scaled = np.clip((expected[0] + 1) * 127.5, 0, 255).round().astype(np.uint8)
    np.testing.assert_array_equal(shown, scaled.transpose(1, 2, 0))


def test_run_takes_conditioning_from_a_file(capsys: Capture, tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.array([5]))
    arguments = ["run", str(sampling_bundle()), "-o", str(tmp_path / "a.npy"), "--input"]
    assert main([*arguments, f"class_labels={tmp_path / 'labels.npy'}"]) == 0
    assert main([*arguments[:3], str(tmp_path / "b.npy"), "--input", "class_labels=5"]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))


def test_run_refuses(capsys: Capture, tmp_path: Path) -> None:
    def told(*more: object, out: str = "out.npy") -> str:
        message = fails(capsys, "run", sampling_bundle(), "-o", tmp_path / out, *more)
        assert tree(tmp_path) == []
        return message

    assert told(out="out.jpg").endswith("expected a name that ends in .png or .npy or .gif or .mp4")
    assert "can't be written: " in told(out="missing/out.npy")
    assert told("--input", "prompt=1") == (
        "--input prompt=1: expected NAME=VALUES, with a name of class_labels"
    )
    assert told("--negative", "class_labels").startswith("--negative class_labels: expected NAME=")
    assert told("--input", "class_labels=1.5") == "--input class_labels: 1.5 doesn't fit int64"
    assert told("--input", "class_labels=cat").startswith("--input class_labels: could not convert")
    assert told("--input", f"class_labels={tmp_path}/none.npy").startswith("--input class_labels: ")
    assert "expected (1,) for the conditional half or (2,)" in told("--input", "class_labels=1,2,3")
    twice = ("--input", "class_labels=1", "--input", "class_labels=2")
    assert told(*twice) == "--input class_labels: is given twice, expected once"
    assert "'CUDAExecutionProvider' isn't in this ONNX Runtime" in told(
        "--provider", "CUDAExecutionProvider"
    )
    assert told("--guidance-scale", "nan").startswith("guidance_scale is nan")


def test_numbers_are_rounded_to_what_an_input_takes() -> None:
    def parsed(values: str, dtype: str) -> np.ndarray:
        _, found = running._array("--input", f"x={values}", {"x": dtype})
        assert found.dtype == dtype
        return found

    np.testing.assert_array_equal(parsed("0.1,-2", "float32"), np.array([0.1, -2], np.float32))
    np.testing.assert_array_equal(parsed("0.1", "float16"), np.array([0.1], np.float16))
    for values, dtype in (("70000", "float16"), ("nan", "float32"), ("0.5", "int64")):
        with pytest.raises(DitcError, match=rf"^--input x: {values} doesn't fit {dtype}$"):
            parsed(values, dtype)


def test_run_refuses_a_picture_of_latents_before_it_generates(
    capsys: Capture, tmp_path: Path
) -> None:
    """The bundle has no sampler either, which generating would have told."""
    message = fails(capsys, "run", small_bundle(), "-o", tmp_path / "out.png")
    assert message == (
        "result [2, 25, 16] is no picture of 1 or 3 channels: write it as .npy and decode it"
    )


def test_run_of_a_bundle_without_sampler(capsys: Capture, tmp_path: Path) -> None:
    message = fails(capsys, "run", small_bundle(), "-o", tmp_path / "out.npy")
    assert message.startswith("the bundle has no sampler")
