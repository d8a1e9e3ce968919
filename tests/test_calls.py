"""Two calls a step: what each runs, keeps and takes, against a simulation and the batch."""

from functools import lru_cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from ditc.passes import Method, Plan, Program, Schedule, TorchSession, Window, capture, schedule
from ditc.passes.arithmetic import schedule_cost
from ditc.runtime.errors import PlanError

from . import models
from .samples import METHODS, SAMPLES, sample

CALLS = ("cond", "uncond")


@lru_cache
def separate(name: str, cfg: str = "separate") -> Program:
    """Return a model captured from the two calls that make its batch, conditional first."""
    cond, uncond = split(SAMPLES[name][1]())
    module = sample(name, "cond-first").module
    return capture(module, cond, cfg, unconditional=uncond)


def split(kwargs: models.Kwargs) -> tuple[models.Kwargs, models.Kwargs]:
    """Return the two calls whose arguments make a batch."""
    halves = [
        {
            name: value.chunk(2)[half] if isinstance(value, torch.Tensor) else value
            for name, value in kwargs.items()
        }
        for half in (0, 1)
    ]
    return halves[0], halves[1]


def plan_of(program: Program, columns: list[list[str]]) -> Plan:
    plan = Plan.uniform(program, len(columns[0]), "full", window=Window(3))
    for site, column in zip(plan.sites, columns, strict=True):
        for step, method in enumerate(column):
            plan = plan.replace(step, site, method)
    return plan


def simulated(column: list[str]) -> list[tuple[str, str | None]]:
    """Return for each call of each step of a site what it computes and which call's slot it reads.

    Kept by hand: who computed the latest output and the latest residual that each half has.
    """
    output, residual = {"cond": "cond", "uncond": "uncond"}, {"cond": "cond", "uncond": "uncond"}
    found: list[tuple[str, str | None]] = []
    for method in column:
        shared = "asc" in method
        for call in CALLS:
            if shared and call == "uncond":
                found.append(("ast", "cond"))
                continue
            if method == "ast":
                found.append(("ast", output[call]))
            elif "wa-rs" in method:
                found.append(("wa-rs", residual[call]))
            else:
                found.append(("full", None))
        if method != "ast":
            output["uncond"] = "cond" if shared else "uncond"
        if method in ("full", "asc"):
            residual["uncond"] = "cond" if shared else "uncond"
    return found


columns = st.integers(1, 9).flatmap(
    lambda steps: st.lists(
        st.lists(st.sampled_from(METHODS), min_size=steps - 1, max_size=steps - 1).map(
            lambda later: ["full", *later]
        ),
        min_size=2,
        max_size=2,
    )
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(columns, st.one_of(st.none(), st.integers(1, 4)))
def test_what_each_call_computes_and_reads(drawn: list[list[str]], limit: int | None) -> None:
    program = separate("fused-qkv")
    sched = schedule(program, plan_of(program, drawn), limit)
    assert limit is None or len(sched.buckets) <= limit
    for site in sched.plan.sites:
        column = [str(sched.plan.method(step, site)) for step in range(sched.steps)]
        for run, (method, source) in zip(sched.runs, simulated(column), strict=True):
            bucket = sched.bucket_of(run.step, run.call)
            assert bucket.methods[site] == method
            read = [run.read(slot).name for slot in bucket.looked_up if slot.site == site]
            assert [name.rpartition("@")[2] for name in read] == ([source] if source else [])
    check_memory(sched)


def check_memory(sched: Schedule) -> None:
    """Every read finds the latest write of its slot in its storage; no run has two in one."""
    memory: dict[int, tuple[str, int]] = {}
    latest: dict[str, int] = {}
    for number, run in enumerate(sched.runs):
        bucket = sched.bucket_of(run.step, run.call)
        reads = [run.read(slot).name for slot in bucket.looked_up]
        writes = [run.written(slot).name for slot in bucket.writes]
        for name in reads:
            assert memory[sched.storages[name]] == (name, latest[name])
        used = [sched.storages[name] for name in (*reads, *writes)]
        assert len(used) == len(set(used))
        for name in writes:
            memory[sched.storages[name]] = (name, number)
            latest[name] = number


@pytest.mark.parametrize("name", ["fused-qkv", "dit", "pixart", "merged-heads"])
def test_two_calls_compute_what_one_batch_does(name: str) -> None:
    model, program = sample(name, "cond-first"), separate(name)
    order = ["full", "asc", "ast", "wa-rs", "wa-rs+asc", "ast", "wa-rs", "full", "wa-rs", "asc"]
    later = ["full", *order[:0:-1]]
    sites = [site.name for site in model.program.sites if site.eligible]
    plan = plan_of(model.program, [(order, later)[n % 2] for n, _ in enumerate(sites)])
    batch, calls = (
        TorchSession(schedule(model.program, plan)),
        TorchSession(schedule(program, plan)),
    )
    for step in range(plan.steps):
        kwargs = model.kwargs(step)
        expected = leaves(batch(step, **kwargs))
        for half, (call, part) in enumerate(zip(CALLS, split(kwargs), strict=True)):
            for one, both in zip(leaves(calls(step, call, **part)), expected, strict=True):
                torch.testing.assert_close(one, both.chunk(2)[half], rtol=1e-4, atol=1e-5)


def leaves(value: object) -> list[torch.Tensor]:
    return list(pytree.tree_leaves(value))


def test_equal_graphs_serve_both_calls() -> None:
    program = separate("fused-qkv")
    plan = plan_of(program, [["full", "ast", "ast"], ["full", "full", "full"]])
    sched = schedule(program, plan)
    assert [bucket.steps for bucket in sched.buckets] == [(0,), (1, 2)]
    assert sched.owners[0, "cond"] == sched.owners[0, "uncond"]
    assert [slot.name for slot in sched.slots] == [
        "attentions.0.output@cond",
        "attentions.0.output@uncond",
    ]
    assert sched.plan.cfg == "separate"


def test_sharing_keeps_one_output_for_both_calls() -> None:
    program = separate("fused-qkv")
    plan = plan_of(program, [["full", "asc", "ast"], ["full", "full", "full"]])
    sched = schedule(program, plan)
    assert {slot.name for slot in sched.slots} == {
        "attentions.0.output@cond",
        "attentions.0.output@uncond",  # the full graph of step 0 and of the conditional call
    }
    uncond = sched.bucket_of(1, "uncond")
    assert uncond is sched.bucket_of(2, "cond") is sched.bucket_of(2, "uncond")
    assert sched.runs[3].read(uncond.reads[0]).name == "attentions.0.output@cond"
    assert sched.runs[5].read(uncond.reads[0]).name == "attentions.0.output@cond"


def test_costs_are_those_of_the_batch() -> None:
    program, whole = separate("fused-qkv"), sample("fused-qkv", "cond-first").program
    plan = plan_of(whole, [["full", "asc", "ast", "wa-rs", "wa-rs+asc"], ["full"] * 5])
    assert plan.cost == Plan.uniform(program, 1, "full").cost
    assert schedule_cost(schedule(program, plan)) == schedule_cost(schedule(whole, plan))


@pytest.mark.parametrize("limit", [6500, 0])
def test_slots_are_given_up_until_they_fit(limit: int) -> None:
    program = separate("fused-qkv")
    plan = plan_of(program, [["full", "asc", "ast", "wa-rs+asc"], ["full", "wa-rs", "asc", "ast"]])
    sched = schedule(program, plan, max_slot_bytes=limit)
    assert sched.peak_slot_bytes <= limit
    assert sched.dropped
    check_memory(sched)


def test_a_call_out_of_order_is_refused() -> None:
    program = separate("fused-qkv")
    running = TorchSession(schedule(program, plan_of(program, [["full", "asc"], ["full"] * 2])))
    cond, uncond = split(models.plain_kwargs())
    running(0, "cond", **cond)
    with pytest.raises(
        PlanError, match=r"unconditional call reads slot attentions\.0\.output@cond"
    ):
        running(1, "uncond", **uncond)
    for call in (None, "both"):
        with pytest.raises(PlanError, match=r"no call .*: expected 'cond' and then 'uncond'"):
            running(1, call, **cond)


def test_sharing_needs_the_conditional_call_first() -> None:
    program = separate("fused-qkv", "separate-uncond-first")
    sched = schedule(program, plan_of(program, [["full", "ast", "wa-rs"], ["full"] * 3]))
    assert [run.call for run in sched.runs] == ["uncond", "cond"] * 3
    with pytest.raises(PlanError, match=r"site attentions\.0: asc, but the unconditional"):
        schedule(program, plan_of(program, [["full", "asc"], ["full"] * 2]))


@pytest.mark.parametrize(
    ("made", "used", "accepted"),
    [
        ("cond-first", "separate", True),
        ("separate", "cond-first", True),
        ("uncond-first", "separate", False),
        ("separate", "separate-uncond-first", False),
    ],
)
def test_plans_hold_for_calls_and_batches_alike(made: str, used: str, accepted: bool) -> None:
    def program(cfg: str) -> Program:
        return (separate if "separate" in cfg else lambda n, c: sample(n, c).program)("small", cfg)

    plan = Plan.uniform(program(made), 2, Method.AST)
    if accepted:
        assert schedule(program(used), plan).plan.cfg == used
        return
    with pytest.raises(PlanError, match=f"plan is for CFG layout {made}, the program has {used}"):
        schedule(program(used), plan)
