"""What a limit on buckets costs."""

from dataclasses import dataclass, replace

import numpy as np

__all__ = ["Curve"]


@dataclass(frozen=True)
class Curve:
    """What a limit on buckets costs.

    Attributes:
        costs: predicted cost of the sites in a generation at 1, 2, … buckets; never rising.
        full: the same, uncompressed.
    """

    costs: tuple[float, ...]
    full: float

    @property
    def buckets(self) -> int:
        """How many buckets the plan has without a limit."""
        return len(self.costs)

    def kept(self, limit: int) -> float:
        """Return the share of the unlimited schedule's saving that a limit keeps."""
        saving = self.full - self.costs[-1]
        return (self.full - self.costs[min(limit, self.buckets) - 1]) / saving if saving else 1.0

    def slowdown(self, limit: int) -> float:
        """Return the sites' predicted cost under a limit, as a multiple of that without."""
        best = self.costs[-1]
        return self.costs[min(limit, self.buckets) - 1] / best if best else 1.0

    def at(self, limit: int, cost: float) -> "Curve":
        """Return the curve through what a limit was found to cost.

        Lower limits cost as much at least, higher ones at most; the last point, without a limit,
        only moves down.
        """
        index = min(limit, self.buckets) - 1
        if index == self.buckets - 1:
            cost = min(cost, self.costs[index])
        before = [max(known, cost) for known in self.costs[:index]]
        behind = [min(known, cost) for known in self.costs[index + 1 :]]
        return replace(self, costs=(*before, cost, *behind))

    @property
    def knee(self) -> int:
        """The limit beyond which a further bucket brings less than an average one.

        The point farthest above the chord of the curve of savings (Satopää et al., Finding a
        "Kneedle" in a Haystack, 2011); all buckets where none is above it.
        """
        if self.buckets < 3:
            return self.buckets
        first = self.kept(1)
        heights = [
            self.kept(limit) - first - (1 - first) * (limit - 1) / (self.buckets - 1)
            for limit in range(1, self.buckets + 1)
        ]
        best = int(np.argmax(heights))
        return best + 1 if heights[best] > 0 else self.buckets
