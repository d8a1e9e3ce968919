"""Search a plan: greedily as the paper does, locally, or by a 0/1 program a step.

Sources: DiTFastAttn (arXiv 2406.08552), section 3.4: step by step, layer by layer, the most
aggressive method whose error on the whole model's output stays under a threshold; DiTFastAttnV2
(arXiv 2503.22796): errors at the layer itself, and a 0/1 program.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Protocol

import numpy as np
import torch

from ditc.passes import Method, Origin, Plan
from ditc.passes.plan_fields import MAX_NUMBER, MAX_SEED
from ditc.runtime.errors import PlanError
from ditc.runtime.sampler import SamplerTable

from .decisions import METRICS, Checkpoint, Decided, Found, check_finite
from .ilp_steps import IlpSteps
from .local_steps import LocalSteps
from .space import Space
from .stepping import GreedySteps
from .trajectory import Trajectory

__all__ = ["SEARCHES", "find"]


class Steps(Protocol):
    """What decides the steps of a search."""

    multiply_adds: int
    plain_multiply_adds: int

    def decide(self, step: int, inputs: Mapping[str, torch.Tensor]) -> tuple[Decided, torch.Tensor]:
        """Decide every site of a step, and return its output too."""

    def snapshot(self) -> Mapping[str, torch.Tensor]:
        """Return the tensors to go on from."""

    def restore(self, snapshot: Mapping[str, torch.Tensor], steps: Sequence[Decided]) -> None:
        """Go on from a snapshot, behind the last of the steps."""


SEARCHES: Mapping[str, Callable[[Space, float], Steps]] = {
    "greedy": GreedySteps,
    "local": LocalSteps,
    "ilp": IlpSteps,
}
"""The searches by name, in the order of what they cost, dearest first."""


def find(
    search: str,
    space: Space,
    table: SamplerTable,
    threshold: float,
    *,
    guidance_scale: float = 1.0,
    seed: int = 0,
    resume: Checkpoint | None = None,
    on_step: Callable[[Checkpoint], object] | None = None,
) -> Found:
    """Find a plan, step by step; sampling goes on from the compressed output.

    - `greedy`: a site takes the first candidate whose loss on the whole model's output is under
      δ·i/M for site i of M. Sees what later layers do with an error; costs about a run of the
      model for every candidate.
    - `local`: the same candidates, order and thresholds, but what has to be under them is the
      relative squared error of the site's own output. Blind to later layers; costs one run of the
      model a step and the sites' other forms.
    - `ilp`: in each step the methods that save most while the sites' relative squared errors, each
      measured with all other sites full, add up to δ at most; one that errs 1.5·δ/M or more by
      itself is ruled out. Costs two runs of the model a step and the sites' other forms.

    Args:
        search: `greedy`, `local` or `ilp`.
        space: what it may choose from; the conditioning is what the program was captured with.
        table: the sampler, whose number of steps is the plan's.
        threshold: δ, a positive number; of another scale for `local` and `ilp`, whose errors
            are squared.
        guidance_scale: scale of classifier-free guidance; ignored without.
        seed: of the initial latents and the sampler's noise.
        resume: where an earlier search with the same arguments was; it goes on behind that, to
            the very same plan.
        on_step: called after each step with where the search is.

    Raises:
        PlanError: if search, threshold, guidance scale or seed are none that it knows, or the
            model returns numbers that aren't finite.
    """
    if search not in SEARCHES:
        raise PlanError(f"search {search!r} is not known: expected {', '.join(SEARCHES)}")
    if not 0 < threshold <= MAX_NUMBER:
        raise PlanError(
            f"threshold is {threshold}, expected a positive number up to {MAX_NUMBER:g}"
        )
    if not abs(guidance_scale) <= MAX_NUMBER:
        raise PlanError(
            f"guidance scale is {guidance_scale}, expected a number up to {MAX_NUMBER:g}"
        )
    if not 0 <= seed <= MAX_SEED:
        raise PlanError(f"seed is {seed}, expected an integer from 0 to {MAX_SEED}")
    program = space.program
    trajectory = Trajectory(program, table, guidance_scale, seed)
    steps = SEARCHES[search](space, threshold)
    record: list[Decided] = []
    if resume is not None and resume.steps:
        record.extend(resume.steps)
        steps.restore(resume.slots, resume.steps)
        trajectory.restore(len(record), resume.trajectory)
    for step in range(len(record), table.steps):
        new, output = steps.decide(step, trajectory.inputs(step))
        record.append(new)
        trajectory.advance(step, output)
        check_finite(f"step {step}", bool(np.isfinite(trajectory.latents).all()))
        if on_step is not None:
            on_step(Checkpoint(tuple(record), steps.snapshot(), trajectory.snapshot()))
    metric, samples = METRICS[search], trajectory.samples
    found = replace(
        Plan.uniform(program, table.steps, Method.FULL, scheduler=table.scheduler),
        windows=space.windows,
        cells=tuple(step.methods for step in record),
        losses=tuple(step.losses for step in record),
        guidance_scale=guidance_scale if program.cfg else None,
        origin=Origin(search, threshold, metric, seed, samples, version("ditc"), space.gate),
    )
    found.check(program)
    return Found(found, steps.multiply_adds, steps.plain_multiply_adds, trajectory.latents)
