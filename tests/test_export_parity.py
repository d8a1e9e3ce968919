"""Bundles in ONNX Runtime, against eager references that share no code with them."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from ditc.export import compile as compile_bundle
from ditc.passes import Plan, Schedule, TorchSession, Window, schedule
from ditc.runtime import Bundle

from .compiled import arrays, planned, tiny_dit
from .models import noise
from .reference import Eager
from .samples import LAYOUTS, METHODS, Sample, sample
from .test_parity import error

TOLERANCE = 1e-4
"""Of the largest value: fp32 engines sum in another order than eager torch, here in fp64."""
STEPS = 8
BAND, BLOCK = Window(3), Window(8, 4)


def worst(model: Sample, sched: Schedule, place: Path) -> tuple[float, float]:
    """Return the largest errors over two generations: against eager, and TorchSession."""
    cells = [{site: str(row[site]) for site in model.sites} for row in sched.plan.cells]
    windows = {site: (window.radius, window.block) for site, window in sched.plan.windows.items()}
    bundle = Bundle.open(compile_bundle(sched, place), threads=1)
    session = TorchSession(sched)
    found = []
    for generation in range(2):
        eager = Eager(model.module, model.paths(), cells, windows, model.program.cfg)
        for step in range(sched.steps):
            kwargs = model.kwargs(100 * generation + step)
            result = bundle.step(step, **arrays(model.program, kwargs))
            values = result.values() if isinstance(result, dict) else (result,)
            outputs = [torch.from_numpy(value) for value in values]
            torched = session(step, **kwargs)
            found.append((error(outputs, eager(step, **kwargs)), error(torched, outputs)))
    return max(eager for eager, _ in found), max(torched for _, torched in found)


def recurring(model: Sample, window: Window) -> Plan:
    """Return a plan of two rows in turn, drawn from all methods, so that graphs are few."""
    allowed = list(METHODS[1:] if model.program.cfg else ("wa-rs", "ast"))
    random.Random(f"{model.name} {window}").shuffle(allowed)
    plan = Plan.uniform(model.program, STEPS, "full", window=window)
    for step in range(1, STEPS):
        for index, site in enumerate(model.sites, step % 2 * len(model.sites)):
            plan = plan.replace(step, site, allowed[index % len(allowed)])
    return plan


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("name", "cfg", "window"),
    [("fused-qkv", "cond-first", BAND), ("small", "uncond-first", BLOCK)],
    ids=LAYOUTS,
)
def test_each_method(name: str, method: str, cfg: str, window: Window, tmp_path: Path) -> None:
    model = sample(name, cfg)
    plan = planned(model.program, "full", *[method] * (STEPS - 1), window=window)
    assert max(worst(model, schedule(model.program, plan), tmp_path / "bundle")) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "cfg", "window"),
    [
        ("dit", "cond-first", BAND),
        ("pixart", "uncond-first", BLOCK),
        ("merged-heads", "uncond-first", BLOCK),
        ("merged-heads", None, BAND),
        ("single-module", "cond-first", BAND),
    ],
)
def test_mixed_plans(name: str, cfg: str | None, window: Window, tmp_path: Path) -> None:
    model = sample(name, cfg)
    sched = schedule(model.program, recurring(model, window), max_buckets=4)
    used = {str(method) for row in sched.plan.cells for method in row.values()}
    assert len(used) >= (4 if cfg else 3)
    assert max(worst(model, sched, tmp_path / "bundle")) <= TOLERANCE


SCHEDULERS: dict[str, Callable[[], object]] = {
    "flow-match-euler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "ddim": lambda: DDIMScheduler(clip_sample=False),
    "dpm-solver++-2m": lambda: DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", solver_order=2
    ),
}


def looped(model: Sample, scheduler, start: torch.Tensor, denoise, scale: float) -> torch.Tensor:
    """Return the latents of diffusers' own loop: guidance, the scheduler's step, in fp32."""
    scheduler.set_timesteps(STEPS)
    conditional_first = model.program.cfg == "cond-first"
    labels = torch.tensor([3, 10] if conditional_first else [10, 3])
    latents = start
    for step, timestep in enumerate(scheduler.timesteps):
        both = torch.cat([latents, latents])
        if hasattr(scheduler, "scale_model_input"):
            both = scheduler.scale_model_input(both, timestep)
        kwargs = {
            "hidden_states": both,
            "timestep": timestep.float().expand(2),
            "class_labels": labels,
        }
        first, second = denoise(step, kwargs).chunk(2)
        conditional, other = (first, second) if conditional_first else (second, first)
        guided = other + scale * (conditional - other)
        latents = scheduler.step(guided, timestep, latents, return_dict=False)[0]
    return latents


def generated(bundle: Bundle, start: torch.Tensor, scale: float) -> np.ndarray:
    return bundle.generate(
        guidance_scale=scale,
        latents=start.numpy(),
        class_labels=np.array([3]),
        negative={"class_labels": np.array([10])},
    )


@pytest.mark.parametrize("cfg", LAYOUTS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_generates_what_diffusers_does(name: str, cfg: str, tmp_path: Path) -> None:
    model = tiny_dit(cfg)
    sched = schedule(model.program, planned(model.program, *["full"] * STEPS))
    place = compile_bundle(sched, tmp_path / "bundle", sampler=SCHEDULERS[name]())
    start = noise(1, 3, 10, 10, seed=8)

    def denoise(_: int, kwargs: dict[str, object]) -> torch.Tensor:
        with torch.no_grad():
            return model.module(**kwargs).sample

    expected = looped(model, SCHEDULERS[name](), start, denoise, scale=2.5).numpy()
    found = generated(Bundle.open(place, threads=1), start, scale=2.5)
    assert np.abs(found - expected).max() / np.abs(expected).max() <= TOLERANCE


def test_generates_what_a_compressed_session_does(tmp_path: Path) -> None:
    model = tiny_dit("uncond-first")
    methods = ("full", *["ast", "wa-rs"] * 3, "ast")
    sched = schedule(model.program, planned(model.program, *methods, window=BAND))
    name = "dpm-solver++-2m"
    place = compile_bundle(sched, tmp_path / "bundle", sampler=SCHEDULERS[name]())
    start = noise(1, 3, 10, 10, seed=8)
    session = TorchSession(sched)
    expected = looped(
        model, SCHEDULERS[name](), start, lambda k, kwargs: session(k, **kwargs).sample, scale=2.5
    ).numpy()
    found = generated(Bundle.open(place, threads=1), start, scale=2.5)
    assert np.abs(found - expected).max() / np.abs(expected).max() <= TOLERANCE
