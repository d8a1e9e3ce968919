"""Points of a curve of cost against loss."""

from dataclasses import dataclass

__all__ = ["Point"]


@dataclass(frozen=True)
class Point:
    """A plan in the plane of what it costs and what it errs.

    Attributes:
        cost: milliseconds, or share of multiply-adds left.
        measured: whether the cost is milliseconds.
        loss: what it errs.
        threshold: δ it was searched with, if known.
        label: what the chart calls it.
    """

    cost: float
    measured: bool
    loss: float
    threshold: float | None
    label: str
