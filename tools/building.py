"""`ditc compile`: a model and a plan in, a bundle out."""

import argparse
import sys

from ditc.export import compile as compile_bundle
from ditc.passes import Plan, schedule, schedule_cost

from .models import load_recording, parse_call
from .progress import progress

__all__ = ["build"]


def build(options: argparse.Namespace) -> None:
    """Compile what the options name and say what came of it.

    Raises:
        DitcError: if model, plan, target or place are at fault; nothing is left behind then.
    """
    plan = Plan.load(options.plan)
    call = parse_call(options.call)
    with progress("capture", 1) as advance:
        recording = load_recording(options.model, plan.steps, call, options.samples)
        program = recording.capture()
        advance()
    sched = schedule(
        program, plan, max_buckets=options.max_buckets, ignore_model=options.ignore_model
    )
    with progress("compile", len(sched.buckets)) as advance:
        place = compile_bundle(
            sched,
            options.out,
            target=options.target,
            precision=options.precision,
            sampler=recording.scheduler,
            progress=advance,
        )
    cost = schedule_cost(sched)
    total = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    sys.stdout.write(
        f"{place}: {len(sched.buckets)} buckets for {sched.steps} steps, {total / 1e6:.2f} MB, "
        f"{cost.attention_left:.1%} of attention and {cost.model_left:.1%} of the model's "
        f"multiply-adds left, {sched.peak_slot_bytes / 1e6:.2f} MB of slots\n"
    )
