"""Compile FLUX.1-dev at full size from made-up weights on disk; print time and peak memory.

python -m ditc.tools.bench_big_model --folder /tmp/flux --target onnx

Needs twice 24 GB of disk, which it gives back; `--keep` keeps weights and bundle.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ditc.export import compile as compile_bundle
from ditc.passes import Plan, Program, schedule

from .argument_types import positive
from .big_models import flux_recording, make_flux_weights
from .peak_memory import peak_memory

__all__ = ["main", "three_graphs"]


def three_graphs(program: Program) -> Plan:
    """Return a plan of three graphs: all full; windows throughout; every second site shared."""
    plan = Plan.uniform(program, steps=3, method="wa-rs")
    for site in plan.sites[::2]:
        plan = plan.replace(step=2, site=site, method="ast")
    return plan


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 once the bundle is there."""
    parser = argparse.ArgumentParser(
        prog="python -m ditc.tools.bench_big_model", description=__doc__
    )
    parser.add_argument("--folder", type=Path, required=True, help="where weights and bundle go")
    parser.add_argument("--target", default="onnx", help="as for ditc compile (onnx)")
    parser.add_argument("--precision", default="bf16", help="as for ditc compile (bf16)")
    parser.add_argument("--side", type=positive, default=64, help="patches along each edge (64)")
    parser.add_argument("--jobs", type=positive, help="graphs to build at once")
    parser.add_argument("--keep", action="store_true", help="leave weights and bundle there")
    given = parser.parse_args(arguments)
    model, bundle, cache = (given.folder / name for name in ("model", "bundle", "cache"))
    try:
        if not (model / "model.safetensors.index.json").exists():
            make_flux_weights(model)
        report = _measured(given, model, bundle, cache)
    finally:
        if not given.keep:
            for made in (model, bundle, cache):
                shutil.rmtree(made, ignore_errors=True)
    print(json.dumps(report, indent=1))
    return 0


def _measured(
    given: argparse.Namespace, model: Path, bundle: Path, cache: Path
) -> dict[str, object]:
    began = time.perf_counter()
    with peak_memory() as peak:
        program = flux_recording(model, given.side).capture()
        captured = time.perf_counter()
        sched = schedule(program, three_graphs(program))
        place = compile_bundle(
            sched,
            bundle,
            given.target,
            given.precision,
            cache=cache,
            jobs=given.jobs,
            log=lambda line: print(
                f"{time.perf_counter() - began:6.1f} s: {line}", file=sys.stderr
            ),
        )
    total = time.perf_counter() - began
    return {
        "target": given.target,
        "precision": given.precision,
        "buckets": len(sched.buckets),
        "capture_seconds": round(captured - began, 1),
        "seconds": round(total, 1),
        "seconds_a_bucket": round(total / len(sched.buckets), 1),
        "peak_bytes_largest_process": peak.largest,
        "peak_bytes_all_processes": peak.together,
        "files": {
            path.relative_to(place).as_posix(): path.stat().st_size
            for path in sorted(place.rglob("*"))
            if path.is_file()
        },
    }


if __name__ == "__main__":
    sys.exit(main())
