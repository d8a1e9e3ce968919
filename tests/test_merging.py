"""Merging steps: methods only get milder, and no limit makes a generation cheaper."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditc.passes import Method, Window, schedule, schedule_cost
from ditc.passes.merging import milder
from ditc.runtime.errors import PlanError

from .samples import METHODS, mixed, sample
from .test_scheduling import columns, plan_of

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


@pytest.mark.parametrize("limit", [0, -2])
def test_limits_below_one(limit: int) -> None:
    model = sample("dit", "cond-first")
    with pytest.raises(PlanError, match=f"max_buckets is {limit}, expected at least 1"):
        schedule(model.program, mixed(model, 1), limit)
