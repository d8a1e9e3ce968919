"""`ditc compile`: a model and a plan in, a bundle out."""

import argparse
import sys
from pathlib import Path

from ditc.export import compile as compile_bundle
from ditc.passes import Plan, Program, schedule, schedule_cost
from ditc.passes.merging import Latencies as SiteMilliseconds
from ditc.passes.merging import Merging

from .latencies import Latencies
from .models import load_recording, parse_call
from .progress import progress
from .samples import check_samples

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
        check_samples(options.model, program, options.samples)
        advance()
    sched = schedule(
        program,
        plan,
        max_buckets=options.max_buckets,
        max_slot_bytes=options.max_slot_bytes,
        latencies=None if options.latency is None else _measured(options.latency, program, plan),
        ignore_model=options.ignore_model,
    )
    if sched.dropped:
        names = ", ".join(slot.name for slot in sched.dropped)
        sys.stdout.write(f"{len(sched.dropped)} slots given up, least valuable first: {names}\n")
    built: list[str] = []
    with progress("compile", len(sched.buckets)) as advance:
        place = compile_bundle(
            sched,
            options.out,
            target=options.target,
            precision=options.precision,
            sampler=None if recording.obstacles else recording.scheduler,
            progress=advance,
            cache=options.cache,
            jobs=options.jobs,
            log=lambda line: built.append(line) if line.endswith(": built") else None,
        )
    for obstacle in recording.obstacles:
        sys.stdout.write(f"no sampler in the bundle, which is to be attached: {obstacle}\n")
    cost = schedule_cost(sched)
    curve = Merging(plan).curve()
    total = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    sys.stdout.write(
        f"{place}: {len(sched.buckets)} buckets for {sched.steps} steps, {total / 1e6:.2f} MB, "
        f"{cost.attention_left:.1%} of attention and {cost.model_left:.1%} of the model's "
        f"multiply-adds left, {sched.peak_slot_bytes / 1e6:.2f} MB of slots\n"
        f"{len(built)} of {len(sched.buckets)} graphs built, the others found in the cache\n"
    )
    if len(sched.buckets) < curve.buckets:
        sys.stdout.write(
            f"{curve.buckets} graphs were merged to {len(sched.buckets)}, which keeps "
            f"{curve.kept(len(sched.buckets)):.1%} of what the plan saves; "
            "--max-buckets all merges none\n"
        )


def _measured(path: Path, program: Program, plan: Plan) -> SiteMilliseconds:
    """Return measured latencies as merging takes them: by site, of methods and `residual`.

    Raises:
        DitcError: if the file is no latencies, or those of another model or other windows.
    """
    latencies = Latencies.load(path)
    latencies.check(program, plan.windows)
    return {site: found.for_merging() for site, found in latencies.sites.items()}
