"""Colours of methods, as eyes of all kinds see them."""

from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest

from ditc.tools.report_colours import STYLES

from .report_pages import rgb

VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "tritanopia": np.array(
        [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ]
    ),
}


def seen(colour: str, vision: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the CIE L*a*b* of what an eye sees of an sRGB colour."""
    value = np.array(rgb(colour)) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = to_xyz @ np.clip(vision @ linear, 0, 1) / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("vision", VISION)
def test_methods_are_told_apart_by_every_eye(theme: str, vision: str) -> None:
    colours = [getattr(style, theme) for style in STYLES.values()]
    for first, second in combinations(colours, 2):
        gap = np.linalg.norm(seen(first, VISION[vision]) - seen(second, VISION[vision]))
        # About ten times the least difference that an eye notices.
        assert gap > 23
