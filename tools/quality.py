"""Figures of how close images are to others; torchmetrics computes them.

A figure that can't be computed says why; it is never a zero. Nothing is downloaded for one: weights
are taken from where torch and the hub keep them, if they are there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)
from torchmetrics.image.fid import FrechetInceptionDistance

__all__ = [
    "LPIPS_WEIGHTS",
    "Closeness",
    "Figure",
    "closeness",
    "frechet_distance",
    "lpips",
    "small_sample",
]

RANGE = 2.0
"""Pixels lie in [-1, 1]."""
SSIM_WINDOW_PX = 11
"""Width of the Gaussian window (Wang et al. 2004)."""
LPIPS_LEAST_PX = 64
"""Width of the patches that LPIPS was fitted on (Zhang et al. 2018)."""
LPIPS_WEIGHTS = "alexnet-owt-7be5be79.pth"
"""File that torchvision keeps AlexNet's weights in."""
BATCH = 128

Images = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Figure:
    """A number, or why there is none.

    Attributes:
        value: the number, None where it is absent.
        absent: why, and the way to get it; None where there is a number.
    """

    value: float | None
    absent: str | None = None


@dataclass(frozen=True)
class Closeness:
    """How close images are to their references.

    Attributes:
        psnr_db: peak signal-to-noise ratio over all pixels, in dB; infinite where equal.
        ssim: structural similarity (Wang et al. 2004), mean over images and pixels, borders
            mirrored, at most 1; not a number where images are smaller than its window of 11 px.
    """

    psnr_db: float
    ssim: float


def closeness(images: Images, references: Images) -> Closeness:
    """Compare images with references.

    Args:
        images: `[samples, channels, height, width]` in [-1, 1].
        references: the same of what they should look like.
    """
    first, second = _tensor(images), _tensor(references)
    psnr = peak_signal_noise_ratio(first, second, data_range=RANGE)
    if min(images.shape[2:]) < SSIM_WINDOW_PX:
        return Closeness(float(psnr), float("nan"))
    ssim = structural_similarity_index_measure(first, second, data_range=RANGE)
    assert isinstance(ssim, torch.Tensor)
    return Closeness(float(psnr), float(ssim))


def frechet_distance(images: Images, references: Images, features: torch.nn.Module) -> Figure:
    """Return the Fréchet distance between the features of two sets, in fp64.

    `|μ − μ'|² + tr(Σ + Σ' − 2 (Σ Σ')^½)` of Gaussians fitted to both (Heusel et al. 2017).

    Args:
        images: `[samples, channels, height, width]` in [-1, 1].
        references: the same, any number of them; they needn't be pairs.
        features: maps a batch of images to `[batch, features]`.
    """
    if min(len(images), len(references)) < 2:
        return Figure(None, "a distribution needs two images at least on either side")
    extractor = _InDouble(features, _width(features, images))
    metric = FrechetInceptionDistance(feature=extractor, normalize=True)
    with torch.no_grad():
        for real, batch in ((False, images), (True, references)):
            for part in _batches(batch):
                metric.update(part, real=real)
        # Rounding can leave equal sets a hair below zero.
        return Figure(max(0.0, float(metric.compute())))


class _InDouble(torch.nn.Module):
    """An extractor whose features come out in fp64, so that the distance is given in it."""

    def __init__(self, features: torch.nn.Module, num_features: int) -> None:
        super().__init__()
        self.features = features
        self.num_features = num_features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.features(images).double()
        return found


def _width(features: torch.nn.Module, images: Images) -> int:
    with torch.no_grad():
        return int(features(_tensor(images[:1])).shape[-1])


def small_sample(samples: int, width: int) -> str | None:
    """Return what to know of a Fréchet distance from few images, None where they suffice.

    Args:
        samples: images in the smaller set.
        width: features of an image.
    """
    if samples > width:
        return None
    return (
        f"{samples} images can't span {width} features: the distance is biased upwards, and only "
        "comparable between sets of this size"
    )


def lpips(images: Images, references: Images) -> Figure:
    """Return the mean learned perceptual distance of pairs (Zhang et al. 2018), AlexNet's.

    Needs torchvision, and its weights of AlexNet where torch's hub keeps them.
    """
    weights = Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_WEIGHTS
    if min(images.shape[2:]) < LPIPS_LEAST_PX:
        size = " x ".join(map(str, images.shape[2:]))
        return Figure(None, f"images of {size} are smaller than {LPIPS_LEAST_PX} pixels a side")
    if not weights.is_file():
        return Figure(None, f"the weights of AlexNet aren't at {weights}; nothing is downloaded")
    try:
        import_module("torchvision")
    except (ImportError, RuntimeError) as error:  # the latter where it was built for another torch
        return Figure(None, f"torchvision can't be imported: {error}")
    from torchmetrics.functional.image.lpips import learned_perceptual_image_patch_similarity

    total = 0.0
    with torch.no_grad():
        for first, second in zip(_batches(images), _batches(references), strict=True):
            sizes = (-1, 3, -1, -1)
            found = learned_perceptual_image_patch_similarity(
                first.expand(sizes), second.expand(sizes), net_type="alex", reduction="sum"
            )
            total += float(found)
    return Figure(total / len(images))


def _batches(images: Images) -> Iterator[torch.Tensor]:
    for start in range(0, len(images), BATCH):
        yield _tensor(images[start : start + BATCH])


def _tensor(images: Images) -> torch.Tensor:
    return torch.from_numpy(images).clamp(-1, 1)
