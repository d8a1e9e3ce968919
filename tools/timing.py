"""Time callables in turn, so that what disturbs one disturbs all."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["Timing", "in_turn", "timing"]


@dataclass(frozen=True)
class Timing:
    """Wall time of one callable over several rounds.

    Attributes:
        median_ms: median over rounds, in milliseconds.
        low_ms: first quartile.
        high_ms: third quartile.
        rounds_ms: every round, in order.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    rounds_ms: tuple[float, ...]

    @property
    def spread(self) -> float:
        """How many times the first quartile the third one is; near 1 on an idle machine."""
        return self.high_ms / self.low_ms

    def ratio_to(self, other: "Timing") -> float:
        """Return how many times as long the other takes: the median of ratios round by round."""
        pairs = zip(other.rounds_ms, self.rounds_ms, strict=True)
        return statistics.median(theirs / mine for theirs, mine in pairs)


def in_turn(
    callables: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 1,
    after_round: Callable[[], object] | None = None,
) -> dict[str, Timing]:
    """Run callables in turn, round after round, and return each one's timing by name."""
    for _ in range(warm_up):
        for run in callables.values():
            run()
    taken: dict[str, list[float]] = {name: [] for name in callables}
    for _ in range(rounds):
        for name, run in callables.items():
            started = time.perf_counter()
            run()
            taken[name].append((time.perf_counter() - started) * 1e3)
        if after_round is not None:
            after_round()
    return {name: timing(values) for name, values in taken.items()}


def timing(values: list[float]) -> Timing:
    """Return median and quartiles of wall times in milliseconds."""
    low, median, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    )
    return Timing(median, low, high, tuple(values))
