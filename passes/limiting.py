"""Make a plan a schedule under limits: on graphs, on the bytes of slots, on memory."""

import math
from dataclasses import replace
from typing import Literal

from ditc.runtime.errors import PlanError

from .laying_out import laid_out_for
from .memory import weight_bytes
from .merging import Latencies, Merging, limit_buckets
from .nearing import Asked, Earlier, Nearing, asked_of, merged_plan
from .plan import Plan
from .program import Program
from .scheduling import Schedule, made
from .storage import without

__all__ = ["schedule", "within"]

Limit = int | Literal["knee"]


def schedule(
    program: Program,
    plan: Plan,
    max_buckets: Limit | None = None,
    *,
    latencies: Latencies | None = None,
    near: Earlier | None = None,
    near_most: float = math.inf,
    max_slot_bytes: int | None = None,
    max_memory_bytes: int | None = None,
    ignore_model: bool = False,
) -> Schedule:
    """Return the schedule of a plan.

    A step writes a site's output if the next step is `ast` there, so that this very write is
    read; a residual if a `wa-rs` reads it before the next step that runs full attention. Steps of
    equal methods and residuals share a bucket, which writes every output that one of them has to:
    the output is there anyhow, and where nobody reads it, nobody minds.

    Args:
        program: the captured model; if the plan has windows of tiles, its tokens are laid out so.
        plan: methods per step and site; checked against the program.
        max_buckets: merge steps until at most so many graphs remain; at a merged site the less
            aggressive method wins, so quality can only rise. `"knee"` for the limit at the knee
            of the curve of predicted costs.
        latencies: measured milliseconds of sites, to merge by in place of multiply-adds.
        near: what another schedule of the model ran, to merge as it did: each step in which the
            plans differ then makes two groups of steps anew at most, the others keep their graphs.
            Left aside if that schedule was asked for another limit, or other windows.
        near_most: how many times the cost of merging anew that may come to; merged anew above.
        max_slot_bytes: give up sharing, what saves least a byte first, until slots fit into so
            many bytes; sites compute in its place.
        max_memory_bytes: the same for all that is predicted to lie in memory at once: weights,
            the values of a step, and slots.
        ignore_model: use the plan although it was made for another model.

    Raises:
        PlanError: if the plan is not for this program, or a limit can't be held.
    """
    if ignore_model or plan.identity.matches(program.identity):
        program = laid_out_for(program, plan.windows.values())
    plan.check(program, ignore_model=ignore_model)
    plan = replace(plan, cfg=program.cfg)
    if max_buckets is None:
        sched = made(program, plan, tuple((step,) for step in range(plan.steps)))
    else:
        sched = _limited(program, plan, max_buckets, latencies)
        asked = asked_of(plan, max_buckets, latencies)
        if near is not None:
            sched = _near(sched, plan, latencies, (asked, near), (max_buckets, near_most))
        sched = replace(sched, asked=asked)
    return within(sched, max_slot_bytes, max_memory_bytes)


def within(
    sched: Schedule,
    max_slot_bytes: int | None = None,
    max_memory_bytes: int | None = None,
    *,
    compiled: Program | None = None,
    times: float = 1,
) -> Schedule:
    """Return a schedule that gives up sharing, least saving a byte first, until limits are held.

    Args:
        sched: a schedule.
        max_slot_bytes: that slots may take.
        max_memory_bytes: that weights, the values of a step, what a prologue keeps and slots may
            take together.
        compiled: what its program is compiled as, whose bytes count; the program itself if None.
        times: how many times as many samples as were captured the limits are to hold for.

    Raises:
        PlanError: if a limit is negative, or there is no room for what is needed without slots.
    """
    if max_slot_bytes is not None and max_slot_bytes < 0:
        raise PlanError(f"max_slot_bytes is {max_slot_bytes}, expected at least 0")
    most = max_slot_bytes
    if max_memory_bytes is not None:
        room = _room(sched if compiled is None else sched.on(compiled), max_memory_bytes, times)
        most = room if most is None else min(room, most)
    groups, dropped, found = sched.groups, list(sched.dropped), sched
    counted = sched if compiled is None else sched.on(compiled)
    while most is not None and times * counted.peak_slot_bytes > most:
        plan = found.plan
        least = min(counted.slots, key=lambda slot: without(plan, slot)[1] / slot.nbytes)
        dropped.append(least)
        found = made(found.program, without(plan, least)[0], groups)
        counted = found if compiled is None else found.on(compiled)
    if found is sched:
        return sched
    return replace(found, dropped=tuple(dropped), curve=sched.curve)


def _room(sched: Schedule, most: int, times: float) -> int:
    """Return the bytes left for slots.

    Raises:
        PlanError: if there is no room for what is needed without any.
    """
    weights = weight_bytes(sched.program)
    values = int(times * (sched.fixed_bytes - weights))
    if most < weights + values:
        raise PlanError(
            f"max_memory_bytes is {most}, but weights take {weights} bytes and the values of a "
            f"step {values}: expected at least {weights + values}, at which no slot is left"
        )
    return most - weights - values


def _limited(
    program: Program, plan: Plan, max_buckets: Limit, latencies: Latencies | None
) -> Schedule:
    """Return the schedule under a limit on buckets.

    Two calls of a step may run two graphs, so that fewer groups than buckets may be allowed.
    """
    merging = Merging(plan, latencies)
    curve = merging.curve()
    limit = curve.knee if max_buckets == "knee" else max_buckets
    allowed = limit
    while True:
        merged, groups, cost = limit_buckets(merging, allowed)
        sched = made(program, merged, groups)
        if max_buckets == "knee" or len(sched.buckets) <= limit:
            return replace(sched, curve=curve.at(allowed, cost))
        allowed = min(allowed, merging.units) - 1


def _near(
    anew: Schedule,
    plan: Plan,
    latencies: Latencies | None,
    asked: tuple[Asked, Earlier],
    limits: tuple[Limit, float],
) -> Schedule:
    """Return the schedule near an earlier one, or the one merged anew where that can't be had."""
    nearing, (wanted, near), (limit, most) = Nearing(plan, latencies), asked, limits
    steps = len(near.groups)
    if limit == "knee" and anew.curve is not None:
        steps = max(steps, anew.curve.knee)
    elif limit != "knee" and plan.cfg in (None, "cond-first", "uncond-first"):
        steps = limit
    groups = nearing.groups(wanted, near, steps)
    if groups is None or anew.curve is None:
        return anew
    cost, best = nearing.cost(groups), min(anew.curve.costs[: len(anew.groups)])
    if wanted != near.asked and cost > most * best:
        return anew
    kept = [group.kept for group in groups]
    merged = merged_plan(plan, groups)
    found = made(anew.program, merged, tuple(group.steps for group in groups), kept)
    if limit != "knee" and len(found.buckets) > limit:
        return anew
    return replace(found, curve=anew.curve.at(len(found.groups), cost))
