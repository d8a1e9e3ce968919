"""`ditc compare`: how close one set of images is to another."""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from ditc.runtime.errors import DitcError

from .clip_score import clip_score
from .counted import counted
from .glyphs import IMAGE_SIZE, GlyphFeatures
from .image_sets import ImageSet, read_pair
from .quality import SSIM_WINDOW_PX, Figure, closeness, frechet_distance, lpips, small_sample

__all__ = ["compare"]

LABELS = {
    "psnr_db": "PSNR, dB",
    "ssim": "SSIM",
    "lpips": "LPIPS (AlexNet)",
    "frechet": "Fréchet distance",
    "clip_first": "CLIP score of the first",
    "clip_second": "CLIP score of the second",
}
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
"""File that torch-fidelity keeps Inception's weights in, the ones that FID is defined with."""


def compare(options: argparse.Namespace) -> None:
    """Print the figures of the two sets that the options name.

    Raises:
        DitcError: if a set or the prompts can't be read, or don't go together.
    """
    first, second = read_pair(options.first, options.second)
    count = len(first.images)
    prompts = None if options.prompts is None else _prompts(options.prompts, count)
    near = closeness(first.images, second.images)
    distance, note = _frechet(first, second, options.features)
    figures = {
        "psnr_db": _equal(near.psnr_db),
        "ssim": _ssim(near.ssim),
        "lpips": lpips(first.images, second.images),
        "frechet": distance,
        "clip_first": clip_score(first.images, prompts, options.clip),
        "clip_second": clip_score(second.images, prompts, options.clip),
    }
    if options.json:
        record = {name: asdict(figure) for name, figure in figures.items()}
        sys.stdout.write(json.dumps({"images": count, "figures": record, "note": note}) + "\n")
        return
    shape = " x ".join(map(str, first.images.shape[1:]))
    sys.stdout.write(f"{counted(count, 'pair')} of images, {shape}\n")
    for name, figure in figures.items():
        found = f"absent: {figure.absent}" if figure.value is None else f"{figure.value:.4f}"
        sys.stdout.write(f"{LABELS[name]:<26} {found}\n")
    if note is not None:
        sys.stdout.write(f"note: {note}\n")


def _equal(psnr_db: float) -> Figure:
    if math.isfinite(psnr_db):
        return Figure(psnr_db)
    return Figure(None, "the images are equal, so there is no noise")


def _ssim(ssim: float) -> Figure:
    if not math.isnan(ssim):
        return Figure(ssim)
    return Figure(None, f"images are smaller than its window of {SSIM_WINDOW_PX} pixels")


def _frechet(first: ImageSet, second: ImageSet, features: str) -> tuple[Figure, str | None]:
    """Return the distance between the sets' features, and what to know of it."""
    if features == "glyphs":
        extractor: torch.nn.Module = GlyphFeatures.load()
        if first.images.shape[1:] != (1, IMAGE_SIZE, IMAGE_SIZE):
            raise DitcError(
                f"--features glyphs: expected images [1, {IMAGE_SIZE}, {IMAGE_SIZE}], found "
                f"{list(first.images.shape[1:])}"
            )
        width = GlyphFeatures.num_features
    else:
        weights = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION
        if not weights.is_file():
            why = f"the weights of Inception aren't at {weights}; nothing is downloaded"
            return Figure(None, why), None
        try:
            from torchmetrics.image.fid import NoTrainInceptionV3

            width = 2048
            extractor = _Inception(
                NoTrainInceptionV3("inception-v3-compat", [str(width)], str(weights))
            )
        except ModuleNotFoundError as error:
            return Figure(None, f"torch-fidelity is not installed: {error}"), None
    found = frechet_distance(first.images, second.images, extractor)
    return found, None if found.value is None else small_sample(len(first.images), width)


class _Inception(torch.nn.Module):
    """Inception as FID is defined with it: bytes of three channels."""

    def __init__(self, inception: torch.nn.Module) -> None:
        super().__init__()
        self.inception = inception

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = ((images + 1) * 127.5).round().to(torch.uint8)
        found: torch.Tensor = self.inception(pixels.expand(-1, 3, -1, -1))
        return found


def _prompts(path: Path, count: int) -> Sequence[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DitcError(f"--prompts {path}: can't be read: {error}") from error
    if len(lines) != count or not all(map(str.strip, lines)):
        raise DitcError(
            f"--prompts {path}: expected a line for each of {count} images, found "
            f"{sum(bool(line.strip()) for line in lines)} in {len(lines)} lines"
        )
    return lines
