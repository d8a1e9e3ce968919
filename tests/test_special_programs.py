"""Whatever is combined, a plan computes what it does unspecialised: drawn plans, all switches."""

import random
from dataclasses import dataclass
from functools import lru_cache

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from ditc.export.specialising import Specialisation
from ditc.passes import Plan, Program, TileWindow, TorchSession, Window, capture, schedule
from ditc.passes.calls import calls_of
from ditc.passes.identity import in_batch
from ditc.passes.laying_out import laid_out_for
from ditc.passes.precision import with_precision

from . import models
from .samples import METHODS
from .test_calls import split

STEPS = 5
SCALE = 3.0
TOLERANCES = {"fp32": 1e-5, "fp16": 2e-2, "bf16": 1.5e-1}
"""Largest error over the largest value, by precision: kernels of other shapes in fp32, else what
rounding to 11 and to 8 bits makes of two layers; guidance at 3 triples what the halves differ by.
"""
MODELS = {"dit": (models.dit, models.dit_kwargs), "pixart": (models.pixart, models.pixart_kwargs)}
WINDOWS = {
    "band": Window(3),
    "wide band": Window(8),
    "block": Window(10, block=5),
    "tile": TileWindow((5, 5), (2, 3), (1, 0)),
}
LAYOUTS = ("cond-first", "uncond-first", "separate")


@dataclass(frozen=True)
class Case:
    model: str
    cfg: str
    seed: int
    window: str
    limit: int | str | None
    folds: bool
    guides: bool
    splits: bool
    holds: bool
    precision: str


@lru_cache
def program_of(model: str, cfg: str, tiles: bool = False) -> Program:
    if tiles:
        return laid_out_for(program_of(model, cfg), [WINDOWS["tile"]])
    make, kwargs = MODELS[model]
    if cfg in ("cond-first", "uncond-first"):
        return capture(make(2), kwargs(), cfg=cfg)
    cond, uncond = split(kwargs())
    return capture(make(2), cond, cfg=cfg, unconditional=uncond)


@lru_cache
def special_of(
    model: str,
    cfg: str,
    folds: bool,
    guides: bool,
    splits: bool,
    precision: str = "fp32",
    tiles: bool = False,
) -> Program:
    program = with_precision(program_of(model, cfg, tiles), precision)
    return Specialisation(STEPS, folds, guides, splits).of(program)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw a case.

    Two calls have no halves in one batch to fold or to guide; with a prologue no graph of a step
    takes a timestep that it could hold.
    """
    cfg = draw(st.sampled_from(LAYOUTS))
    splits = draw(st.booleans())
    return Case(
        model=draw(st.sampled_from(sorted(MODELS))),
        cfg=cfg,
        seed=draw(st.integers(0, 2**16)),
        window=draw(st.sampled_from(sorted(WINDOWS))),
        limit=draw(st.sampled_from([None, 1, 2, 3, "knee"])),
        folds=in_batch(cfg) and draw(st.booleans()),
        guides=in_batch(cfg) and draw(st.booleans()),
        splits=splits,
        holds=not splits and draw(st.booleans()),
        precision=draw(st.sampled_from(sorted(TOLERANCES))),
    )


def drawn(program: Program, case: Case) -> Plan:
    draw = random.Random(case.seed)
    plan = Plan.uniform(program, STEPS, "full", window=WINDOWS[case.window])
    for step in range(1, STEPS):
        for site in plan.sites:
            plan = plan.replace(step, site, draw.choice(METHODS))
    return plan


def timesteps(case: Case) -> list[float]:
    """Return what the model is told at each step, the same in both halves."""
    return [float(case.seed % 500 + 97 * step) for step in range(STEPS)]


def given_at(case: Case, step: int) -> models.Kwargs:
    kwargs = MODELS[case.model][1](case.seed % 50 + step)
    latents = kwargs["hidden_states"]
    assert isinstance(latents, torch.Tensor)
    half = latents[: len(latents) // 2]
    told = kwargs["timestep"]
    assert isinstance(told, torch.Tensor)
    kwargs["timestep"] = torch.full_like(told, timesteps(case)[step])
    return {**kwargs, "hidden_states": torch.cat([half, half]) if case.folds else latents}


def guided(case: Case, output: torch.Tensor) -> torch.Tensor:
    """Guide an output as fused graphs do; what is behind the latents' channels isn't guided."""
    first, second = output.chunk(2)
    cond, uncond = (first, second) if case.cfg == "cond-first" else (second, first)
    width = models.CHANNELS
    step = uncond[:, :width] + SCALE * (cond - uncond)[:, :width]
    return torch.cat([step, cond[:, width:]], dim=1)


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(cases())
def test_agrees_with_the_unspecialised_schedule(case: Case) -> None:
    tiles = case.window == "tile"
    program = program_of(case.model, case.cfg, tiles)
    switches = case.folds, case.guides, case.splits
    special = special_of(case.model, case.cfg, *switches, case.precision, tiles)
    sched = schedule(program, drawn(program, case), case.limit)
    ready = sched.on(special)
    if case.holds:
        ready = ready.holding(timesteps(case))
    plain, session = TorchSession(sched), TorchSession(ready)
    scale = {"guidance_scale": torch.tensor(SCALE)} if case.guides else {}
    for step in range(STEPS):
        for call in calls_of(program.cfg):
            kwargs = given_at(case, step)
            if call:
                kwargs = split(kwargs)[call == "uncond"]
            (expected,) = pytree.tree_leaves(plain(step, call, **kwargs))
            (found,) = pytree.tree_leaves(session(step, call, **kwargs, **scale))
            expected = guided(case, expected) if case.guides else expected
            error = (found - expected).abs().max() / expected.abs().max()
            assert error <= TOLERANCES[case.precision], (case, step, call)


def test_all_kinds_are_drawn() -> None:
    """Each layout meets each kind of window, with and without a prologue, in few examples."""
    met: set[tuple[str, str, bool]] = set()

    @settings(max_examples=200, derandomize=True, database=None)
    @given(cases())
    def look(case: Case) -> None:
        met.add((case.cfg, case.window, case.splits))

    look()
    assert len(met) == len(LAYOUTS) * len(WINDOWS) * 2


def test_two_calls_split_alike() -> None:
    """The graph of a call leaves its prompt to a prologue, which each call runs for its own."""
    plain = program_of("pixart", "separate")
    special = special_of("pixart", "separate", False, False, True)
    assert plain.prologue is None
    assert special.prologue is not None
    assert special.prologue.prompt is not None


def test_all_switches_change_the_graph() -> None:
    plain = program_of("pixart", "cond-first")
    for folds, guides, splits in ((True, False, False), (False, True, False), (False, False, True)):
        special = special_of("pixart", "cond-first", folds, guides, splits)
        assert special is not plain
        assert (special.folded is not None) is folds
        assert ("guidance_scale" in special.arguments) is guides
        assert (special.prologue is not None) is splits
