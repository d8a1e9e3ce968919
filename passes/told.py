"""What a denoiser is told of time: the scheduler's timesteps, or numbers on a line over them.

Pipelines divide timesteps by 1000, or count them from the other end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Told", "told_of"]

CLOSE = 1e-4


@dataclass(frozen=True)
class Told:
    """How the timestep that a denoiser is told follows from the scheduler's.

    Attributes:
        scale: factor on the scheduler's timestep.
        offset: added to that.
    """

    scale: float = 1.0
    offset: float = 0.0

    def of(self, timestep: float) -> float:
        """Return what the denoiser is told at a timestep of the scheduler."""
        return self.scale * timestep + self.offset


def told_of(points: Sequence[tuple[float, float]]) -> Told | None:
    """Return the rule behind pairs of a scheduler's timestep and what the denoiser was told.

    A rule is believed that fits one pair more than it has numbers of its own: none of them if
    both are the same, one if they are proportional, two on any other line.

    Returns:
        None if no rule fits, or pairs are too few to tell.
    """
    rules = [(0, Told())]
    timesteps = [timestep for timestep, _ in points]
    if points and points[0][0]:
        rules.append((1, Told(_rounded(points[0][1] / points[0][0]))))
    if len(set(timesteps)) > 1:
        (first, one), (last, other) = points[0], points[-1]
        scale = _rounded((other - one) / (last - first))
        rules.append((2, Told(scale, _rounded(one - scale * first))))
    for numbers, rule in rules:
        if len(set(timesteps)) > numbers and all(_fits(rule, *point) for point in points):
            return rule
    return None


def _fits(rule: Told, timestep: float, told: float) -> bool:
    size = max(abs(rule.scale * timestep), abs(rule.offset), abs(told))
    return abs(rule.of(timestep) - told) <= CLOSE * max(size, abs(rule.scale))


def _rounded(number: float) -> float:
    """Return a number as a float32 tensor would hold it, to fewer digits: 0.001, not 0.00099999."""
    return float(f"{number:.5g}")
