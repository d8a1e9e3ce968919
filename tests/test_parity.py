"""Module → captured → compressed, against an eager implementation that shares no code."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from ditc.passes import Plan, TorchSession, Window, schedule

from .reference import Eager
from .samples import LAYOUTS, METHODS, SAMPLES, STEPS, Sample, mixed, sample

TOLERANCE = 1e-5
"""Largest error over largest value, fp32 against fp64: the bound the project promises."""

WINDOWS = {"band": Window(3), "block": Window(8, 4)}


def error(found: object, expected: list[torch.Tensor]) -> float:
    flat = pytree.tree_leaves(found)
    assert len(flat) == len(expected)
    return max(
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(flat, expected, strict=True)
    )


def worst(model: Sample, plan: Plan, max_buckets: int | None = None, generations: int = 1) -> float:
    """Return the largest relative error over all steps, with inputs drawn anew at each."""
    sched = schedule(model.program, plan, max_buckets)
    cells = [{site: str(row[site]) for site in model.sites} for row in sched.plan.cells]
    windows = {site: (window.radius, window.block) for site, window in plan.windows.items()}
    session = TorchSession(sched)
    errors = []
    for generation in range(generations):
        session.reset()
        eager = Eager(model.module, model.paths(), cells, windows, model.program.cfg)
        for step in range(plan.steps):
            kwargs = model.kwargs(100 * generation + step)
            errors.append(error(session(step, **kwargs), eager(step, **kwargs)))
    return max(errors)


@pytest.mark.parametrize("name", SAMPLES)
def test_captured_is_equal_to_the_bit(name: str) -> None:
    model = sample(name, "cond-first")
    for seed in range(3):
        kwargs = model.kwargs(seed)
        with torch.no_grad():
            expected = pytree.tree_leaves(model.module(**kwargs))
        found = pytree.tree_leaves(model.program(**kwargs))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", SAMPLES)
def test_full_plan_is_equal_to_the_bit(name: str) -> None:
    model = sample(name, "cond-first")
    session = TorchSession(schedule(model.program, Plan.uniform(model.program, 2, "full")))
    for step in range(2):
        kwargs = model.kwargs(step)
        found = pytree.tree_leaves(session(step, **kwargs))
        expected = pytree.tree_leaves(model.program(**kwargs))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("cfg", LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
def test_each_method(method: str, cfg: str, window: str) -> None:
    model = sample("dit", cfg)
    plan = Plan.uniform(model.program, STEPS, method, window=WINDOWS[window])
    assert worst(model, plan) <= TOLERANCE


@pytest.mark.parametrize("cfg", LAYOUTS)
@pytest.mark.parametrize("name", SAMPLES)
def test_mixed_plan(name: str, cfg: str) -> None:
    model = sample(name, cfg)
    window = WINDOWS["band" if cfg == "cond-first" else "block"]
    assert worst(model, mixed(model, seed=len(name), window=window)) <= TOLERANCE


@pytest.mark.parametrize("name", ["pixart", "merged-heads"])
def test_mixed_plan_without_cfg(name: str) -> None:
    model = sample(name, None)
    assert worst(model, mixed(model, seed=4)) <= TOLERANCE


def test_two_generations_in_a_row() -> None:
    model = sample("dit", "uncond-first")
    assert worst(model, mixed(model, seed=11), generations=2) <= TOLERANCE


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_limited_buckets(limit: int) -> None:
    model = sample("fused-qkv", "cond-first")
    plan = mixed(model, seed=12)
    assert len(schedule(model.program, plan, limit).buckets) <= limit
    assert worst(model, plan, max_buckets=limit) <= TOLERANCE


@given(data=st.data())
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_any_plan(data: st.DataObject) -> None:
    model = sample("fused-qkv", data.draw(st.sampled_from(LAYOUTS)))
    block = data.draw(st.integers(1, 5))
    window = Window(block * data.draw(st.integers(0, 24 // block)), block)
    plan = Plan.uniform(model.program, 8, "full", window=window)
    for step in range(1, 8):
        for site in model.sites:
            plan = plan.replace(step, site, data.draw(st.sampled_from(METHODS)))
    assert worst(model, plan) <= TOLERANCE


def test_methods_differ_from_each_other() -> None:
    """A near-miss: parity means nothing if a compressed step computed what a full one does."""
    model = sample("dit", "cond-first")
    full = Eager(
        model.module, model.paths(), [{}] * STEPS, dict.fromkeys(model.sites, (3, 1)), None
    )
    for method in METHODS[1:]:
        session = TorchSession(schedule(model.program, Plan.uniform(model.program, 2, method)))
        session(0, **model.kwargs(0))
        assert error(session(1, **model.kwargs(1)), full(1, **model.kwargs(1))) > 1e-2
