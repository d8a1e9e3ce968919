"""Bundles that several tests look at, each compiled once in a run."""

import atexit
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from ditc.export import compile as compile_bundle
from ditc.passes import Plan, Program, Schedule, Window, capture, schedule
from ditc.tools.cli import main

from . import models
from .samples import Sample, sample

Array = npt.NDArray[np.generic]


@lru_cache
def workshop() -> Path:
    """Return a folder that is gone when the tests are."""
    folder = Path(tempfile.mkdtemp(prefix="ditc-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def planned(program: Program, *methods: str, window: Window | None = None) -> Plan:
    """Return a plan whose step k uses the k-th method at every eligible site."""
    plan = Plan.uniform(program, len(methods), "full", window=window)
    for step, method in enumerate(methods):
        for site in plan.sites:
            plan = plan.replace(step, site, method)
    return plan


def arrays(program: Program, kwargs: models.Kwargs) -> dict[str, Array]:
    """Return a call's arguments as a bundle takes them."""
    tensors = program.bind(kwargs)
    return {entry.name: t.numpy() for entry, t in zip(program.inputs, tensors, strict=True)}


@lru_cache
def small_schedule() -> Schedule:
    """Four steps of four graphs: full, window, shared across CFG, shared across steps."""
    program = sample("small", "cond-first").program
    return schedule(program, planned(program, "full", "wa-rs", "asc", "ast", window=Window(3)))


@lru_cache
def small_bundle() -> Path:
    return compile_bundle(small_schedule(), workshop() / "small")


@lru_cache
def tiny_dit(cfg: str | None = "cond-first") -> Sample:
    """Return a DiT of one layer whose timestep is a float, as flow matching wants it."""
    module = models.dit(layers=1)
    kwargs = models.dit_kwargs(batch=2)
    kwargs["timestep"] = torch.full((2,), 500.0)
    return Sample("dit", module, capture(module, kwargs, cfg=cfg))


@lru_cache
def sampling_bundle() -> Path:
    """Return a bundle that samples in three steps of two graphs."""
    program = tiny_dit().program
    sched = schedule(program, planned(program, "full", "ast", "ast"))
    sampler = FlowMatchEulerDiscreteScheduler()
    return compile_bundle(sched, workshop() / "sampling", sampler=sampler)


@lru_cache
def demo_bundle() -> Path:
    """Return a bundle of the shipped model, compiled by the command; two graphs."""
    from ditc.tools.models import demo_recording

    program = demo_recording().capture()
    plan = workshop() / "demo-plan.json"
    planned(program, "full", "ast", "ast").save(plan)
    place = workshop() / "demo"
    assert main(["compile", "demo", "--plan", str(plan), "-o", str(place)]) == 0
    return place
