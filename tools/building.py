"""`ditc compile`: a model and a plan in, a bundle out."""

import argparse
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from ditc.export import capture_decoder
from ditc.export import compile as compile_bundle
from ditc.export.bundle import check_place
from ditc.export.joining import joined
from ditc.export.library import find_library
from ditc.passes import Plan, Program, Schedule, schedule, schedule_cost
from ditc.passes.memory import prologue_bytes, weight_bytes
from ditc.passes.merging import Latencies as SiteMilliseconds
from ditc.passes.nearing import Earlier
from ditc.runtime.errors import DitcError, LoweringError
from ditc.runtime.targets import parse_target

from .counted import counted
from .earlier import earlier_of, replaced
from .latencies import Latencies
from .models import check_steps, load_recording, parse_call
from .progress import progress
from .samples import check_samples
from .windows import windowed, with_windows

__all__ = ["build", "built_of"]

NEAR = 1.1
"""How many times the cost of merging anew it may come to, to stay near what is replaced."""


def build(options: argparse.Namespace) -> None:
    """Compile what the options name and say what came of it.

    Raises:
        DitcError: if model, plan, target or place are at fault; nothing is left behind then.
    """
    call = parse_call(options.call)
    paths = [options.plan] if options.variant is None else [entry[3] for entry in options.variant]
    for path in paths:
        check_steps(call, Plan.load(path).steps, f"the plan {path} has")
    _check(options)
    if options.variant is None:
        _build(options, Plan.load(options.plan), call, options.out, None)
        return
    plans = {name: Plan.load(path) for name, _, _, path in options.variant}
    if len(plans) < len(options.variant):
        raise DitcError("--variant: a resolution is given twice, expected each once")
    calls = {
        name: {**call, "height": height, "width": width}
        for name, height, width, _ in options.variant
    }
    place = joined(
        list(plans),
        options.out,
        lambda name, part: _build(options, plans[name], calls[name], part, name),
    )
    total = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    sys.stdout.write(
        f"{place}: variants {', '.join(plans)}, {total / 1e6:.2f} MB, the weights once\n"
    )


def _check(options: argparse.Namespace) -> None:
    """Check what needs no model, before one is loaded.

    Raises:
        DitcError: if target, weights, place or latencies are at fault.
    """
    target = parse_target(options.target)
    baked = options.weights == "baked"
    if baked and not target.libraries:
        raise DitcError(
            f"--weights baked: target {target} has no engines to hold them: leave it out, or "
            "compile with another --target"
        )
    if target.libraries:
        find_library(target, refit=baked)
    check_place(options.out)
    if options.latency is not None:
        Latencies.load(options.latency)


def _build(
    options: argparse.Namespace,
    plan: Plan,
    call: Mapping[str, object],
    out: Path,
    variant: str | None,
) -> None:
    """Compile a plan into a folder and say what came of it.

    Args:
        options: of the command.
        plan: what to compile.
        call: arguments of the pipeline.
        out: folder to write.
        variant: name of the variant, None for a bundle of one.
    """
    near = None
    if options.near is not None:
        near = earlier_of(options.near, variant)
    elif not options.regroup:
        near = replaced(options.out, variant)
    with progress("capture", 1) as advance:
        recording = load_recording(
            options.model,
            plan.steps,
            call,
            options.samples,
            loaded=options.precision == "fp16",  # its range is checked by running the model
        )
        program = recording.capture()
        check_samples(options.model, program, options.samples)
        if options.window is not None:
            program, windows = windowed(program, options.window)
            plan = with_windows(plan, windows)
        advance()
    most = program.samples if options.dynamic is None else options.dynamic["batch"][1]
    decoder, without = None, ""
    if recording.vae is not None and not options.no_decoder:
        decoder, without = _decoder(recording.vae, program)
    sched = schedule(
        program,
        plan,
        max_buckets=options.max_buckets,
        near=near,
        near_most=math.inf if options.near is not None else NEAR,
        latencies=None if options.latency is None else _measured(options.latency, program, plan),
        ignore_model=options.ignore_model,
    )
    limited = sched

    def foretell(ready: Schedule) -> None:
        nonlocal limited
        limited = ready.on(sched.program)
        lines = [*_foretold(ready, most), _aside(options.near, near, sched), without]
        sys.stdout.write("".join(f"{line}\n" for line in lines if line))
        sys.stdout.flush()

    told: list[str] = []
    parts = 1 if options.target == "onnx" else 2  # graphs, and engines from them
    with progress("compile", parts * len(sched.buckets)) as advance:
        place = compile_bundle(
            sched,
            out,
            target=options.target,
            precision=options.precision,
            sampler=None if recording.obstacles or options.no_sampler else recording.scheduler,
            progress=advance,
            cache=options.cache,
            jobs=options.jobs,
            log=told.append,
            prologue=not options.no_prologue,
            decoder=decoder,
            weights=options.weights,
            dynamic=options.dynamic,
            fold_halves=options.fold_halves,
            fuse_guidance=options.fuse_guidance,
            fold_timesteps=options.fold_timesteps,
            max_slot_bytes=options.max_slot_bytes,
            max_memory_bytes=options.max_memory_bytes,
            foretell=foretell,
            window_kernel=options.window_kernel,
        )
    for obstacle in recording.obstacles:
        sys.stdout.write(f"no sampler in the bundle, which is to be attached: {obstacle}\n")
    built = sum(line.endswith(": built") for line in told)
    graphs = [line for line in told if line.endswith((": built", ": found in the cache"))]
    cost = schedule_cost(limited)
    total = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    sys.stdout.write(
        f"{variant or place}: {counted(len(limited.buckets), 'bucket')} for "
        f"{counted(sched.steps, 'step')}, "
        f"{total / 1e6:.2f} MB, "
        f"{cost.attention_left:.1%} of attention and {cost.model_left:.1%} of the model's "
        f"multiply-adds left\n"
        f"{built_of(built, len(graphs))}\n"
    )
    sys.stdout.writelines(
        f"{line}\n"
        for line in told
        if ": engine " in line or line.startswith(("warning: ", "fp16: "))
    )


def built_of(built: int, of: int) -> str:
    """Say how many of a bundle's graphs were built, and what of the others, if any."""
    text = f"{built} of {counted(of, 'graph')} built"
    return text if built == of else f"{text}, the others found in the cache"


def _decoder(vae: torch.nn.Module, program: Program) -> tuple[Program | None, str]:
    """Capture a pipeline's decoder, or say why the bundle goes without."""
    try:
        with progress("capture the decoder", 1) as advance:
            decoder = capture_decoder(vae, program)
            advance()
    except LoweringError as error:
        return None, f"no decoder in the bundle, which makes latents: {error}"
    return decoder, ""


def _foretold(sched: Schedule, most: int) -> Iterator[str]:
    """Yield what is known before anything is built, of memory for the most samples."""
    if sched.dropped:
        names = ", ".join(slot.name for slot in sched.dropped)
        yield f"{counted(len(sched.dropped), 'slot')} given up, least valuable first: {names}"
    times, weights = most / sched.program.samples, weight_bytes(sched.program)
    kept, slots = prologue_bytes(sched.program) * times, sched.peak_slot_bytes * times
    peak = weights + (sched.peak_bytes - weights) * times
    yield (
        f"in memory at once, predicted for {counted(most, 'sample')}: {peak / 1e6:.2f} MB, of "
        f"which weights take {weights / 1e6:.2f} MB, {counted(len(sched.slots), 'slot')} "
        f"{slots / 1e6:.2f} MB and what the prologue keeps {kept / 1e6:.2f} MB"
    )
    curve, count = sched.curve, len(sched.buckets)
    if curve is not None and count < curve.buckets:
        yield (
            f"{curve.buckets} graphs were merged to {count}, which keeps {curve.kept(count):.1%} "
            f"of what the plan saves and costs {curve.slowdown(count):.2f} x at attention; "
            "--max-buckets all merges none"
        )
        origin = sched.plan.origin
        if origin is not None and origin.goal is not None:
            yield f"the plan was found for {origin.goal}, which counts on graphs that aren't merged"


def _aside(path: Path | None, near: Earlier | None, sched: Schedule) -> str:
    """Say that a bundle that was named isn't stayed near to, if so."""
    if path is None or near is None:
        return ""
    if sched.asked is None:
        return f"--near {path} is left aside: no steps are merged"
    if sched.asked.key != near.asked.key:
        return (
            f"--near {path} is left aside: it was compiled for another model, limit, window or "
            "latencies"
        )
    return ""


def _measured(path: Path, program: Program, plan: Plan) -> SiteMilliseconds:
    """Return measured latencies as merging takes them: by site, of methods and `residual`.

    Raises:
        DitcError: if the file is no latencies, or those of another model or other windows.
    """
    latencies = Latencies.load(path)
    latencies.check(program, plan.windows)
    return {site: found.for_merging() for site, found in latencies.sites.items()}
