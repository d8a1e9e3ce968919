"""Slots that share storage never hold anything at once, and little is wasted."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditc.passes import Plan, Slot, TorchSession, Window, schedule, schedule_cost
from ditc.passes.storage import lifetimes, share_storage, storage_bytes, without
from ditc.runtime.errors import PlanError
from ditc.runtime.slots import needed_writes

from .samples import mixed, sample
from .test_scheduling import columns, plan_of


def slot(name: str, size: int) -> Slot:
    return Slot(name, name, "output", (size,), torch.float32)


def test_lifetimes_by_hand() -> None:
    reads = [[], ["a"], ["b"], [], ["a"]]
    writes = [["a"], ["b"], ["c"], ["a"], []]
    assert lifetimes(reads, writes) == {"a": {0, 1, 3, 4}, "b": {1, 2}, "c": {2}}


def test_sharing_by_hand() -> None:
    slots = [slot("a", 4), slot("b", 8), slot("c", 4), slot("d", 2)]
    alive = {
        "a": frozenset({0, 1}),
        "b": frozenset({1, 2}),
        "c": frozenset({2, 3}),
        "d": frozenset({3}),
    }
    storages = share_storage(slots, alive)
    assert storages == {"b": 0, "a": 1, "c": 1, "d": 0}
    assert storage_bytes(slots, storages) == 32 + 16


@settings(max_examples=60, deadline=None, derandomize=True)
@given(columns, st.one_of(st.none(), st.integers(1, 4)))
def test_no_read_finds_what_another_slot_wrote(drawn: list[list[str]], limit: int | None) -> None:
    """Simulated with one cell of memory a storage, which holds who wrote it and when."""
    sched = schedule(sample("fused-qkv", "cond-first").program, plan_of(drawn), limit)
    memory: dict[int, tuple[str, int]] = {}
    latest: dict[str, int] = {}
    for step in range(sched.steps):
        bucket = sched.bucket_of(step)
        for entry in bucket.looked_up:
            assert memory[sched.storages[entry.name]] == (entry.name, latest[entry.name])
        used = [sched.storages[entry.name] for entry in (*bucket.looked_up, *bucket.writes)]
        assert len(used) == len(set(used))
        for entry in bucket.writes:
            memory[sched.storages[entry.name]] = (entry.name, step)
            latest[entry.name] = step
    assert sched.peak_slot_bytes <= sum(entry.nbytes for entry in sched.slots)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(columns)
def test_lookups_are_those_of_the_graph(drawn: list[list[str]]) -> None:
    sched = schedule(sample("fused-qkv", "cond-first").program, plan_of(drawn), 3)
    for bucket in sched.buckets:
        assert set(bucket.looked_up) == set(bucket.reads)


def test_disjoint_lifetimes_share() -> None:
    sched = schedule(
        sample("fused-qkv", "cond-first").program,
        plan_of([["full", "ast", "full", "asc", "full"], ["full", "full", "asc", "full", "ast"]]),
    )
    first, second = sched.slots
    assert sched.storages[first.name] == sched.storages[second.name]
    assert sched.peak_slot_bytes == first.nbytes


def test_the_least_valuable_slot_is_given_up_first() -> None:
    model = sample("dit", "cond-first")
    plan = mixed(model, 4, window=Window(3), steps=16)
    free = schedule(model.program, plan)
    seen = free.peak_slot_bytes
    for limit in (seen, seen - 1, seen // 2, 0):
        sched = schedule(model.program, plan, max_slot_bytes=limit)
        assert sched.peak_slot_bytes <= limit
        assert schedule_cost(sched).attention >= schedule_cost(free).attention or not sched.dropped
        assert not set(sched.dropped) & set(sched.slots)
        values = [without(plan, entry)[1] / entry.nbytes for entry in free.slots]
        assert not sched.dropped or without(plan, sched.dropped[0])[1] / sched.dropped[
            0
        ].nbytes == min(values)
    assert schedule(model.program, plan, max_slot_bytes=seen).dropped == ()
    assert sched.slots == ()


def test_a_plan_without_a_slot_is_milder_and_runs() -> None:
    model = sample("small", "cond-first")
    plan: Plan = mixed(model, 2, window=Window(3), steps=6)
    for entry in schedule(model.program, plan).slots:
        fewer, added = without(plan, entry)
        assert added > 0
        assert entry not in schedule(model.program, fewer).slots
        session = TorchSession(schedule(model.program, fewer))
        for step in range(6):
            session(step, **model.kwargs(step))


def test_a_limit_below_nothing() -> None:
    model = sample("small", "cond-first")
    with pytest.raises(PlanError, match="max_slot_bytes is -1, expected at least 0"):
        schedule(model.program, mixed(model, 1), max_slot_bytes=-1)


class Bucket:
    def __init__(self, title: str, reads: tuple[str, ...], writes: tuple[str, ...]) -> None:
        self.title, self.reads, self.writes = title, reads, writes


def test_the_runtime_agrees() -> None:
    """Its own check of a manifest accepts what was planned, and what shares too much it doesn't."""
    sched = schedule(
        sample("fused-qkv", "cond-first").program,
        plan_of([["full", "ast", "full", "asc", "full"], ["full", "full", "asc", "full", "ast"]]),
    )
    rows = [
        Bucket(
            f"step {step}",
            tuple(entry.name for entry in sched.bucket_of(step).looked_up),
            tuple(entry.name for entry in sched.bucket_of(step).writes),
        )
        for step in range(sched.steps)
    ]
    assert needed_writes(rows, sched.storages)
    names = sorted({*itertools.chain.from_iterable(row.writes for row in rows)})
    assert len(names) == 2
