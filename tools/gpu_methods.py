"""Latency of each method at one site, and of whole denoisers under the paper's shares of them."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

from ditc.passes import Bucket, Method, Plan, Program, Schedule, TorchSession, capture, schedule

from .gpu_entries import Entry, Values, attempt
from .gpu_models import Attention, Denoiser, ModelShape, arguments, seeded
from .gpu_plans import LEVELS, attention_left, plan_with
from .gpu_timing import timed

__all__ = ["PAPER_LEFT", "PAPER_TOTAL", "methods", "model_entries"]

PAPER_LEFT: Mapping[int, Mapping[str, int]] = {
    1024: {"asc": 59, "wa-rs": 85, "wa-rs+asc": 51, "ast": 4},
    4096: {"asc": 54, "wa-rs": 54, "wa-rs+asc": 31, "ast": 3},
    16384: {"asc": 52, "wa-rs": 35, "wa-rs+asc": 19, "ast": 1},
}
"""Latency left in percent, of DiTFastAttn (arXiv 2406.08552) on an A100, by tokens."""

PAPER_TOTAL: Mapping[str, Mapping[str, float]] = {
    "PixArt-Sigma-1K": {"D2": 12.76 / 11.98, "D4": 12.76 / 11.06, "D6": 12.76 / 10.31},
    "PixArt-Sigma-2K": {"D2": 39.86 / 31.44, "D4": 39.86 / 26.18, "D6": 39.86 / 22.27},
}
"""Times as fast as uncompressed, end to end, of the same paper; it has none for DiT."""

STEPS: Mapping[int, tuple[Method, str]] = {
    0: (Method.FULL, "full, keeping the residual"),
    1: (Method.WA_RS, "wa-rs"),
    2: (Method.ASC, "asc, keeping the residual"),
    3: (Method.WA_RS_ASC, "wa-rs+asc"),
    4: (Method.FULL, "full"),
    5: (Method.ASC, "asc"),
    6: (Method.FULL, ""),
    7: (Method.AST, "ast"),
}
"""Steps of a plan that shows every method, with and without a residual to keep."""


class _Site(nn.Module):
    """One attention with its projections, added to what it is given."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        added: torch.Tensor = x + self.attn(x)
        return added


def methods(shape: ModelShape, dtype: torch.dtype, device: str, rounds: int) -> Iterator[Entry]:
    """Yield an entry for each method at a site of that shape, all timed in turn."""
    title = f"{shape.batch} x {shape.tokens} tokens, width {shape.width}, {shape.heads} heads"
    times: dict[str, float] = {}

    def measure() -> Values:
        module = seeded(_Site(shape.width, shape.heads)).to(dtype)
        drawn = torch.Generator().manual_seed(0)
        x = torch.randn(shape.batch, shape.tokens, shape.width, generator=drawn).to(dtype)
        program = capture(module, {"x": x}, cfg="uncond-first")
        plan = Plan.uniform(program, len(STEPS), Method.FULL)
        for step, (method, _) in STEPS.items():
            plan = plan.replace(step, program.sites[0].name, method)
        sched = TorchSession(schedule(program, plan), device).schedule
        runs = {
            name: _graph_run(sched.program, sched.bucket_of(step))
            for step, (_, name) in STEPS.items()
            if name
        }
        times.update((name, found.median_ms) for name, found in timed(runs, device, rounds).items())
        return {"median_ms": times["full"], "left_percent": 100.0}

    yield attempt("methods", f"{title}: full", measure)
    for name in times:
        if name == "full":
            continue
        values: dict[str, float] = {
            "median_ms": times[name],
            "left_percent": 100 * times[name] / times["full"],
        }
        paper = PAPER_LEFT.get(shape.tokens, {}).get(name)
        if paper is not None:
            values["paper_left_percent"] = paper
        yield Entry("methods", f"{title}: {name}", "measured", values)


def _graph_run(program: Program, bucket: Bucket) -> Callable[[], object]:
    """Return a run of a bucket's graph on the program's example, its slots filled with noise."""
    inputs = [program.example[entry.name] for entry in program.inputs]
    device = inputs[0].device
    slots = [torch.randn(slot.shape, device=device).to(slot.dtype) for slot in bucket.reads]

    def run() -> object:
        with torch.no_grad():
            return bucket.graph_module(*inputs, *slots)

    return run


def model_entries(
    name: str, shape: ModelShape, dtype: torch.dtype, device: str, rounds: int, steps: int
) -> Iterator[Entry]:
    """Yield an entry for a denoiser uncompressed and at each level, whole generations in turn."""
    made: dict[str, Values] = {}

    def measure() -> Values:
        program = capture(
            seeded(Denoiser(shape)).to(dtype), arguments(shape, 0, dtype), cfg="uncond-first"
        )
        plans = {"full": Plan.uniform(program, steps, Method.FULL)}
        for level, left in LEVELS[name].items():
            plans[level] = plan_with(program, steps, left)
        full = TorchSession(schedule(program, plans["full"]), device)
        scheds = {
            level: schedule(program, plan).on(full.schedule.program)
            for level, plan in plans.items()
        }
        runs = {level: _generation(sched, shape, dtype, device) for level, sched in scheds.items()}
        found = timed(runs, device, rounds)
        for level, timing in found.items():
            made[level] = {
                "generation_ms": timing.median_ms,
                "low_ms": timing.low_ms,
                "high_ms": timing.high_ms,
                "times_as_fast": timing.ratio_to(found["full"]),
                "attention_left_percent": 100 * attention_left(plans[level], program),
                "buckets": len(scheds[level].buckets),
                "slot_bytes": scheds[level].peak_slot_bytes,
            }
        return made["full"]

    title = f"{name}, batch {shape.batch}, {steps} steps"
    yield attempt("models", f"{title}: full", measure)
    for level in LEVELS[name]:
        if level not in made:
            continue
        paper = PAPER_TOTAL.get(name, {}).get(level)
        beside = {} if paper is None else {"paper_times_as_fast": paper}
        yield Entry("models", f"{title}: {level}", "measured", {**made[level], **beside})


def _generation(
    sched: Schedule, shape: ModelShape, dtype: torch.dtype, device: str
) -> Callable[[], object]:
    """Return a run of all steps on the same latents: nothing but the denoiser is timed."""
    session = TorchSession(sched)
    given = arguments(shape, 0, dtype, device)

    def run() -> object:
        session.reset()
        return [session(step, **given) for step in range(sched.steps)]

    return run
