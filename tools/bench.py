"""`ditc bench`: time every bucket of a bundle, and what runs before; torch isn't needed."""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from ditc.runtime import Bundle
from ditc.runtime.errors import DitcError
from ditc.runtime.files import MANIFEST_FILE
from ditc.runtime.variants import PIPELINE

from .progress import progress
from .running import example_inputs, open_bundle
from .timing import Timing, timing

__all__ = [
    "bench",
    "bench_record",
    "check_bench_options",
    "check_sites_options",
    "time_buckets",
    "time_prologue",
]


def check_bench_options(options: argparse.Namespace) -> None:
    """Refuse what only holds for sites, and a pipeline without them.

    Raises:
        DitcError: if a bundle is to be timed, and an option is of sites, or what is named is a
            pipeline or no folder.
    """
    place, given = Path(options.what), {"--call": options.call != "{}"}
    given |= {f"--{name}": getattr(options, name) is not None for name in ("window", "samples")}
    for option, is_given in given.items():
        if is_given:
            raise DitcError(f"{option}: is of --sites, a bundle has its own: leave it out")
    if (place / PIPELINE).is_file() and not (place / MANIFEST_FILE).exists():
        raise DitcError(
            f"{place}: is a diffusers pipeline, no bundle: compile it with 'ditc compile', or time "
            "its sites with --sites -o FILE"
        )
    if not place.is_dir():
        raise DitcError(
            f"{place}: is no folder, expected a bundle: compile one there, or time a model's sites "
            "with --sites -o latency.json"
        )


def check_sites_options(options: argparse.Namespace) -> None:
    """Refuse what only holds for bundles.

    Raises:
        DitcError: if sites are to be timed, and an option is of bundles.
    """
    given = {
        "--variant": options.variant is not None,
        "--cuda-graphs": options.cuda_graphs,
        "--json": options.json,
    }
    for option, is_given in given.items():
        if is_given:
            raise DitcError(
                f"{option}: is of bundles, --sites times a model and writes JSON to --out: leave "
                "it out"
            )


def bench(options: argparse.Namespace) -> None:
    """Time the buckets of the bundle that the options name, and print a table or JSON."""
    bundle = open_bundle(options)
    with progress("bench", 1) as advance:
        timings = time_buckets(bundle, options.rounds)
        before = time_prologue(bundle, options.rounds)
        advance()
    if options.json:
        sys.stdout.write(json.dumps(bench_record(bundle, timings, before)) + "\n")
        return
    counts = Counter(run.bucket for run in bundle.manifest.runs)
    sys.stdout.write("bucket    runs   median ms   quartiles ms\n")
    for bucket in bundle.manifest.buckets:
        sys.stdout.write(_row(bucket.name, counts[bucket.name], timings[bucket.name]))
    if before is not None:
        sys.stdout.write(_row("prologue", 1, before))
    whole = _generation_ms(bundle, timings, before)
    sys.stdout.write(f"a generation of {bundle.steps} steps: {whole:.1f} ms in engines\n")
    if bundle.device_bytes is not None:
        sys.stdout.write(f"{bundle.device_bytes / 1e6:.1f} MB of the GPU's memory in use\n")


def bench_record(
    bundle: Bundle, timings: Mapping[str, Timing], before: Timing | None
) -> dict[str, object]:
    """Return what `ditc bench --json` prints, and `ditc report --bench` reads."""
    return {
        "buckets": {name: asdict(found) for name, found in timings.items()},
        "prologue": None if before is None else asdict(before),
        "generation_ms": _generation_ms(bundle, timings, before),
        "device_bytes": bundle.device_bytes,
    }


def _generation_ms(bundle: Bundle, timings: Mapping[str, Timing], before: Timing | None) -> float:
    steps = sum(timings[run.bucket].median_ms for run in bundle.manifest.runs)
    return steps + (0.0 if before is None else before.median_ms)


def _row(name: str, runs: int, found: Timing) -> str:
    spread = f"{found.low_ms:.2f} … {found.high_ms:.2f}"
    return f"{name:<8} {runs:>5}   {found.median_ms:>9.2f}   {spread}\n"


def time_prologue(bundle: Bundle, rounds: int) -> Timing | None:
    """Return the timing of all that runs once before the steps, None where nothing does.

    For a new prompt and, in one call, for all steps; of both calls where a step makes two. The
    bundle's steps have run before, so that their timesteps are known.
    """
    if bundle.manifest.prologue is None:
        return None
    inputs = example_inputs(bundle.manifest)
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        for feed in bundle.feeds.values():
            feed.forget()
            feed(0, inputs)
        taken.append((time.perf_counter() - started) * 1e3)
    return timing(taken)


def time_buckets(bundle: Bundle, rounds: int) -> dict[str, Timing]:
    """Run all steps in order, round after round, and return the timing by bucket.

    A bucket's values are those of all its steps in all rounds; a round ahead warms up, after
    which the prologue knows the timesteps, so that its values are there.
    """
    inputs = [example_inputs(bundle.manifest, step) for step in range(bundle.steps)]
    taken: dict[str, list[float]] = {bucket.name: [] for bucket in bundle.manifest.buckets}
    for number in range(rounds + 1):
        for run in bundle.manifest.runs:
            started = time.perf_counter()
            bundle.step(run.step, run.call, **inputs[run.step])
            if number:
                taken[run.bucket].append((time.perf_counter() - started) * 1e3)
        for feed in bundle.feeds.values():
            feed(0, inputs[0])
    return {name: timing(values) for name, values in taken.items()}
