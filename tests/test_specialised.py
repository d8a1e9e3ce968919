"""Limits on buckets and on slots' bytes change which graphs run, never what the plan computes."""

from functools import lru_cache
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ditc.export import compile as compile_bundle
from ditc.passes import Plan, Program, TorchSession, Window, capture, schedule
from ditc.passes.calls import calls_of
from ditc.runtime import Bundle

from . import models
from .compiled import arrays
from .samples import METHODS
from .test_calls import split

STEPS = 5


@lru_cache
def program_of(cfg: str | None) -> Program:
    if cfg != "separate":
        return capture(models.fused_qkv(), models.plain_kwargs(), cfg=cfg)
    cond, uncond = split(models.plain_kwargs())
    return capture(models.fused_qkv(), cond, cfg=cfg, unconditional=uncond)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Program, Plan, int | str | None, float]:
    """Draw a plan of a layout and a kind of window, a limit, and a share of the slots' bytes."""
    program = program_of(draw(st.sampled_from(["cond-first", "uncond-first", "separate", None])))
    window = draw(st.sampled_from([Window(3), Window(8), Window(10, block=5)]))
    plan = Plan.uniform(program, STEPS, "full", window=window)
    allowed = METHODS if program.cfg else ("full", "wa-rs", "ast")
    for step in range(1, STEPS):
        for site in plan.sites:
            plan = plan.replace(step, site, draw(st.sampled_from(allowed)))
    limit = draw(st.sampled_from([None, 1, 2, 3, "knee"]))
    return program, plan, limit, draw(st.sampled_from([0.0, 0.5, 1.0]))


def check(case: tuple[Program, Plan, int | str | None, float], *, engine: bool) -> None:
    program, plan, limit, share = case
    most = int(share * schedule(program, plan, limit).peak_slot_bytes)
    sched = schedule(program, plan, limit, max_slot_bytes=most)
    assert sched.peak_slot_bytes <= most
    runs = STEPS * len(calls_of(program.cfg))
    assert isinstance(limit, str) or len(sched.buckets) <= (limit or runs)
    unspecialised, limited = TorchSession(schedule(program, sched.plan)), TorchSession(sched)
    with TemporaryDirectory() as folder:
        bundle = None
        if engine:
            bundle = Bundle.open(compile_bundle(sched, Path(folder) / "bundle"), threads=1)
        for step, call in product(range(STEPS), calls_of(program.cfg)):
            kwargs = models.plain_kwargs(seed=step)
            if call:
                kwargs = split(kwargs)[call == "uncond"]
            expected = unspecialised(step, call, **kwargs)
            assert isinstance(expected, torch.Tensor)
            assert torch.equal(expected, limited(step, call, **kwargs))
            if bundle is not None:
                found = bundle.step(step, call, **arrays(program, kwargs))
                error = np.abs(found - expected.numpy()).max() / expected.abs().max().item()
                assert error <= 1e-5  # fp32, other kernels


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(cases())
def test_in_torch(case: tuple[Program, Plan, int | str | None, float]) -> None:
    check(case, engine=False)


@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(cases())
def test_in_an_engine(case: tuple[Program, Plan, int | str | None, float]) -> None:
    check(case, engine=True)
