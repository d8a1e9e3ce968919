"""Figures of quality against their formulas in fp64, and what is said where there is none."""

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from ditc.tools.glyphs import GlyphFeatures, load_classifier
from ditc.tools.quality import (
    LPIPS_WEIGHTS,
    closeness,
    frechet_distance,
    lpips,
    small_sample,
)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def gaussian(width: int = 11, sigma: float = 1.5) -> np.ndarray:
    distance = np.arange(width) - width // 2
    line = np.exp(-(distance**2) / (2 * sigma**2))
    return np.outer(line, line) / line.sum() ** 2


def ssim(first: np.ndarray, second: np.ndarray, data_range: float = 2.0) -> float:
    """Wang et al. 2004, equation 13, a window a pixel; borders are mirrored."""
    window = gaussian()
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    height, width = first.shape
    mirrored = [np.pad(image.astype(np.float64), 5, "reflect") for image in (first, second)]
    values = []
    for top in range(height):
        for left in range(width):
            x, y = (image[top : top + 11, left : left + 11] for image in mirrored)
            mean_x, mean_y = (window * x).sum(), (window * y).sum()
            variance_x = (window * (x - mean_x) ** 2).sum()
            variance_y = (window * (y - mean_y) ** 2).sum()
            covariance = (window * (x - mean_x) * (y - mean_y)).sum()
            values.append(
                (2 * mean_x * mean_y + c1)
                * (2 * covariance + c2)
                / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))
            )
    return float(np.mean(values))


def test_psnr_and_ssim_by_their_formulas() -> None:
    references = draw(2, 1, 24, 20)
    images = np.clip(references + draw(2, 1, 24, 20, seed=1) / 4, -1, 1).astype(np.float32)
    found = closeness(images, references)
    error = np.mean((images.astype(np.float64) - references) ** 2)
    assert found.psnr_db == pytest.approx(10 * math.log10(4 / error), rel=1e-5)
    expected = np.mean([ssim(images[n, 0], references[n, 0]) for n in range(2)])
    # fp32 variances of values near 1 are good to about 1e-6, and there are divisions by them.
    assert found.ssim == pytest.approx(expected, abs=1e-4)
    assert 0.5 < expected < 0.99


def test_images_smaller_than_the_window_have_no_ssim() -> None:
    images = draw(1, 1, 10, 32)
    assert math.isnan(closeness(images, images / 2).ssim)
    assert not math.isnan(closeness(draw(1, 1, 11, 11), draw(1, 1, 11, 11, seed=1)).ssim)


class Flat(torch.nn.Module):
    """Features that are the pixels themselves."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """Heusel et al. 2017 in fp64, with scipy's root of the product."""
    x, y = first.astype(np.float64), second.astype(np.float64)
    sigma_x, sigma_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(sigma_x @ sigma_y)
    gap = x.mean(0) - y.mean(0)
    return float(gap @ gap + np.trace(sigma_x + sigma_y - 2 * root.real))


@pytest.mark.parametrize(("count", "others"), [(40, 300), (200, 200)])
def test_frechet_distance_by_its_formula(count: int, others: int) -> None:
    images, references = draw(count, 1, 4, 4), draw(others, 1, 4, 4, seed=1) * 0.8 + 0.1
    found = frechet_distance(images, references.astype(np.float32), Flat())
    expected = frechet(images.reshape(count, 16), references.astype(np.float32).reshape(others, 16))
    assert found.absent is None
    assert found.value == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_few_images_in_many_features() -> None:
    """Covariances are singular: eigenvalues of zero come out as rounding, whose roots add up."""
    images, references = draw(6, 1, 4, 4), draw(9, 1, 4, 4, seed=1)
    found = frechet_distance(images, references, Flat())
    x, y = images.reshape(6, 16).astype(np.float64), references.reshape(9, 16).astype(np.float64)
    gap = x.mean(0) - y.mean(0)
    # tr (Σ Σ')^½ is the sum of the singular values of Xᵀ'Y, centred and scaled: no root of zeros.
    x, y = (x - x.mean(0)) / math.sqrt(5), (y - y.mean(0)) / math.sqrt(8)
    crossing = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    expected = gap @ gap + (x**2).sum() + (y**2).sum() - 2 * crossing
    assert found.value == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_equal_sets_is_zero() -> None:
    images = draw(50, 1, 4, 4)
    found = frechet_distance(images, images, Flat())
    assert found.value == pytest.approx(0, abs=1e-6)
    assert found.value >= 0


def test_frechet_distance_of_one_image_is_absent() -> None:
    found = frechet_distance(draw(1, 1, 4, 4), draw(9, 1, 4, 4), Flat())
    assert (found.value, found.absent) == (
        None,
        "a distribution needs two images at least on either side",
    )


def test_small_samples_are_said() -> None:
    assert small_sample(257, 256) is None
    assert "256 images can't span 256 features" in str(small_sample(256, 256))


def test_features_of_glyphs_are_what_the_classifier_decides_by() -> None:
    images = torch.from_numpy(draw(3, 1, 32, 32))
    classifier, features = load_classifier(), GlyphFeatures.load()
    with torch.no_grad():
        found = features(images)
        assert found.shape == (3, GlyphFeatures.num_features)
        torch.testing.assert_close(classifier.head(found), classifier(images))


def test_lpips_is_absent_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    found = lpips(draw(1, 3, 64, 64), draw(1, 3, 64, 64))
    path = tmp_path / "checkpoints" / LPIPS_WEIGHTS
    assert found.value is None
    assert found.absent == f"the weights of AlexNet aren't at {path}; nothing is downloaded"
    assert not list(tmp_path.iterdir())


def test_lpips_is_absent_without_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / LPIPS_WEIGHTS).touch()
    found = lpips(draw(1, 3, 64, 64), draw(1, 3, 64, 64))
    assert found.value is None
    assert str(found.absent).startswith("torchvision can't be imported: ")


def test_lpips_of_small_images_is_absent() -> None:
    found = lpips(draw(1, 1, 32, 32), draw(1, 1, 32, 32))
    assert (found.value, found.absent) == (
        None,
        "images of 32 x 32 are smaller than 64 pixels a side",
    )
