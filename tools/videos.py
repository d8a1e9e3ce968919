"""Write videos: GIF with Pillow, MP4 with imageio-ffmpeg where it is installed."""

import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ditc.runtime.errors import DitcError, install

from .images import grid

__all__ = ["check_writer", "save_video"]

Pixels = npt.NDArray[np.uint8]


def check_writer(path: Path) -> None:
    """Refuse an .mp4 where nothing here writes it.

    Raises:
        DitcError: that says what to install.
    """
    if path.suffix != ".mp4":
        return
    try:
        import imageio_ffmpeg  # noqa: F401
    except ImportError:
        raise DitcError(
            f"{path}: imageio-ffmpeg is not installed: {install('video')}, or write a .gif"
        ) from None


def save_video(videos: Pixels, path: Path, fps: int) -> None:
    """Write videos as one, side by side in a grid.

    Args:
        videos: uint8 `[samples, frames, height, width, 3]`.
        path: file to write, .gif or .mp4.
        fps: frames a second; GIFs hold whole hundredths of a second a frame.

    Raises:
        OSError: if it can't be written.
    """
    frames = grid(videos)
    if path.suffix == ".mp4":
        _save_mp4(frames, path, fps)
        return
    first, *others = (Image.fromarray(frame) for frame in frames)
    length_ms = max(20, round(100 / fps) * 10)
    first.save(path, save_all=True, append_images=others, duration=length_ms, loop=0)


def _save_mp4(frames: Pixels, path: Path, fps: int) -> None:
    """Write H.264; its sizes are even, so that a last odd row or column is written twice."""
    import imageio_ffmpeg

    height, width = frames.shape[1:3]
    even = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    size = f"{even.shape[2]}x{even.shape[1]}"
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(fps), "-i", "-"]
    coded = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "18", str(path.absolute())]
    done = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-y", *raw, *coded],
        input=even.tobytes(),
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise OSError(done.stderr.decode(errors="replace").strip() or "ffmpeg failed")
