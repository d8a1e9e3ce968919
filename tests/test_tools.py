"""What the commands are made of: pictures, timing, closeness, progress, the demo's report."""

import io
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditc.runtime import Bundle
from ditc.runtime.errors import DitcError
from ditc.tools import demo
from ditc.tools.bench import time_buckets
from ditc.tools.images import comparison, save_images, to_bytes
from ditc.tools.inspecting import bytes_by_part
from ditc.tools.models import demo_recording, parse_call
from ditc.tools.progress import progress
from ditc.tools.quality import closeness
from ditc.tools.running import example_inputs
from ditc.tools.timing import Timing, in_turn, timing

from .compiled import demo_bundle, small_bundle


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def test_pixels_of_grey_and_colour() -> None:
    grey = np.array([[[[-1.0, 0.0], [1.0, 5.0]]]], np.float32)
    pixels = to_bytes(grey)
    assert pixels.shape == (1, 2, 2, 3)
    assert pixels.dtype == np.uint8
    assert pixels[0, :, :, 0].tolist() == [[0, 128], [255, 255]]
    assert (pixels == pixels[..., :1]).all()
    colour = draw(2, 3, 4, 5)
    assert to_bytes(colour).shape == (2, 4, 5, 3)
    expected = ((colour[1, :, 2, 3] + 1) * 127.5).round()
    assert to_bytes(colour)[1, 2, 3].tolist() == expected.tolist()


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (1, 8, 8), (1, 3, 2, 8, 8)])
def test_latents_are_no_pictures(shape: tuple[int, ...]) -> None:
    with pytest.raises(DitcError, match=r"is no picture of 1 or 3 channels: write it as \.npy"):
        to_bytes(np.zeros(shape, np.float32))


def test_samples_lie_side_by_side(tmp_path: Path) -> None:
    images = draw(3, 1, 4, 6)
    save_images(images, tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.size == (18, 4)
        assert (np.asarray(picture)[:, 6:12] == to_bytes(images)[1]).all()


def test_the_size_of_a_comparison(tmp_path: Path) -> None:
    rows = [(name, "a note", to_bytes(draw(5, 1, 8, 10))) for name in ("first", "second")]
    comparison(rows, "a title", tmp_path / "grid.png", zoom=3)
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size == (2 * 24 + 210 + 5 * (10 * 3 + 4), 64 + 2 * (8 * 3 + 20) + 8)


def test_quartiles() -> None:
    found = timing([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (found.low_ms, found.median_ms, found.high_ms) == (2.0, 3.0, 4.0)
    assert found.rounds_ms == (5.0, 1.0, 2.0, 4.0, 3.0)
    assert timing([7.0]) == Timing(7.0, 7.0, 7.0, (7.0,))


def test_a_ratio_is_of_rounds_not_of_medians() -> None:
    """A round in which the machine was slow for both counts as any other."""
    fast, slow = timing([1.0, 10.0, 3.0]), timing([2.0, 20.0, 9.0])
    assert fast.ratio_to(slow) == 2.0
    assert slow.ratio_to(fast) == 0.5
    assert slow.median_ms / fast.median_ms == 3.0


def test_callables_take_turns() -> None:
    calls: list[str] = []
    found = in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert calls == ["a", "b"] * 4
    assert [len(entry.rounds_ms) for entry in found.values()] == [3, 3]


def test_every_bucket_is_timed_over_its_steps() -> None:
    bundle = Bundle.open(demo_bundle(), threads=1)
    found = time_buckets(bundle, rounds=2)
    assert {name: len(entry.rounds_ms) for name, entry in found.items()} == {"b00": 2, "b01": 4}
    for entry in found.values():
        assert entry.median_ms == pytest.approx(statistics.median(entry.rounds_ms))


def test_closeness_by_its_formula() -> None:
    images, references = draw(4, 1, 32, 32), draw(4, 1, 32, 32, seed=1)
    references[:2] = images[:2]
    found = closeness(images, references)
    error = np.mean((images.astype(np.float64) - references) ** 2)
    assert found.psnr_db == pytest.approx(10 * np.log10(2.0**2 / error), rel=1e-5)
    assert 0.4 < found.ssim < 0.6
    same = closeness(images, images)
    assert same.psnr_db == np.inf
    assert same.ssim == pytest.approx(1.0)


def test_closeness_is_of_what_is_seen() -> None:
    """Beyond [-1, 1] a picture shows no difference."""
    images = draw(1, 1, 16, 16)
    images[0, 0, 0] = 1.0
    brighter = images.copy()
    brighter[0, 0, 0] = 3.0
    assert closeness(brighter, images) == closeness(images, images)


def test_bytes_add_up() -> None:
    manifest = Bundle.open(small_bundle(), threads=1).manifest
    parts = bytes_by_part(manifest)
    assert parts["weights"] == (small_bundle() / "weights.safetensors").stat().st_size
    assert parts["graphs"] == sum(path.stat().st_size for path in small_bundle().glob("*.onnx"))
    assert sum(parts.values()) == sum(record.bytes for record in manifest.files.values())


def test_example_inputs_have_shapes_and_dtypes() -> None:
    manifest = Bundle.open(demo_bundle(), threads=1).manifest
    found = example_inputs(manifest)
    assert {name: (array.shape, str(array.dtype)) for name, array in found.items()} == {
        entry.name: (entry.shape, entry.dtype) for entry in manifest.inputs
    }
    assert not found["class_labels"].any()
    assert found["hidden_states"].std() == pytest.approx(1.0, abs=0.1)


def test_progress_is_a_line_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("compile", 2) as advance:
        advance()
    assert capsys.readouterr().err == "compile: done\n"


def test_progress_says_how_far_it_is_every_ten_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("ditc.tools.progress.time.monotonic", lambda: now[0])
    with progress("search", 5) as advance:
        for seconds in (4.0, 7.0, 5.0, 9.0, 30.0):
            now[0] += seconds
            advance()
    expected = "search: 2 of 5\nsearch: 4 of 5\nsearch: done\n"
    assert capsys.readouterr().err == expected


def test_progress_says_nothing_of_what_failed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DitcError), progress("compile", 2):
        raise DitcError("no")
    assert capsys.readouterr().err == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress("compile", 2) as advance:
        advance()
    assert "compile:" in terminal.getvalue()
    assert "done" not in terminal.getvalue()


def test_parse_call() -> None:
    assert parse_call('{"height": 64, "prompt": "a cat"}') == {"height": 64, "prompt": "a cat"}


def test_the_eager_sampler_makes_what_the_engine_makes() -> None:
    """The demo's yardstick has to do the same work; step 0 of a plan is never compressed."""
    bundle = Bundle.open(demo_bundle(), threads=1)
    expected = demo.EagerSampler(demo_recording(), bundle, steps=1)(3)
    assert bundle.manifest.sampler is not None
    noise = np.random.default_rng(0).standard_normal((1, 1, 32, 32)).astype(np.float32)
    found: list[np.ndarray] = []
    bundle.generate(
        latents=noise * np.float32(bundle.manifest.sampler.init_noise_scale),
        guidance_scale=demo.GUIDANCE_SCALE,
        class_labels=np.array([3, demo.NULL_CLASS]),
        callback=lambda *state: found.append(state[2]),
    )
    assert np.abs(found[0] - expected).max() / np.abs(expected).max() <= 1e-4


def test_a_demo_model_of_several_samples() -> None:
    recording = demo_recording(samples=2)
    labels = recording.kwargs["class_labels"]
    assert isinstance(labels, torch.Tensor)
    assert labels.tolist() == [0, 1, demo.NULL_CLASS, demo.NULL_CLASS]
