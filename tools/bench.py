"""`ditc bench`: time every bucket of a bundle; torch isn't needed."""

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import asdict

from ditc.runtime import Bundle

from .progress import progress
from .running import example_inputs, open_bundle
from .timing import Timing, timing

__all__ = ["bench", "time_buckets"]


def bench(options: argparse.Namespace) -> None:
    """Time the buckets of the bundle that the options name, and print a table or JSON."""
    bundle = open_bundle(options)
    with progress("bench", 1) as advance:
        timings = time_buckets(bundle, options.rounds)
        advance()
    counts = Counter(run.bucket for run in bundle.manifest.runs)
    whole = sum(timings[name].median_ms * count for name, count in counts.items())
    if options.json:
        record = {
            "buckets": {name: asdict(found) for name, found in timings.items()},
            "generation_ms": whole,
            "device_bytes": bundle.device_bytes,
        }
        sys.stdout.write(json.dumps(record) + "\n")
        return
    sys.stdout.write("bucket    runs   median ms   quartiles ms\n")
    for bucket in bundle.manifest.buckets:
        found = timings[bucket.name]
        spread = f"{found.low_ms:.2f} … {found.high_ms:.2f}"
        sys.stdout.write(
            f"{bucket.name:<8} {counts[bucket.name]:>5}   {found.median_ms:>9.2f}   {spread}\n"
        )
    sys.stdout.write(f"a generation of {bundle.steps} steps: {whole:.1f} ms in engines\n")
    if bundle.device_bytes is not None:
        sys.stdout.write(f"{bundle.device_bytes / 1e6:.1f} MB of the GPU's memory in use\n")


def time_buckets(bundle: Bundle, rounds: int) -> dict[str, Timing]:
    """Run all steps in order, round after round, and return the timing by bucket.

    A bucket's values are those of all its steps in all rounds; a round ahead warms up.
    """
    inputs = [example_inputs(bundle.manifest, step) for step in range(bundle.steps)]
    taken: dict[str, list[float]] = {bucket.name: [] for bucket in bundle.manifest.buckets}
    for number in range(rounds + 1):
        for run in bundle.manifest.runs:
            started = time.perf_counter()
            bundle.step(run.step, run.call, **inputs[run.step])
            if number:
                taken[run.bucket].append((time.perf_counter() - started) * 1e3)
    return {name: timing(values) for name, values in taken.items()}
