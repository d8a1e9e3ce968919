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


def limit_of(space: Space, full: Plan, goal: Goal) -> float:
    """Return what a generation may take, as `Space.predicted` tells it.

    Args:
        space: what a search may choose from.
        full: the plan that compresses nothing.
        goal: what is to be reached.

    Raises:
        PlanError: if the goal is no positive number, asks for nothing, or for more than is
            possible; the message names the best.
    """
    whole, best = space.predicted(full), _least(space, full)
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


def _least(space: Space, full: Plan) -> float:
    """Return what no plan goes below: the fastest methods, residuals for them kept for nothing."""

    def fastest(site: str) -> Method:
        best = max(space.candidates[site], key=lambda m: space.saved(site, m), default=Method.FULL)
        return best if space.saved(site, best) > 0 else Method.FULL

    row = {site: fastest(site) for site in space.candidates}
    plan = replace(full, cells=(full.cells[0], *[row] * (full.steps - 1)))
    if space.latencies is None:
        return space.predicted(plan)
    sites = {name: replace(found, keeping_ms={}) for name, found in space.latencies.sites.items()}
    return replace(space.latencies, sites=sites).predicted_ms(plan)


def least_threshold(
    search: str, sites: int, meets: Callable[[float], bool], start: float = START
) -> float:
    """Return the least threshold, to within a tenth, of those tried that meets a budget.

    Larger thresholds make faster plans, but where windows that they allow have residuals that
    take longer to keep than the windows save: if none from `start` on meets it, lower ones are
    tried.

    Args:
        search: name of the search, whose losses have a scale of their own.
        sites: M.
        meets: searches with a threshold and tells whether the plan meets the budget.
        start: the first threshold to try.

    Raises:
        PlanError: if none of them does.
    """
    largest = 1.01 * sites * (LARGEST_RELATIVE if search == "greedy" else LARGEST_ERROR)
    rungs = _rungs(start, GROWTH[search], largest)
    first = rungs.index(start)
    order = [*range(first, len(rungs)), *range(first)[::-1]]
    at: int | None = next((number for number in order if meets(rungs[number])), None)
    if at is None:
        raise PlanError(f"no threshold up to {largest:g} meets the budget")
    if at <= first:
        while at > 0 and meets(rungs[at - 1]):
            at -= 1
        if at == 0:
            return rungs[0]
    low, high = rungs[at - 1], rungs[at]
    while high / low > CLOSE:
        middle = _rounded(math.sqrt(low * high))
        if meets(middle):
            high = middle
        else:
            low = middle
    return high


def _rungs(start: float, growth: float, largest: float) -> list[float]:
    """Return thresholds from the smallest to the largest, each `growth` times the one below."""
    rungs = [start]
    while rungs[0] > SMALLEST:
        rungs.insert(0, _rounded(rungs[0] / growth))
    while rungs[-1] < largest:
        rungs.append(min(_rounded(rungs[-1] * growth), largest))
    return rungs


def _rounded(threshold: float) -> float:
    """Return a threshold of three digits: people read it."""
    return float(f"{threshold:.3g}")
