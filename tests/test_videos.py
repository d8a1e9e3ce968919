"""Video files, read back."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ditc.runtime.errors import DitcError
from ditc.tools.images import grid
from ditc.tools.videos import check_writer, save_video


def squares(samples: int, frames: int, height: int, width: int) -> np.ndarray:
    """Return videos of one grey a frame, which compression leaves as it is."""
    greys = np.linspace(20, 230, samples * frames).astype(np.uint8)
    return np.broadcast_to(
        greys.reshape(samples, frames, 1, 1, 1), (samples, frames, height, width, 3)
    ).copy()


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (5, 2, 3), (4, 2, 2)])
def test_a_grid(count: int, rows: int, columns: int) -> None:
    pictures = np.random.default_rng(0).integers(1, 255, (count, 3, 5, 3)).astype(np.uint8)
    whole = grid(pictures)
    assert whole.shape == (3 * rows, 5 * columns, 3)
    for number in range(rows * columns):
        row, column = divmod(number, columns)
        cell = whole[3 * row : 3 * row + 3, 5 * column : 5 * column + 5]
        expected = pictures[number] if number < count else np.zeros((3, 5, 3))
        np.testing.assert_array_equal(cell, expected)


@pytest.mark.parametrize(("fps", "duration"), [(24, 40), (8, 120), (200, 20)])
def test_gif(fps: int, duration: int, tmp_path: Path) -> None:
    video = squares(2, 3, 4, 6)
    save_video(video, tmp_path / "out.gif", fps)
    with Image.open(tmp_path / "out.gif") as found:
        assert (found.n_frames, found.size) == (3, (12, 4))
        assert (found.info["duration"], found.info["loop"]) == (duration, 0)
        for frame in range(3):
            found.seek(frame)
            shown = np.asarray(found.convert("RGB")).astype(int)
            for sample in range(2):
                part = shown[:, 6 * sample : 6 * sample + 6]
                assert np.abs(part - video[sample, frame]).max() <= 4


def test_mp4(tmp_path: Path) -> None:
    """Odd sizes too, which H.264 doesn't know."""
    ffmpeg = pytest.importorskip(
        "imageio_ffmpeg", reason="waits for the extra [video]"
    ).get_ffmpeg_exe()
    video, out = squares(1, 5, 33, 51), tmp_path / "out.mp4"
    check_writer(out)
    save_video(video, out, 10)
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    read = subprocess.run([ffmpeg, "-i", out, *raw], capture_output=True, check=True)
    told = read.stderr.decode()
    assert "52x34" in told
    assert " 10 fps" in told
    frames = np.frombuffer(read.stdout, np.uint8).reshape(-1, 34, 52, 3).astype(int)
    assert len(frames) == 5
    for frame, expected in zip(frames, video[0], strict=True):
        assert np.abs(frame[:33, :51] - expected).mean() <= 4


def test_an_mp4_that_cannot_be_written(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="waits for the extra [video]")
    with pytest.raises(OSError, match="No such file or directory"):
        save_video(squares(1, 2, 4, 4), tmp_path / "missing" / "out.mp4", 10)


def test_mp4_where_nothing_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    check_writer(Path("out.gif"))
    with pytest.raises(DitcError, match=r"not installed: install ditc's extra \[video\]"):
        check_writer(Path("out.mp4"))
