"""Whatever is combined, a plan computes what it does unspecialised: drawn plans, all switches."""

import random
from dataclasses import dataclass
from functools import lru_cache

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from ditc.export.specialising import Specialisation
from ditc.passes import Plan, Program, TorchSession, Window, capture, schedule
from ditc.passes.precision import with_precision

from . import models
from .samples import METHODS

STEPS = 5
SCALE = 3.0
TOLERANCES = {"fp32": 1e-5, "fp16": 2e-2, "bf16": 1.5e-1}
"""Largest error over the largest value, by precision: kernels of other shapes in fp32, else what
rounding to 11 and to 8 bits makes of two layers; guidance at 3 triples what the halves differ by.
"""
MODELS = {"dit": (models.dit, models.dit_kwargs), "pixart": (models.pixart, models.pixart_kwargs)}
WINDOWS = (Window(3), Window(8), Window(10, block=5))


@dataclass(frozen=True)
class Case:
    model: str
    cfg: str
    seed: int
    window: int
    limit: int | str | None
    folds: bool
    guides: bool
    splits: bool
    precision: str


@lru_cache
def program_of(model: str, cfg: str) -> Program:
    make, kwargs = MODELS[model]
    return capture(make(2), kwargs(), cfg=cfg)


@lru_cache
def special_of(
    model: str, cfg: str, folds: bool, guides: bool, splits: bool, precision: str = "fp32"
) -> Program:
    program = with_precision(program_of(model, cfg), precision)
    return Specialisation(STEPS, folds, guides, splits).of(program)


cases = st.builds(
    Case,
    model=st.sampled_from(sorted(MODELS)),
    cfg=st.sampled_from(["cond-first", "uncond-first"]),
    seed=st.integers(0, 2**16),
    window=st.integers(0, len(WINDOWS) - 1),
    limit=st.sampled_from([None, 1, 2, 3, "knee"]),
    folds=st.booleans(),
    guides=st.booleans(),
    splits=st.booleans(),
    precision=st.sampled_from(sorted(TOLERANCES)),
)


def drawn(program: Program, case: Case) -> Plan:
    draw = random.Random(case.seed)
    plan = Plan.uniform(program, STEPS, "full", window=WINDOWS[case.window])
    for step in range(1, STEPS):
        for site in plan.sites:
            plan = plan.replace(step, site, draw.choice(METHODS))
    return plan


def given_at(case: Case, step: int) -> models.Kwargs:
    kwargs = MODELS[case.model][1](case.seed % 50 + step)
    latents = kwargs["hidden_states"]
    assert isinstance(latents, torch.Tensor)
    half = latents[: len(latents) // 2]
    return {**kwargs, "hidden_states": torch.cat([half, half]) if case.folds else latents}


def guided(case: Case, output: torch.Tensor) -> torch.Tensor:
    """Guide an output as fused graphs do; what is behind the latents' channels isn't guided."""
    first, second = output.chunk(2)
    cond, uncond = (first, second) if case.cfg == "cond-first" else (second, first)
    width = models.CHANNELS
    step = uncond[:, :width] + SCALE * (cond - uncond)[:, :width]
    return torch.cat([step, cond[:, width:]], dim=1)


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(cases)
def test_agrees_with_the_unspecialised_schedule(case: Case) -> None:
    program = program_of(case.model, case.cfg)
    switches = case.folds, case.guides, case.splits
    special = special_of(case.model, case.cfg, *switches, case.precision)
    sched = schedule(program, drawn(program, case), case.limit)
    plain, session = TorchSession(sched), TorchSession(sched.on(special))
    scale = {"guidance_scale": torch.tensor(SCALE)} if case.guides else {}
    for step in range(STEPS):
        kwargs = given_at(case, step)
        (expected,) = pytree.tree_leaves(plain(step, **kwargs))
        (found,) = pytree.tree_leaves(session(step, **kwargs, **scale))
        expected = guided(case, expected) if case.guides else expected
        error = (found - expected).abs().max() / expected.abs().max()
        assert error <= TOLERANCES[case.precision], (case, step)


def test_all_switches_change_the_graph() -> None:
    plain = program_of("pixart", "cond-first")
    for folds, guides, splits in ((True, False, False), (False, True, False), (False, False, True)):
        special = special_of("pixart", "cond-first", folds, guides, splits)
        assert special is not plain
        assert (special.folded is not None) is folds
        assert ("guidance_scale" in special.arguments) is guides
        assert (special.prologue is not None) is splits
