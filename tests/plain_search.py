"""Searches by their definition: eager fp64, the whole model run anew for every candidate."""

import copy
from collections.abc import Callable

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from ditc.export import sampler_table
from ditc.passes import Plan
from ditc.runtime.sampler import SamplerTable
from ditc.tools.trajectory import Trajectory

from .reference import Eager
from .samples import Sample

STEPS = 5
ORDER = ("ast", "wa-rs+asc", "wa-rs", "asc")
SCALE = 2.0
Cells = list[dict[str, str]]


def flow(steps: int = STEPS) -> SamplerTable:
    return sampler_table(FlowMatchEulerDiscreteScheduler(), steps)


class PlainRun:
    """One sampling run; `output` tries a step, `go_on` makes it."""

    def __init__(self, model: Sample, seed: int, steps: int = STEPS) -> None:
        plan = Plan.uniform(model.program, steps, "full")
        self.windows = {name: (w.radius, w.block) for name, w in plan.windows.items()}
        self.cells: Cells = [dict.fromkeys(self.windows, "full") for _ in range(steps)]
        cfg = model.program.cfg
        self.eager = Eager(model.module, model.paths(), self.cells, self.windows, cfg)
        self.trajectory = Trajectory(model.program, flow(steps), SCALE, seed)

    def output(self, step: int) -> torch.Tensor:
        before = copy.deepcopy(self.eager.states)
        output = self.eager(step, **self.trajectory.inputs(step))[0]
        self.eager.states = before
        return output

    def site_output(self, step: int, site: str) -> torch.Tensor:
        """Return what a site yields at a step as its cells stand."""
        before = copy.deepcopy(self.eager.states)
        self.eager(step, **self.trajectory.inputs(step))
        output = self.eager.states[site].output
        self.eager.states = before
        assert output is not None
        return output

    def go_on(self, step: int) -> None:
        output = self.eager(step, **self.trajectory.inputs(step))[0]
        self.trajectory.advance(step, output.float())


def searched(
    model: Sample, seed: int, decide: Callable[[PlainRun, int], None], steps: int = STEPS
) -> Cells:
    """Return the cells of a search whose `decide` fills those of a step."""
    run = PlainRun(model, seed, steps)
    for step in range(steps):
        if step:
            decide(run, step)
        run.go_on(step)
    return run.cells


def as_text(plan: Plan) -> Cells:
    return [{site: str(method) for site, method in row.items()} for row in plan.cells]
