"""Stay near a schedule that was compiled: where few steps of a plan change, few graphs do.

Groups of steps keep their graphs to the byte: their methods, and what they write, even where it is
no longer read. A step that changed joins one of them, or its own again, or gets one of its own;
that one is made anew. Where it would have to read what others don't keep, the site runs in full,
which only raises quality; or one of the others is made anew to keep it. So a step changes two
groups at most. There always is such a way: step 0 is full, and its group can take any step.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

import numpy as np

from .calls import Call, work_of
from .equal_runs import Keep
from .merging import LEAVES_OUT, Latencies, milder, site_costs
from .method import Method
from .plan import Plan

__all__ = ["Asked", "Earlier", "Group", "Nearing", "asked_of", "merged_plan"]

DIGITS = 16
NOTHING = Keep(frozenset(), frozenset())


@dataclass(frozen=True)
class Asked:
    """What a schedule was made for, as far as another can be told from it.

    Attributes:
        key: digest of all but the methods: model, sites, windows, layout, limit and latencies.
        steps: digest of each step's methods, before any were merged.
    """

    key: str
    steps: tuple[str, ...]


def asked_of(plan: Plan, limit: object, latencies: Latencies | None) -> Asked:
    """Return what a schedule is asked for."""
    windows = {site: repr(plan.windows[site]) for site in plan.sites}
    measured = {site: dict(row) for site, row in (latencies or {}).items()}
    model = [plan.identity.model, plan.identity.config_sha256]
    return Asked(
        _digest([model, windows, plan.cfg, plan.steps, str(limit), measured]),
        tuple(_digest(sorted(plan.cells[step].items())) for step in range(plan.steps)),
    )


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:DIGITS]


@dataclass(frozen=True)
class Group:
    """Steps that run one graph, or one for each of their calls.

    Attributes:
        steps: ascending.
        methods: of each site, as the plan has them.
        kept: what the graph of each call writes.
    """

    steps: tuple[int, ...]
    methods: Mapping[str, Method]
    kept: Mapping[Call, Keep] = field(default_factory=dict)


@dataclass(frozen=True)
class Earlier:
    """A schedule that was compiled: what for, and the groups it runs."""

    asked: Asked
    groups: tuple[Group, ...]


def merged_plan(plan: Plan, groups: Sequence[Group]) -> Plan:
    """Return the plan in which each step has the methods of its group."""
    cells = list(plan.cells)
    for group in groups:
        for step in group.steps:
            cells[step] = group.methods
    return replace(plan, cells=tuple(cells))


class Nearing:
    """The groups of a plan that are near those of an earlier schedule.

    Args:
        plan: methods per step and site.
        latencies: measured milliseconds in place of multiply-adds.
    """

    def __init__(self, plan: Plan, latencies: Latencies | None = None) -> None:
        self._plan = plan
        self._table = site_costs(plan, latencies)

    def groups(self, asked: Asked, near: Earlier, limit: int) -> tuple[Group, ...] | None:
        """Return groups in which each step that changed changed two at most.

        Args:
            asked: what the schedule of the plan is asked for.
            near: the earlier schedule.
            limit: groups at most.

        Returns:
            The groups; None if the earlier schedule was asked for something else than another
            plan, or has more groups.
        """
        if asked.key != near.asked.key or len(near.groups) > limit:
            return None
        found = near.groups
        for step in range(self._plan.steps):
            if asked.steps[step] != near.asked.steps[step]:
                found = min(self._ways(found, step, limit), key=self.cost)
        return found

    def cost(self, groups: Sequence[Group]) -> float:
        """Return what groups cost in a generation: multiply-adds or milliseconds of all sites."""
        total, sites = 0.0, np.arange(len(self._plan.sites))
        for group in groups:
            held = frozenset[str]().union(*(keep.residuals for keep in group.kept.values()))
            bits = [LEAVES_OUT[group.methods[site]] for site in self._plan.sites]
            kept = [int(site in held) for site in self._plan.sites]
            total += len(group.steps) * float(self._table[sites, bits, kept].sum())
        return total

    def _ways(self, groups: Sequence[Group], step: int, limit: int) -> Iterator[tuple[Group, ...]]:
        """Yield the ways in which a step that changed can join others, or be alone."""
        left = [
            replace(group, steps=tuple(other for other in group.steps if other != step))
            for group in groups
        ]
        left = [group for group in left if group.steps]
        for number, group in enumerate(left):
            yield from self._joined(group, step, [*left[:number], *left[number + 1 :]])
        if len(left) < limit:
            yield from self._joined(None, step, left)

    def _joined(
        self, group: Group | None, step: int, others: Sequence[Group]
    ) -> Iterator[tuple[Group, ...]]:
        """Yield a group with one more step and the others, of which one may keep more."""
        steps = tuple(sorted((*(group.steps if group else ()), step)))
        methods = {
            site: reduce(milder, (self._plan.method(other, site) for other in steps))
            for site in self._plan.sites
        }
        joined = Group(steps, methods)
        lacking = self._lacking([joined, *others])
        single = all(len(other.kept) == 1 for other in others)
        for more in (None, *(sorted(lacking) if single else ())):
            made, *rest = self._settled(joined, others, more)
            if group is not None and made.methods == group.methods:
                made = _as_it_was(made, group)
            yield tuple(sorted((made, *rest), key=lambda each: each.steps))

    def _settled(self, joined: Group, others: Sequence[Group], more: int | None) -> list[Group]:
        """Return groups that keep all that is read: one runs sites in full that others don't keep.

        Args:
            joined: the group that is made anew.
            others: those that stay.
            more: number of the one, from 1, that may keep more than it does.
        """
        lacking = self._lacking([joined, *others])
        while full := frozenset[str]().union(*(s for n, s in lacking.items() if n != more)):
            methods = {**joined.methods, **dict.fromkeys(full, Method.FULL)}
            joined = replace(joined, methods=methods)
            lacking = self._lacking([joined, *others])
        needs = self._needs([joined, *others])
        found = [replace(joined, kept=needs[0]), *others]
        if more is not None:
            kept = {call: found[more].kept[call] | keep for call, keep in needs[more].items()}
            found[more] = replace(found[more], kept=kept)
        return found

    def _lacking(self, groups: Sequence[Group]) -> dict[int, frozenset[str]]:
        """Return the sites of which groups but the first don't keep what is read, by number."""
        found = {}
        for number, (group, needs) in enumerate(zip(groups, self._needs(groups), strict=True)):
            sites = [keep.beyond(group.kept.get(call, NOTHING)) for call, keep in needs.items()]
            if number and any(sites):
                found[number] = frozenset[str]().union(*sites)
        return found

    def _needs(self, groups: Sequence[Group]) -> list[dict[Call, Keep]]:
        """Return what each group's graphs have to write."""
        owner = {step: number for number, group in enumerate(groups) for step in group.steps}
        found: list[dict[Call, Keep]] = [{} for _ in groups]
        for run in work_of(merged_plan(self._plan, groups)):
            needs = found[owner[run.step]]
            own = Keep(run.keep_outputs, run.keep_residuals)
            needs[run.call] = needs.get(run.call, NOTHING) | own
        return found


def _as_it_was(made: Group, before: Group) -> Group:
    """Return a group with what it kept before, if that is enough."""
    enough = all(not keep.beyond(before.kept[call]) for call, keep in made.kept.items())
    return replace(made, kept=before.kept) if enough else made
