"""Merge steps until few enough graphs remain, at the least added cost."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations

from ditc.runtime.errors import PlanError

from .costs import SiteCost, site_cost
from .plan import Method, Plan
from .program import Program

__all__ = ["limit_buckets", "milder"]


def milder(first: Method, second: Method) -> Method:
    """Return the most aggressive method that is no more aggressive than either.

    `wa-rs+asc` is both `wa-rs` and `asc`; those two have only `full` in common.
    """
    if first is second:
        return first
    if Method.AST in (first, second):
        return second if first is Method.AST else first
    windowed = first.windowed and second.windowed
    shares = first.shares_cfg and second.shares_cfg
    if windowed:
        return Method.WA_RS_ASC if shares else Method.WA_RS
    return Method.ASC if shares else Method.FULL


def limit_buckets(
    program: Program, plan: Plan, limit: int
) -> tuple[Plan, tuple[tuple[int, ...], ...]]:
    """Merge the plan's steps into at most `limit` groups of equal methods.

    The pair of groups whose merging adds the fewest multiply-adds is merged first.

    Returns:
        The merged plan, and its groups of steps.

    Raises:
        PlanError: if the limit is below 1.
    """
    if limit < 1:
        raise PlanError(f"max_buckets is {limit}, expected at least 1")
    costs = {
        site.name: site_cost(program, site) for site in program.sites if site.name in plan.windows
    }
    groups: dict[tuple[int, ...], Mapping[str, Method]] = {}
    for steps in _equal_steps(plan):
        groups[steps] = plan.cells[steps[0]]
    while len(groups) > limit:
        first, second = min(
            combinations(groups, 2),
            key=lambda pair: _added(groups, pair[0], pair[1], costs, plan),
        )
        joined = _join(groups.pop(first), groups.pop(second))
        groups[tuple(sorted(first + second))] = joined
    cells = list(plan.cells)
    for steps, methods in groups.items():
        for step in steps:
            cells[step] = methods
    return replace(plan, cells=tuple(cells)), tuple(sorted(groups))


def _equal_steps(plan: Plan) -> list[tuple[int, ...]]:
    rows: dict[object, list[int]] = {}
    for step, cells in enumerate(plan.cells):
        rows.setdefault(tuple(sorted(cells.items())), []).append(step)
    return [tuple(steps) for steps in rows.values()]


def _join(first: Mapping[str, Method], second: Mapping[str, Method]) -> dict[str, Method]:
    return {site: milder(method, second[site]) for site, method in first.items()}


def _added(
    groups: Mapping[tuple[int, ...], Mapping[str, Method]],
    first: tuple[int, ...],
    second: tuple[int, ...],
    costs: Mapping[str, SiteCost],
    plan: Plan,
) -> int:
    joined = _cost(_join(groups[first], groups[second]), costs, plan)
    return sum(
        len(steps) * (joined - _cost(groups[steps], costs, plan)) for steps in (first, second)
    )


def _cost(methods: Mapping[str, Method], costs: Mapping[str, SiteCost], plan: Plan) -> int:
    return sum(cost.of(methods[name], plan.windows[name]) for name, cost in costs.items())
