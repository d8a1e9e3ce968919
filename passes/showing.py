"""Short texts of what is long: steps as ranges."""

from collections.abc import Sequence

__all__ = ["ranges"]


def ranges(steps: Sequence[int]) -> str:
    """Return ascending numbers as ranges: 0, 2-4, 7."""
    parts: list[list[int]] = []
    for step in steps:
        if parts and parts[-1][-1] == step - 1:
            parts[-1].append(step)
        else:
            parts.append([step])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in parts)
