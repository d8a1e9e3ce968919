"""Choose round numbers to mark an axis with."""

import math
from collections.abc import Sequence

__all__ = ["round_ticks"]

CLOSE = 1e-9
"""Values that lie closer, as a share of the largest, are taken for one: sums differ by rounding."""


def round_ticks(values: Sequence[float]) -> list[float]:
    """Return round numbers that span the values, about five of them."""
    low, high = min(values), max(values)
    if high - low <= CLOSE * max(abs(low), abs(high)):
        low, high = low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10
    rough = (high - low) / 4
    size = 10 ** math.floor(math.log10(rough))
    step = size * next(n for n in (1, 2, 2.5, 5, 10) if n * size >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{n * step:.12g}") for n in range(first, max(last, first + 1) + 1)]
