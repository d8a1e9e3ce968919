"""A plan that differs in a step changes two graphs at most, whatever the step and the limit."""

import random
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditc.passes import (
    Method,
    Plan,
    Program,
    Schedule,
    TorchSession,
    Window,
    capture,
    schedule,
    schedule_cost,
)
from ditc.passes.calls import calls_of, work_of
from ditc.passes.nearing import Nearing

from . import models
from .samples import METHODS
from .test_merging import ORDER

STEPS = 12
Rows = set[tuple[object, ...]]


@lru_cache
def program_of(cfg: str | None) -> Program:
    kwargs = models.pixart_kwargs()
    if cfg == "separate":
        half = len(kwargs["hidden_states"]) // 2
        split = [
            {name: v[rows] if isinstance(v, torch.Tensor) else v for name, v in kwargs.items()}
            for rows in (slice(half), slice(half, None))
        ]
        return capture(models.pixart(3), split[0], cfg=cfg, unconditional=split[1])
    return capture(models.pixart(3), kwargs, cfg=cfg)


def drawn(program: Program, seed: int, stay: float = 0.0) -> Plan:
    draw = random.Random(seed)
    plan = Plan.uniform(program, STEPS, "full", window=Window(3))
    cells = [dict(plan.cells[0])]
    for step in range(1, STEPS):
        row = {site: Method(draw.choice(METHODS)) for site in plan.sites}
        keeps = {site: step > 1 and draw.random() < stay for site in plan.sites}
        cells.append({site: cells[-1][site] if keeps[site] else row[site] for site in plan.sites})
    return replace(plan, cells=tuple(cells))


def with_step(plan: Plan, step: int, row: Mapping[str, Method]) -> Plan:
    return replace(plan, cells=(*plan.cells[:step], row, *plan.cells[step + 1 :]))


def graphs(sched: Schedule) -> Rows:
    """Return all that tells a schedule's graphs apart."""
    return {
        (tuple(sorted(b.methods.items())), b.keep_outputs, b.keep_residuals) for b in sched.buckets
    }


def check(sched: Schedule, plan: Plan) -> None:
    """Check that methods are no more aggressive than asked, and that all is kept that is read."""
    for step in range(plan.steps):
        for site in plan.sites:
            assert ORDER[sched.plan.method(step, site)] <= ORDER[plan.method(step, site)]
    assert sorted(step for steps in sched.groups for step in steps) == list(range(plan.steps))
    for run in work_of(sched.plan):
        bucket = sched.bucket_of(run.step, run.call)
        assert dict(bucket.methods) == dict(run.methods)
        assert run.keep_outputs <= bucket.keep_outputs
        assert run.keep_residuals <= bucket.keep_residuals


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from(["cond-first", "uncond-first"]),
    st.integers(0, 2**16),
    st.sampled_from([0.0, 0.7]),
    st.sampled_from([1, 2, 4, 7, "knee"]),
    st.integers(1, STEPS - 1),
    st.lists(st.sampled_from(METHODS), min_size=3, max_size=3),
)
def test_one_step_changes_two_graphs_at_most(
    cfg: str, seed: int, stay: float, limit: int | str, step: int, methods: list[str]
) -> None:
    program = program_of(cfg)
    plan = drawn(program, seed, stay)
    first = schedule(program, plan, limit)
    row = {site: Method(name) for site, name in zip(plan.sites, methods, strict=True)}
    other = with_step(plan, step, row)
    found = schedule(program, other, limit, near=first.earlier)
    check(found, other)
    assert len(graphs(found) - graphs(first)) <= 2
    assert limit == "knee" or len(found.buckets) <= limit
    anew = schedule(program, other, limit)
    assert found.curve is not None
    assert anew.curve is not None
    kept = found.curve.costs[len(found.groups) - 1] if len(found.groups) < anew.curve.buckets else 0
    assert kept in (0, schedule_cost(found).attention)  # the curve tells what it costs
    step_full = anew.curve.full / STEPS
    assert schedule_cost(found).attention <= schedule_cost(first).attention + step_full
    # What stays near it changes nothing, so that a compile that was disturbed ends as it would.
    again = schedule(program, other, limit, near=found.earlier)
    assert graphs(again) == graphs(found)
    assert again.curve == found.curve
    assert again.earlier == found.earlier


@pytest.mark.parametrize("cfg", ["separate", "cond-first"])
def test_edits_in_a_row(cfg: str) -> None:
    """Each of ten edits of a step changes two groups at most; the last plan runs as it should."""
    program = program_of(cfg)
    plan = drawn(program, 5, 0.7)
    before = schedule(program, plan, "knee")
    draw = random.Random(3)
    for _ in range(10):
        row = {site: Method(draw.choice(METHODS)) for site in plan.sites}
        plan = with_step(plan, draw.randrange(1, STEPS), row)
        sched = schedule(program, plan, "knee", near=before.earlier)
        check(sched, plan)
        assert len(graphs(sched) - graphs(before)) <= 2 * len(calls_of(program.cfg))
        before = sched
    if cfg == "separate":
        return
    near, alone = TorchSession(before), TorchSession(schedule(program, before.plan))
    for step in range(STEPS):
        kwargs = models.pixart_kwargs(step)
        found, expected = near(step, **kwargs), alone(step, **kwargs)
        assert torch.equal(found.sample, expected.sample)


def test_no_other_row_is_touched_by_many_changes() -> None:
    """Three steps that differ change six graphs at most."""
    program = program_of("cond-first")
    plan = drawn(program, 1, 0.7)
    first, other = schedule(program, plan, 6), plan
    for step in (2, 5, 9):
        other = with_step(other, step, drawn(program, 99 + step).cells[step])
    found = schedule(program, other, 6, near=first.earlier)
    check(found, other)
    assert len(graphs(found) - graphs(first)) <= 6


def test_merged_anew_where_staying_is_dear() -> None:
    program = program_of("cond-first")
    plan = drawn(program, 1, 0.7)
    other = drawn(program, 2, 0.7)
    first, anew = schedule(program, plan, 5), schedule(program, other, 5)
    found = schedule(program, other, 5, near=first.earlier, near_most=1.0)
    assert graphs(found) == graphs(anew)
    assert found.earlier == anew.earlier


def test_another_limit_or_window_is_left_aside() -> None:
    program = program_of("cond-first")
    plan = drawn(program, 1, 0.7)
    near = schedule(program, plan, 5).earlier
    wider = replace(plan, windows={site: Window(5) for site in plan.sites})
    for other, limit in ((plan, 4), (plan, "knee"), (wider, 5)):
        found = schedule(program, other, limit, near=near)
        assert graphs(found) == graphs(schedule(program, other, limit))


def test_what_gave_slots_up_or_merges_nothing_is_nothing_to_stay_near() -> None:
    program = program_of("cond-first")
    plan = drawn(program, 1, 0.7)
    assert schedule(program, plan, 5, max_slot_bytes=0).earlier is None
    assert schedule(program, plan).earlier is None


def test_costs_are_those_of_the_schedule() -> None:
    program = program_of("cond-first")
    plan = drawn(program, 4, 0.5)
    sched = schedule(program, plan, 5)
    assert sched.earlier is not None
    assert Nearing(plan).cost(sched.earlier.groups) == schedule_cost(sched).attention
