"""Make a small bundle, and what it has to compute: `python -m tests.smoke_bundle FOLDER`.

Beside the bundle lie `inputs.npz` and `steps.npy`, the arguments and results of every step by
eager torch, and `latents.npy`, the result of diffusers' own loop from `start.npy`.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler

from ditc.export import compile as compile_bundle
from ditc.passes import TorchSession, Window, capture, schedule

from . import models
from .compiled import arrays, planned

METHODS = ("full", "wa-rs", "ast", "asc", "wa-rs+asc")
GUIDANCE_SCALE = 3.0


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(clip_sample=False)


def make(place: Path) -> None:
    """Write the bundle and its expectations beside it."""
    kwargs = models.dit_kwargs(batch=2)
    program = capture(models.dit(layers=2), kwargs, cfg="cond-first")
    sched = schedule(program, planned(program, *METHODS, window=Window(3)))
    compile_bundle(sched, place, sampler=scheduler())
    session = TorchSession(sched)
    given = [models.dit_kwargs(seed=step, batch=2) for step in range(sched.steps)]
    results = [session(step, **given[step]).sample.numpy() for step in range(sched.steps)]
    np.save(place.parent / "steps.npy", np.stack(results))
    named = [arrays(program, step) for step in given]
    stacked = {name: np.stack([step[name] for step in named]) for name in named[0]}
    np.savez(place.parent / "inputs.npz", **stacked)
    start = models.noise(1, models.CHANNELS, models.SIZE, models.SIZE, seed=7)
    np.save(place.parent / "start.npy", start.numpy())
    np.save(place.parent / "latents.npy", _loop(session, start).numpy())


def _loop(session: TorchSession, latents: torch.Tensor) -> torch.Tensor:
    sampler = scheduler()
    sampler.set_timesteps(len(METHODS))
    labels = models.dit_kwargs(batch=2)["class_labels"]
    for step, timestep in enumerate(sampler.timesteps):
        both = torch.cat([latents, latents])
        output = session(
            step, hidden_states=both, timestep=timestep.expand(2), class_labels=labels
        ).sample
        conditional, other = output.chunk(2)
        guided = other + GUIDANCE_SCALE * (conditional - other)
        latents = sampler.step(guided, timestep, latents, return_dict=False)[0]
    return latents


if __name__ == "__main__":
    make(Path(sys.argv[1]))
