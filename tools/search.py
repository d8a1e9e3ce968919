"""Search a plan greedily, exactly as the paper does.

Source: DiTFastAttn (arXiv 2406.08552), section 3.4: step by step, layer by layer, the most
aggressive method whose error on the whole model's output stays under a threshold.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version

import numpy as np

from ditc.passes import Method, Origin, Plan, Program, Window
from ditc.passes.pieces import cut
from ditc.runtime.errors import PlanError
from ditc.runtime.sampler import SamplerTable

from .decisions import METRIC, Checkpoint, Decided, Found
from .stepping import StepSearch
from .trajectory import Trajectory

__all__ = ["greedy"]

LARGEST_SCALE = 1e12  # that a plan may state


def greedy(
    program: Program,
    table: SamplerTable,
    threshold: float,
    *,
    guidance_scale: float = 1.0,
    seed: int = 0,
    windows: Mapping[str, Window] | None = None,
    resume: Checkpoint | None = None,
    on_step: Callable[[Checkpoint], object] | None = None,
) -> Found:
    """Find a plan: step by step, site by site, the first candidate under the threshold.

    Args:
        program: the captured model, its batch the calibration samples (twice with CFG); the
            conditioning is what it was captured with.
        table: the sampler, whose number of steps is the plan's.
        threshold: δ; site i of M may err by δ·i/M on the whole model's output.
        guidance_scale: scale of classifier-free guidance; ignored without.
        seed: of the initial latents and the sampler's noise.
        windows: window of each site to compress, the default one of every eligible site if None.
        resume: where an earlier search with the same arguments was; it goes on behind that, to
            the very same plan.
        on_step: called after each step with where the search is.

    Raises:
        PlanError: if threshold or guidance scale are no numbers for it, nothing is eligible, or
            the model returns numbers that aren't finite.
    """
    if not (np.isfinite(threshold) and threshold > 0):
        raise PlanError(f"threshold is {threshold}, expected a positive number")
    if not abs(guidance_scale) <= LARGEST_SCALE:
        raise PlanError(
            f"guidance scale is {guidance_scale}, expected a number up to {LARGEST_SCALE:g}"
        )
    plan = Plan.uniform(program, table.steps, Method.FULL, scheduler=table.scheduler)
    chosen = dict(plan.windows) if windows is None else dict(windows)
    if not chosen:
        raise PlanError("the program has no site that can be compressed")
    trajectory = Trajectory(program, table, guidance_scale, seed)
    search = StepSearch(program, cut(program, chosen), chosen, threshold)
    record: list[Decided] = []
    if resume is not None and resume.steps:
        record.extend(resume.steps)
        search.restore(resume.slots, resume.steps[-1])
        trajectory.restore(len(record), resume.trajectory)
    for step in range(len(record), table.steps):
        new, output = search.decide(step, trajectory.inputs(step))
        record.append(new)
        trajectory.advance(step, output)
        if on_step is not None:
            on_step(Checkpoint(tuple(record), search.snapshot(), trajectory.snapshot()))
    found = replace(
        plan,
        windows=chosen,
        cells=tuple(step.methods for step in record),
        losses=tuple(step.losses for step in record),
        guidance_scale=guidance_scale if program.cfg else None,
        origin=Origin("greedy", threshold, METRIC, seed, trajectory.samples, version("ditc")),
    )
    found.check(program)
    return Found(found, search.multiply_adds, search.plain_multiply_adds)
