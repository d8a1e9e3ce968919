"""Sessions: steps in order, slots that hold the write a step needs, or an error."""

import pytest
import torch

from ditc.passes import Plan, TorchSession, capture, schedule
from ditc.runtime.errors import CaptureError, PlanError

from . import models
from .samples import sample


def session(*methods: str) -> TorchSession:
    program = sample("fused-qkv", "cond-first").program
    plan = Plan.uniform(program, len(methods), "full")
    for step, method in enumerate(methods):
        plan = plan.replace(step, "attentions.0", method)
    return TorchSession(schedule(program, plan))


def run(running: TorchSession, step: int, seed: int | None = None) -> torch.Tensor:
    out = running(step, **sample("fused-qkv", "cond-first").kwargs(step if seed is None else seed))
    assert isinstance(out, torch.Tensor)
    return out


def refusal(running: TorchSession, step: int) -> str:
    with pytest.raises(PlanError) as caught:
        run(running, step)
    return str(caught.value)


def test_a_step_whose_write_is_missing() -> None:
    assert refusal(session("full", "ast"), 1) == (
        "step 1 reads slot attentions.0.output as step 0 leaves it, which hasn't run: run the "
        "steps in order, starting at 0"
    )


def test_a_write_of_an_earlier_step_is_not_enough() -> None:
    running = session("full", "ast", "full", "ast")
    run(running, 0)
    assert "as step 2 leaves it" in refusal(running, 3)


def test_a_later_write_is_dropped_when_an_earlier_step_runs() -> None:
    running = session("full", "wa-rs", "full", "wa-rs")
    for step in range(4):
        run(running, step)
    run(running, 2)
    run(running, 3)
    assert "slot attentions.0.residual as step 0 leaves it" in refusal(running, 1)
    run(running, 0)
    run(running, 1)
    assert "as step 2 leaves it" in refusal(running, 3)


def test_steps_that_read_nothing_run_at_any_time() -> None:
    running = session("full", "asc", "full")
    program = sample("fused-qkv", "cond-first").program
    assert torch.equal(run(running, 2), program(**sample("fused-qkv", "cond-first").kwargs(2)))


def test_a_step_run_twice_is_equal() -> None:
    running = session("full", "ast", "ast")
    run(running, 0)
    first = run(running, 1)
    assert torch.equal(run(running, 1), first)
    assert torch.equal(run(running, 2, seed=1), first)


def test_step_0_starts_again() -> None:
    running = session("full", "ast")
    first = [run(running, step) for step in range(2)]
    run(running, 0, seed=7)
    assert not torch.equal(run(running, 1), first[1])
    assert torch.equal(run(running, 0), first[0])
    assert torch.equal(run(running, 1), first[1])


def test_reset_forgets_slots() -> None:
    running = session("full", "ast")
    run(running, 0)
    running.reset()
    assert "hasn't run" in refusal(running, 1)


@pytest.mark.parametrize("step", [-1, 2])
def test_steps_that_are_none(step: int) -> None:
    assert refusal(session("full", "ast"), step) == f"step {step}: the plan has steps 0 to 1"


def test_a_refused_call_leaves_slots_alone() -> None:
    running = session("full", "ast")
    run(running, 0)
    with pytest.raises(CaptureError, match="argument t is missing"):
        running(0, x=torch.zeros(4, 25, 16))
    assert run(running, 1).shape == (4, 25, 16)


def test_outputs_need_no_gradient() -> None:
    assert not run(session("full"), 0).requires_grad


def test_what_a_caller_gets_is_no_slot() -> None:
    program = capture(models.stacked(), models.plain_kwargs())
    running = TorchSession(schedule(program, Plan.uniform(program, 3, "ast")))
    out = running(0, **models.plain_kwargs())
    expected = out.clone()
    for step in (1, 2):
        out.zero_()
        out = running(step, **models.plain_kwargs())
        assert torch.equal(out, expected)
