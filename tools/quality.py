"""Figures of how close images are to others; torchmetrics computes them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

__all__ = ["Closeness", "closeness"]

RANGE = 2.0
"""Pixels lie in [-1, 1]."""


@dataclass(frozen=True)
class Closeness:
    """How close images are to their references.

    Attributes:
        psnr_db: peak signal-to-noise ratio over all pixels, in dB; infinite where equal.
        ssim: structural similarity (Wang et al. 2004), mean over images, at most 1.
    """

    psnr_db: float
    ssim: float


def closeness(images: npt.NDArray[np.float32], references: npt.NDArray[np.float32]) -> Closeness:
    """Compare images with references.

    Args:
        images: `[samples, channels, height, width]` in [-1, 1].
        references: the same of what they should look like.
    """
    first = torch.from_numpy(images).clamp(-1, 1)
    second = torch.from_numpy(references).clamp(-1, 1)
    psnr = peak_signal_noise_ratio(first, second, data_range=RANGE)
    ssim = structural_similarity_index_measure(first, second, data_range=RANGE)
    assert isinstance(ssim, torch.Tensor)
    return Closeness(float(psnr), float(ssim))
