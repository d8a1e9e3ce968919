"""Merge steps until few enough graphs remain, at the least added cost."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import product

import numpy as np
import numpy.typing as npt

from ditc.runtime.errors import PlanError

from .clustering import Labels, hierarchy, refined, smallest
from .curve import Curve
from .liveness import kept_residuals
from .method import Method
from .plan import Plan

__all__ = ["Latencies", "Merging", "limit_buckets", "milder", "site_costs"]

LEAVES_OUT = {
    Method.FULL: 0b000,
    Method.ASC: 0b001,
    Method.WA_RS: 0b010,
    Method.WA_RS_ASC: 0b011,
    Method.AST: 0b111,
}
"""What a method leaves out: one half, keys beyond the window, everything. Milder is bitwise and."""
METHOD_OF = {bits: method for method, bits in LEAVES_OUT.items()}
EXACT_STEPS = 7
"""Up to so many distinct steps every way to group them is looked at."""
Latencies = Mapping[str, Mapping[str, float]]
"""Measured milliseconds of a site by method; `residual` is what keeping one adds."""


def milder(first: Method, second: Method) -> Method:
    """Return the most aggressive method that is no more aggressive than either.

    `wa-rs+asc` is both `wa-rs` and `asc`; those two have only `full` in common.
    """
    return METHOD_OF[LEAVES_OUT[first] & LEAVES_OUT[second]]


class Merging:
    """The ways to group a plan's steps, and what each costs.

    Steps that run one graph use at every site the milder of their methods, and write all slots
    that one of them has to. What that costs follows from the merged plan: a residual is kept
    where one of the group's steps is read later.

    Args:
        plan: methods per step and site, and what the sites cost.
        latencies: measured milliseconds in place of multiply-adds.

    Raises:
        PlanError: if latencies lack a site or a method.
    """

    def __init__(self, plan: Plan, latencies: Latencies | None = None) -> None:
        self._plan = plan
        self._bits = np.array(
            [
                [LEAVES_OUT[plan.method(step, site)] for site in plan.sites]
                for step in range(plan.steps)
            ],
            dtype=np.uint8,
        ).reshape(plan.steps, len(plan.sites))
        self._table = site_costs(plan, latencies)
        self._units = _units(plan)

    @property
    def units(self) -> int:
        """How many steps differ: as many buckets there are without a limit."""
        return len(self._units)

    def cost(self, labels: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
        """Return what groupings cost in a generation.

        Args:
            labels: `[groupings, units]`, the group of each distinct step.

        Returns:
            `[groupings]`, in multiply-adds or milliseconds of all sites.
        """
        by_step = labels[:, self._unit_of_step()]
        together = by_step[:, :, None] == by_step[:, None, :]
        merged = _meet(self._bits, together)
        keeps = _any(_kept(merged), together)
        site = np.arange(merged.shape[2])
        found: npt.NDArray[np.float64] = self._table[site, merged, keeps.astype(np.int64)].sum(
            (1, 2)
        )
        return found

    def full(self) -> float:
        """Return the cost of all steps uncompressed."""
        return float(self._table[:, 0, 0].sum() * self._plan.steps)

    def group(self, limit: int) -> Labels:
        """Return the group of each distinct step, of at most `limit` groups, at the least cost.

        The very least up to seven distinct steps, else what merging the cheapest pair again and
        again and then moving and swapping steps as long as it helps comes to.
        """
        if limit >= self.units:
            return np.arange(self.units)
        if self.units <= EXACT_STEPS:
            return smallest(self.cost, self.units, limit)
        return refined(self.cost, self._hierarchy[limit], limit)

    def curve(self) -> Curve:
        """Return what every limit costs; above seven distinct steps by merging pairs alone."""
        exact = self.units <= EXACT_STEPS
        tree = {} if exact else self._hierarchy
        costs = [
            float(self.cost((self.group(limit) if exact else tree[limit])[None])[0])
            for limit in range(1, self.units + 1)
        ]
        return Curve(tuple(np.minimum.accumulate(costs).tolist()), self.full())

    def steps_of(self, labels: Labels) -> tuple[tuple[int, ...], ...]:
        """Return the steps of each group, ascending."""
        groups = [
            tuple(
                sorted(
                    step for unit in np.flatnonzero(labels == label) for step in self._units[unit]
                )
            )
            for label in np.unique(labels)
        ]
        return tuple(sorted(groups))

    def merged(self, groups: Sequence[tuple[int, ...]]) -> Plan:
        """Return the plan in which the steps of a group use the same methods."""
        cells = list(self._plan.cells)
        for group in groups:
            bits = np.bitwise_and.reduce(self._bits[list(group)], axis=0)
            methods = [METHOD_OF[int(found)] for found in bits]
            for step in group:
                cells[step] = dict(zip(self._plan.sites, methods, strict=True))
        return replace(self._plan, cells=tuple(cells))

    @cached_property
    def _hierarchy(self) -> dict[int, Labels]:
        weights = np.array([len(steps) for steps in self._units])
        bits = np.array([self._bits[steps[0]] for steps in self._units])
        keeps = np.array(
            [
                [site in kept_residuals(self._plan, steps[0]) for site in self._plan.sites]
                for steps in self._units
            ]
        )
        return hierarchy(self._table, weights, bits, keeps.reshape(bits.shape))

    def _unit_of_step(self) -> npt.NDArray[np.int64]:
        found = np.zeros(self._plan.steps, dtype=np.int64)
        for unit, steps in enumerate(self._units):
            found[list(steps)] = unit
        return found


def limit_buckets(merging: Merging, limit: int) -> tuple[Plan, tuple[tuple[int, ...], ...], float]:
    """Merge a plan's steps into at most `limit` groups.

    Returns:
        The merged plan, its groups of steps, and what they cost.

    Raises:
        PlanError: if the limit is below 1.
    """
    if limit < 1:
        raise PlanError(f"max_buckets is {limit}, expected at least 1")
    labels = merging.group(limit)
    groups = merging.steps_of(labels)
    return merging.merged(groups), groups, float(merging.cost(labels[None])[0])


def _units(plan: Plan) -> tuple[tuple[int, ...], ...]:
    """Return the plan's steps, grouped by equal methods and residuals kept."""
    found: dict[object, list[int]] = {}
    for step in range(plan.steps):
        methods = tuple(plan.method(step, site) for site in plan.sites)
        found.setdefault((methods, kept_residuals(plan, step)), []).append(step)
    return tuple(tuple(steps) for steps in found.values())


def _meet(bits: npt.NDArray[np.uint8], together: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Return `[groupings, steps, sites]`: what all steps of each step's group leave out."""
    planes = [(bits >> plane) & 1 == 0 for plane in range(3)]
    merged = np.zeros((len(together), *bits.shape), np.uint8)
    for plane, done in enumerate(planes):  # what one step of a group does, none leaves out
        merged |= (~_any(np.broadcast_to(done, merged.shape), together)).astype(np.uint8) << plane
    return merged


def _any(flags: npt.NDArray[np.bool_], together: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return `[groupings, steps, sites]`: whether a flag is set at a step of the same group."""
    counts = together.astype(np.float32) @ flags.astype(np.float32)
    found: npt.NDArray[np.bool_] = counts > 0
    return found


def _kept(merged: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Return `[groupings, steps, sites]`: whether a later window reads the step's residual."""
    runs_full, windowed = merged <= 1, (merged == 2) | (merged == 3)
    kept = np.zeros(merged.shape, bool)
    read = np.zeros((merged.shape[0], merged.shape[2]), bool)
    for step in reversed(range(merged.shape[1])):
        kept[:, step] = runs_full[:, step] & read
        read = (read | windowed[:, step]) & ~runs_full[:, step]
    return kept


def site_costs(plan: Plan, latencies: Latencies | None = None) -> npt.NDArray[np.float64]:
    """Return `[sites, what is left out, residual kept]`: the cost of a site at a step."""
    found = np.zeros((len(plan.sites), 8, 2))
    for row, name in enumerate(plan.sites):
        cost, window = plan.cost.sites[name], plan.windows[name]
        used = {plan.method(step, name) for step in range(plan.steps)} | {Method.FULL}
        for (method, bits), keeps in product(LEAVES_OUT.items(), (False, True)):
            found[row, bits, int(keeps)] = (
                cost.of(method, window, keeps_residual=keeps)
                if latencies is None
                else _measured(latencies, name, method, keeps, method in used)
            )
    return found


def _measured(latencies: Latencies, site: str, method: Method, keeps: bool, used: bool) -> float:
    known = latencies.get(site, {})
    if not used and str(method) not in known:  # a method that the site can't have
        method = Method.FULL
    if method is not Method.AST and str(method) not in known:
        raise PlanError(f"latencies: nothing for {method} at site {site}: measure it too")
    return known.get(str(method), 0.0) + (known.get("residual", 0.0) if keeps else 0.0)
