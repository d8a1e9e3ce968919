"""Merging steps: methods only get milder, and no limit makes a generation cheaper."""

import itertools
import random
from dataclasses import replace
from functools import reduce

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditc.passes import Method, Plan, Window, schedule, schedule_cost, site_cost
from ditc.passes.curve import Curve
from ditc.passes.merging import Merging, milder
from ditc.runtime.errors import PlanError

from .samples import METHODS, mixed, sample
from .test_scheduling import columns, needed, plan_of

ORDER = {
    "full": set(),
    "asc": {"half"},
    "wa-rs": {"window"},
    "wa-rs+asc": {"half", "window"},
    "ast": {"half", "window", "nothing"},
}
"""What each method leaves out: the less, the milder."""


def test_milder_leaves_out_what_both_leave_out() -> None:
    for first, second in itertools.product(METHODS, repeat=2):
        joined = milder(Method(first), Method(second))
        assert ORDER[joined] == ORDER[first] & ORDER[second]


def test_milder_is_a_meet() -> None:
    for first, second, third in itertools.product(Method, repeat=3):
        assert milder(first, first) is first
        assert milder(first, second) is milder(second, first)
        assert milder(milder(first, second), third) is milder(first, milder(second, third))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(columns, st.integers(1, 10))
def test_limit_holds_and_methods_only_get_milder(drawn: list[list[str]], limit: int) -> None:
    program, plan = sample("fused-qkv", "cond-first").program, plan_of(drawn)
    unlimited, limited = schedule(program, plan), schedule(program, plan, limit)
    assert len(limited.buckets) <= limit
    assert sorted(step for bucket in limited.buckets for step in bucket.steps) == list(
        range(plan.steps)
    )
    for step, site in itertools.product(range(plan.steps), plan.sites):
        assert ORDER[limited.plan.method(step, site)] <= ORDER[plan.method(step, site)]
    # Holds for windows of a third of all pairs at most: above, a residual may cost more than
    # what merging away its reader adds.
    assert plan.windows["attentions.0"].density(25) < 1 / 3
    assert schedule_cost(limited).model >= schedule_cost(unlimited).model


@settings(max_examples=30, deadline=None, derandomize=True)
@given(columns)
def test_limits_that_are_no_limit_change_nothing(drawn: list[list[str]]) -> None:
    program, plan = sample("fused-qkv", "cond-first").program, plan_of(drawn)
    unlimited = schedule(program, plan)
    for limit in (len(unlimited.buckets), len(unlimited.buckets) + 3):
        limited = schedule(program, plan, limit)
        assert limited.plan == plan
        assert [(bucket.steps, bucket.keep_outputs) for bucket in limited.buckets] == [
            (bucket.steps, bucket.keep_outputs) for bucket in unlimited.buckets
        ]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(columns)
def test_one_bucket_is_all_full(drawn: list[list[str]]) -> None:
    limited = schedule(sample("fused-qkv", "cond-first").program, plan_of(drawn), 1)
    assert [bucket.steps for bucket in limited.buckets] == [tuple(range(len(drawn[0])))]
    assert set(limited.buckets[0].methods.values()) == {Method.FULL}
    assert limited.slots == ()


def test_the_cheapest_pair_is_merged() -> None:
    # Steps 2 and 3 differ in a window of 1 token only at one site: of all pairs that one is
    # cheapest. Step 1 lets everything go and would be dear to merge with any.
    plan = plan_of(
        [["full", "ast", "wa-rs", "wa-rs+asc"], ["full", "ast", "asc", "asc"]],
    )
    limited = schedule(sample("fused-qkv", "cond-first").program, plan, 3)
    assert [bucket.steps for bucket in limited.buckets] == [(0,), (1,), (2, 3)]
    assert limited.plan.cells[3] == {"attentions.0": "wa-rs", "attentions.1": "asc"}


@pytest.mark.parametrize("seed", [0, 1])
def test_buckets_are_used_up_and_the_more_the_cheaper(seed: int) -> None:
    model = sample("dit", "cond-first")
    plan = mixed(model, seed, window=Window(3), steps=24)
    left = []
    for limit in (1, 2, 3, 6, 12, 24):
        limited = schedule(model.program, plan, limit)
        assert len(limited.buckets) == min(limit, len(schedule(model.program, plan).buckets))
        left.append(schedule_cost(limited).attention_left)
    assert left[0] == 1.0
    assert left == sorted(left, reverse=True)
    assert left[-1] == schedule_cost(schedule(model.program, plan)).attention_left


def brute_force(plan: Plan, limit: int) -> int:
    """Return the least cost of any grouping, each made a plan of its own and that one counted."""
    program = sample("fused-qkv", "cond-first").program
    least = None
    for labels in itertools.product(range(limit), repeat=plan.steps):
        if any(label > max((-1, *labels[:at])) + 1 for at, label in enumerate(labels)):
            continue  # the same groups under other names
        cells = []
        for step in range(plan.steps):
            group = [other for other in range(plan.steps) if labels[other] == labels[step]]
            cells.append(
                {
                    site: reduce(milder, (plan.method(other, site) for other in group))
                    for site in plan.sites
                }
            )
        merged = replace(plan, cells=tuple(cells))
        cost = 0
        for step in range(plan.steps):
            group = [other for other in range(plan.steps) if labels[other] == labels[step]]
            for site in program.sites:
                column = [str(merged.method(other, site.name)) for other in range(plan.steps)]
                cost += site_cost(program, site).of(
                    merged.method(step, site.name),
                    plan.windows[site.name],
                    keeps_residual=bool(needed(column)[1] & set(group)),
                )
        least = cost if least is None else min(least, cost)
    assert least is not None
    return least


@settings(max_examples=25, deadline=None, derandomize=True)
@given(columns.filter(lambda drawn: 3 <= len(drawn[0]) <= 6), st.integers(1, 4))
def test_few_steps_are_merged_at_the_very_least_cost(drawn: list[list[str]], limit: int) -> None:
    program, plan = sample("fused-qkv", "cond-first").program, plan_of(drawn)
    merging = Merging(plan)
    labels = merging.group(limit)
    least = brute_force(plan, limit)
    assert merging.cost(labels[None]) == least
    assert merging.curve().costs[min(limit, merging.units) - 1] == least
    assert schedule_cost(schedule(program, plan, limit)).attention <= least


def banded(plan: Plan, seed: int, stay: float) -> Plan:
    """Return a plan whose sites keep a method for a while, as searched plans do."""
    draw = random.Random(seed)
    cells = [plan.cells[0]]
    for _ in range(1, plan.steps):
        fresh = {site: Method(draw.choice(METHODS)) for site in plan.sites}
        before = cells[-1] if len(cells) > 1 else fresh
        cells.append(
            {site: before[site] if draw.random() < stay else fresh[site] for site in plan.sites}
        )
    return replace(plan, cells=tuple(cells))


def test_many_steps_are_merged_better_than_by_pairs_alone() -> None:
    model = sample("dit", "cond-first")
    plan = banded(mixed(model, 0, window=Window(3), steps=24), seed=3, stay=0.8)
    merging = Merging(plan)
    assert merging.units > 7
    curve = merging.curve()
    assert list(curve.costs) == sorted(curve.costs, reverse=True)
    for limit in (2, 4, 6):
        labels = merging.group(limit)
        assert len(set(labels.tolist())) <= limit
        assert float(merging.cost(labels[None])[0]) <= curve.costs[limit - 1]
        assert schedule_cost(schedule(model.program, plan, limit)).attention == merging.cost(
            labels[None]
        )


def test_the_knee() -> None:
    assert Curve((100.0, 30.0, 20.0, 15.0, 10.0), 100.0).knee == 2
    assert Curve((100.0, 60.0, 20.0, 15.0, 10.0), 100.0).knee == 3
    assert Curve((100.0, 75.0, 50.0, 25.0, 0.0), 100.0).knee == 5  # no bucket brings less
    assert Curve((100.0, 99.0, 95.0, 0.0), 100.0).knee == 4
    assert Curve((10.0,), 10.0).knee == 1
    assert Curve((100.0, 30.0, 20.0), 100.0).kept(2) == pytest.approx(70 / 80)
    assert Curve((100.0, 30.0, 20.0), 100.0).slowdown(2) == 1.5


def test_the_curve_goes_through_what_a_limit_was_found_to_cost() -> None:
    curve = Curve((100.0, 60.0, 50.0, 20.0), 100.0)
    assert curve.at(2, 45.0).costs == (100.0, 45.0, 45.0, 20.0)
    assert curve.at(3, 70.0).costs == (100.0, 70.0, 70.0, 20.0)
    assert curve.at(9, 20.0) == curve.at(9, 25.0) == curve
    assert curve.at(4, 15.0).costs == (100.0, 60.0, 50.0, 15.0)


def test_a_schedule_tells_what_its_limit_costs() -> None:
    model = sample("dit", "cond-first")
    plan = mixed(model, 5, window=Window(3), steps=12)
    assert schedule(model.program, plan).curve is None
    limited = schedule(model.program, plan, 3)
    assert limited.curve is not None
    assert limited.curve.costs[2] == schedule_cost(limited).attention
    assert limited.curve.costs[-1] == schedule_cost(schedule(model.program, plan)).attention


def test_a_schedule_at_the_knee() -> None:
    model = sample("dit", "cond-first")
    plan = banded(mixed(model, 0, window=Window(3), steps=24), seed=3, stay=0.8)
    knee = Merging(plan).curve().knee
    assert 1 < knee < 24
    assert len(schedule(model.program, plan, "knee").buckets) == knee


def test_measured_latencies_decide() -> None:
    """Steps 1 and 2 are merged where windows are slow, steps 2 and 3 where they are fast."""
    program = sample("fused-qkv", "cond-first").program
    plan = plan_of([["full", "wa-rs", "wa-rs+asc", "ast"], ["full"] * 4])
    latencies = {
        site: {"full": 20.0, "asc": 6.0, "wa-rs": 1.1, "wa-rs+asc": 1.0} for site in plan.sites
    }
    fast = schedule(program, plan, 3, latencies=latencies)
    assert [bucket.steps for bucket in fast.buckets] == [(0,), (1, 2), (3,)]
    slow = {site: {**row, "wa-rs": 8.0} for site, row in latencies.items()}
    assert [bucket.steps for bucket in schedule(program, plan, 3, latencies=slow).buckets] == [
        (0,),
        (1,),
        (2, 3),
    ]


def test_latencies_that_lack_something() -> None:
    model = sample("dit", "cond-first")
    with pytest.raises(
        PlanError, match=r"latencies: nothing for full at site transformer_blocks\.0"
    ):
        schedule(model.program, mixed(model, 1), 3, latencies={})


@pytest.mark.parametrize("limit", [0, -2])
def test_limits_below_one(limit: int) -> None:
    model = sample("dit", "cond-first")
    with pytest.raises(PlanError, match=f"max_buckets is {limit}, expected at least 1"):
        schedule(model.program, mixed(model, 1), limit)
