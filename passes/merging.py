"""Merge steps until few enough graphs remain, at the least added cost."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations

from ditc.runtime.errors import PlanError

from .counting import site_cost
from .liveness import kept_residuals
from .method import Method
from .plan import Plan
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


@dataclass(frozen=True)
class _Group:
    """Steps that are to run one graph: their methods, and the residuals they keep."""

    steps: tuple[int, ...]
    methods: Mapping[str, Method]
    residuals: frozenset[str]
    cost: int


class _Costs:
    """Multiply-adds of every site, each (method, keeps its residual) counted once."""

    def __init__(self, program: Program, plan: Plan) -> None:
        self._of = {
            (site.name, method, keeps): site_cost(program, site).of(
                method, plan.windows[site.name], keeps_residual=keeps
            )
            for site in program.sites
            if site.name in plan.windows
            for method in Method
            for keeps in (False, True)
        }

    def groups(self, plan: Plan, groups: tuple[tuple[int, ...], ...]) -> tuple[_Group, ...]:
        """Return groups of steps as they stand in a plan."""
        return tuple(
            self.group(
                steps,
                plan.cells[steps[0]],
                frozenset[str]().union(*(kept_residuals(plan, step) for step in steps)),
            )
            for steps in groups
        )

    def cheapest(self, groups: tuple[_Group, ...]) -> tuple[_Group, _Group]:
        """Return the pair of groups whose joining adds the least."""
        return min(combinations(groups, 2), key=lambda pair: self.added(pair[0], pair[1]))

    def group(
        self, steps: tuple[int, ...], methods: Mapping[str, Method], residuals: frozenset[str]
    ) -> _Group:
        """Return a group with what one of its steps costs."""
        cost = sum(
            self._of.get((name, method, name in residuals), 0) for name, method in methods.items()
        )
        return _Group(steps, methods, residuals, cost)

    def join(self, first: _Group, second: _Group) -> _Group:
        """Return the group of both groups' steps: the milder methods, all residuals."""
        methods = {
            site: milder(method, second.methods[site]) for site, method in first.methods.items()
        }
        kept = first.residuals | second.residuals
        residuals = frozenset(site for site in kept if methods[site].runs_full_attention)
        return self.group(tuple(sorted(first.steps + second.steps)), methods, residuals)

    def added(self, first: _Group, second: _Group) -> int:
        """Return the multiply-adds that joining two groups adds to a generation."""
        joined = self.join(first, second).cost
        return sum(len(group.steps) * (joined - group.cost) for group in (first, second))


def limit_buckets(
    program: Program, plan: Plan, limit: int, equal: tuple[tuple[int, ...], ...]
) -> tuple[Plan, tuple[tuple[int, ...], ...]]:
    """Merge the plan's steps into at most `limit` groups of equal methods.

    The pair of groups whose merging adds the fewest multiply-adds is merged first.

    Args:
        program: the captured model.
        plan: methods per step and site.
        limit: how many groups there may be.
        equal: the plan's steps, grouped by equal methods and writes.

    Returns:
        The merged plan, and its groups of steps.

    Raises:
        PlanError: if the limit is below 1.
    """
    if limit < 1:
        raise PlanError(f"max_buckets is {limit}, expected at least 1")
    costs = _Costs(program, plan)
    groups = equal
    while len(groups) > limit:
        first, second = costs.cheapest(costs.groups(plan, groups))
        joined = costs.join(first, second)
        plan = _with_methods(plan, joined)
        others = (steps for steps in groups if steps not in (first.steps, second.steps))
        groups = (*others, joined.steps)
    return plan, tuple(sorted(groups))


def _with_methods(plan: Plan, group: _Group) -> Plan:
    cells = list(plan.cells)
    for step in group.steps:
        cells[step] = group.methods
    return replace(plan, cells=tuple(cells))
