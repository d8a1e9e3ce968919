"""Find the least threshold whose plan meets a budget: widen, then halve, on a logarithmic scale."""

import math
from collections.abc import Callable
from dataclasses import replace

from ditc.passes import Goal, Method, Plan
from ditc.runtime.errors import PlanError

from .counted import counted
from .decisions import LARGEST_ERROR
from .report_words import milliseconds
from .space import Space

__all__ = ["least_threshold", "limit_of"]

START = 0.1
SMALLEST = 1e-6
CLOSE = 1.1
"""How many times the largest threshold known to miss a budget the one that is taken may be."""
GROWTH = {"greedy": 4.0, "local": 4.0, "ilp": 10.0}
ROUNDING = 1e-12
"""Share of a budget by which the best may miss it: sums of times, and quotients, are rounded."""
LARGEST_RELATIVE = 2.0  # |O − O'| / max(|O|, |O'|)


def limit_of(space: Space, full: Plan, search: str, goal: Goal) -> float:
    """Return what a generation may take, as `Space.predicted` tells it.

    Args:
        space: what a search may choose from.
        full: the plan that compresses nothing.
        search: name of the search, which decides what is the best that is possible.
        goal: what is to be reached.

    Raises:
        PlanError: if the goal is no positive number, asks for nothing, or for more than is
            possible; the message names the best.
    """
    whole, best = space.predicted(full), space.predicted(_boldest(space, full, search))
    timed = goal.budget_ms is not None
    given = goal.budget_ms if timed else goal.speedup
    if given is None or not (math.isfinite(given) and given > 0):
        raise PlanError(f"budget is {given}, expected a positive number")
    limit = given if timed else whole / given
    if limit >= whole:
        now = milliseconds(whole) if timed else "1"
        raise PlanError(f"{goal} needs no plan: uncompressed it is {now} already; ask for more")
    if best > limit * (1 + ROUNDING):
        # Rounded to what is within reach: a user asks for it next.
        reach = f"{math.ceil(10 * best) / 10:.1f} ms"
        most = reach if timed else f"{math.floor(1000 * whole / best) / 1000:.3f}"
        raise PlanError(
            f"{goal} is out of reach: the best is {most}, with every error allowed"
            + (_why(space) if space.gate and space.gate.refused else "")
        )
    return max(limit, best)


def _why(space: Space) -> str:
    assert space.gate is not None
    count = sum(len(methods) for methods in space.gate.refused.values())
    return f" and {counted(count, 'method')} refused as not faster on {space.gate.target}"


def _boldest(space: Space, full: Plan, search: str) -> Plan:
    """Return the plan that a search ends in if every error is allowed."""
    bold = {}
    for site, candidates in space.candidates.items():
        if search == "ilp":
            best = max(candidates, key=lambda method: space.saved(site, method), default=None)
            worth = best is not None and space.saved(site, best) > 0
            bold[site] = best if best is not None and worth else Method.FULL
        else:
            bold[site] = candidates[0] if candidates else Method.FULL
    return replace(full, cells=(full.cells[0], *[bold] * (full.steps - 1)))


def least_threshold(
    search: str, sites: int, meets: Callable[[float], bool], start: float = START
) -> float:
    """Return the least threshold, to within a tenth, of those tried that meets a budget.

    Args:
        search: name of the search, whose losses have a scale of their own.
        sites: M.
        meets: searches with a threshold and tells whether the plan meets the budget; with every
            error allowed it does.
        start: the first threshold to try.
    """
    largest = 1.01 * sites * (LARGEST_RELATIVE if search == "greedy" else LARGEST_ERROR)
    growth = GROWTH[search]
    high = start
    if meets(high):
        while meets(low := _rounded(high / growth)):
            high = low
            if low <= SMALLEST:
                return high
    else:
        low = high
        while not meets(high := min(_rounded(low * growth), largest)):
            if high == largest:
                raise PlanError(f"no threshold up to {largest:g} meets the budget")
            low = high
    while high / low > CLOSE:
        middle = _rounded(math.sqrt(low * high))
        low, high = (low, middle) if meets(middle) else (middle, high)
    return high


def _rounded(threshold: float) -> float:
    """Return a threshold of three digits: people read it."""
    return float(f"{threshold:.3g}")
