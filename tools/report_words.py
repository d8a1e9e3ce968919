"""Words and numbers as the report writes them."""

import math
from collections.abc import Sequence

__all__ = ["byte_size", "decibels", "label_parts", "milliseconds", "quantity", "site_pattern"]

UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def quantity(value: float) -> str:
    """Write a count with three digits: 1234567 as `1.23 M`."""
    for size, unit in UNITS:
        if value >= 0.9995 * size:  # what would be rounded to 1000 of the unit below
            return f"{_three(value / size)} {unit}"
    return f"{value:g}"


def byte_size(size: int) -> str:
    """Write bytes with three digits: 8759576 as `8.76 MB`."""
    return f"{quantity(size)}B" if size >= 1e3 else f"{size} B"


def milliseconds(value: float) -> str:
    """Write a time with three digits: `12.3 ms`."""
    return f"{_three(value)} ms"


def decibels(value: float) -> str:
    """Write a signal-to-noise ratio; it is infinite where images are equal."""
    return f"{value:.1f} dB" if math.isfinite(value) else "∞, equal"


def _three(value: float) -> str:
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f}"


def label_parts(names: Sequence[str]) -> list[list[tuple[str, bool]]]:
    """Split each name into parts, each with whether all names have it in common.

    Names of one length in dots are split where they differ: `blocks.`, `0`, `.attn`. Others are
    one part each.
    """
    split = [name.split(".") for name in names]
    if len(names) < 2 or len({len(parts) for parts in split}) > 1:
        return [[(name, False)] for name in names]
    common = [len(set(column)) == 1 for column in zip(*split, strict=True)]
    labels = []
    for parts in split:
        label: list[tuple[str, bool]] = []
        for number, part in enumerate(parts):
            text = part if number == 0 else f".{part}"
            # A dot belongs to the common side, so that what is left alone reads well.
            if label and not common[number] and label[-1][1]:
                label[-1] = (label[-1][0] + ".", True)
                text = part
            if label and label[-1][1] == common[number]:
                label[-1] = (label[-1][0] + text, common[number])
            else:
                label.append((text, common[number]))
        labels.append(label)
    return labels


def site_pattern(names: Sequence[str]) -> str | None:
    """Return what the names have in common, with `*` where they differ; None if nothing."""
    labels = label_parts(names)
    patterns = {"".join(text if common else "*" for text, common in label) for label in labels}
    pattern = patterns.pop()
    return None if patterns or pattern == "*" else pattern
