"""Liveness, buckets and slots, against a simulation that keeps everything."""

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ditc.passes import Method, Plan, Schedule, schedule
from ditc.runtime.errors import PlanError

from .samples import METHODS, mixed, sample

FULL_STEP = ("full", "asc")
WINDOWED = ("wa-rs", "wa-rs+asc")


def plan_of(columns: list[list[str]], model: str = "fused-qkv") -> Plan:
    """Return a plan with a list of methods, step by step, for each site."""
    program = sample(model, "cond-first").program
    plan = Plan.uniform(program, len(columns[0]), "full")
    for site, column in zip(plan.sites, columns, strict=True):
        for step, method in enumerate(column):
            plan = plan.replace(step, site, method)
    return plan


def needed(column: list[str]) -> tuple[set[int], set[int], list[tuple[int, str, int]]]:
    """Simulate one site: keep the latest write and note which writes are read, by whom."""
    outputs, residuals, reads = set(), set(), []
    last_output = last_residual = -1
    for step, method in enumerate(column):
        if method == "ast":
            outputs.add(last_output)
            reads.append((step, "output", last_output))
            continue
        if method in WINDOWED:
            residuals.add(last_residual)
            reads.append((step, "residual", last_residual))
        if method in FULL_STEP:
            last_residual = step
        last_output = step
    return outputs, residuals, reads


def column_of(sched: Schedule, site: str) -> list[str]:
    return [str(sched.plan.method(step, site)) for step in range(sched.steps)]


def shared(drawn: list[list[str]], step: int) -> tuple[object, ...]:
    """Return what makes two steps' graphs equal: methods, and residuals kept."""
    return tuple((column[step], step in needed(column)[1]) for column in drawn)


def written(sched: Schedule, site: str) -> tuple[set[int], set[int]]:
    steps = range(sched.steps)
    return (
        {step for step in steps if site in sched.bucket_of(step).keep_outputs},
        {step for step in steps if site in sched.bucket_of(step).keep_residuals},
    )


def check_slots(sched: Schedule) -> None:
    """Check every bucket's graph: reads and writes are those of its methods, none in both."""
    for bucket in sched.buckets:
        reads = {(slot.site, slot.kind) for slot in bucket.reads}
        writes = {(slot.site, slot.kind) for slot in bucket.writes}
        assert not reads & writes
        expected = {(site, "output") for site, method in bucket.methods.items() if method == "ast"}
        expected |= {
            (site, "residual") for site, method in bucket.methods.items() if method in WINDOWED
        }
        assert reads == expected
        assert writes == {(site, "output") for site in bucket.keep_outputs} | {
            (site, "residual") for site in bucket.keep_residuals
        }


columns = st.integers(1, 10).flatmap(
    lambda steps: st.lists(
        st.lists(st.sampled_from(METHODS), min_size=steps - 1, max_size=steps - 1).map(
            lambda later: ["full", *later]
        ),
        min_size=2,
        max_size=2,
    )
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(columns)
def test_writes_are_those_that_are_read(drawn: list[list[str]]) -> None:
    sched = schedule(sample("fused-qkv", "cond-first").program, plan_of(drawn))
    for site, column in zip(sched.plan.sites, drawn, strict=True):
        outputs, residuals, _ = needed(column)
        rows = {shared(drawn, step) for step in outputs}
        assert written(sched, site) == (
            {step for step in range(len(column)) if shared(drawn, step) in rows},
            residuals,
        )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(columns)
def test_every_step_is_in_one_bucket_and_equal_steps_share(drawn: list[list[str]]) -> None:
    sched = schedule(sample("fused-qkv", "cond-first").program, plan_of(drawn))
    assert sorted(step for bucket in sched.buckets for step in bucket.steps) == list(
        range(sched.steps)
    )
    simulated = {}
    for step in range(sched.steps):
        simulated.setdefault(shared(drawn, step), []).append(step)
    assert sorted(bucket.steps for bucket in sched.buckets) == sorted(
        tuple(steps) for steps in simulated.values()
    )
    assert [bucket.name for bucket in sched.buckets] == [
        f"b{number:02d}" for number in range(len(sched.buckets))
    ]
    assert all(a.steps[0] < b.steps[0] for a, b in pairwise(sched.buckets))


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(columns, st.one_of(st.none(), st.integers(1, 4)))
def test_graphs_read_and_write_what_the_methods_say(
    drawn: list[list[str]], limit: int | None
) -> None:
    sched = schedule(sample("fused-qkv", "cond-first").program, plan_of(drawn), limit)
    check_slots(sched)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(columns, st.integers(1, 6))
def test_under_a_limit_each_read_finds_its_write(drawn: list[list[str]], limit: int) -> None:
    """Merged steps may write what nobody reads; the latest write is still the one needed."""
    sched = schedule(sample("fused-qkv", "cond-first").program, plan_of(drawn), limit)
    for site in sched.plan.sites:
        outputs, residuals = written(sched, site)
        for step, kind, source in needed(column_of(sched, site))[2]:
            writes = outputs if kind == "output" else residuals
            assert max(at for at in writes if at < step) == source


@pytest.mark.parametrize(
    ("column", "outputs", "residuals"),
    [
        (["full"] * 4, set(), set()),
        (["full", "ast", "ast", "full"], {0, 3}, set()),  # step 3 runs step 0's graph
        (["full", "wa-rs", "ast", "wa-rs"], {1, 3}, {0}),
        (["full", "ast", "wa-rs", "wa-rs"], {0}, {0}),
        (["full", "asc", "wa-rs+asc", "ast"], {2}, {1}),
        (["full", "wa-rs", "full", "asc", "ast", "full"], {3}, {0}),
        (["full", "full", "ast", "ast", "wa-rs", "full"], {1}, {1}),
    ],
)
def test_liveness_by_hand(column: list[str], outputs: set[int], residuals: set[int]) -> None:
    sched = schedule(
        sample("fused-qkv", "cond-first").program, plan_of([column, ["full"] * len(column)])
    )
    assert written(sched, "attentions.0") == (outputs, residuals)
    assert written(sched, "attentions.1") == (set(), set())


def test_slots_and_peak_bytes() -> None:
    sched = schedule(
        sample("fused-qkv", "cond-first").program,
        plan_of([["full", "ast", "wa-rs"], ["full", "full", "ast"]]),
    )
    assert [(slot.name, slot.kind, slot.shape) for slot in sched.slots] == [
        ("attentions.0.output", "output", (4, 25, 16)),
        ("attentions.0.residual", "residual", (4, 2, 25, 8)),
        ("attentions.1.output", "output", (4, 25, 16)),
    ]
    assert [slot.nbytes for slot in sched.slots] == [6400, 6400, 6400]
    assert sched.peak_slot_bytes == 19200


def test_no_slots_without_compression() -> None:
    sched = schedule(
        sample("fused-qkv", "cond-first").program, plan_of([["full"] * 3, ["full", "asc", "full"]])
    )
    assert sched.slots == ()
    assert sched.peak_slot_bytes == 0
    assert [bucket.steps for bucket in sched.buckets] == [(0, 2), (1,)]


def test_uniform_ast_has_two_buckets() -> None:
    program = sample("dit", "cond-first").program
    sched = schedule(program, Plan.uniform(program, 20, "ast"))
    assert [bucket.steps for bucket in sched.buckets] == [(0,), tuple(range(1, 20))]
    first, later = sched.buckets
    assert first.writes == later.reads
    assert first.methods["transformer_blocks.0.attn1"] is Method.FULL


def test_slots_of_merged_heads_hold_batch_and_heads_in_one_axis() -> None:
    program = sample("merged-heads", "cond-first").program
    sched = schedule(program, Plan.uniform(program, 2, "wa-rs"))
    assert [slot.shape for slot in sched.slots] == [(8, 25, 8), (8, 25, 8)]


@pytest.mark.parametrize("step", [-1, 3])
def test_bucket_of_a_step_that_is_none(step: int) -> None:
    sched = schedule(sample("fused-qkv", "cond-first").program, plan_of([["full"] * 3] * 2))
    with pytest.raises(IndexError, match=f"step {step}: the plan has steps 0 to 2"):
        sched.bucket_of(step)


def test_a_plan_for_another_layout_is_refused() -> None:
    model = sample("fused-qkv", "cond-first")
    with pytest.raises(PlanError, match="plan is for CFG layout cond-first, the program has unc"):
        schedule(sample("fused-qkv", "uncond-first").program, mixed(model, 1))
