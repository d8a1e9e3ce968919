"""Build engines of large models: `python -m ditc.tools.bench_engines [MODEL …] [-o FILE.json]`.

One bucket for each method, all sites alike, without a GPU and without a weight: what a build
takes, and how large its plan is beside the weights it will be given. `--buckets K` builds K
buckets of mixed methods in their place.
"""

import argparse
import json
import lzma
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from ditc.export.building import Job, build
from ditc.export.cache import EngineCache, default_cache, key_of
from ditc.export.engine_file import EngineFile
from ditc.export.engines import XZ_PRESET
from ditc.export.forms import ENGINE
from ditc.export.library import find_library
from ditc.export.lowered import Lowered
from ditc.export.tensorrt import EngineJob, build_engines, decomposed_sites
from ditc.export.weight_inputs import with_weight_inputs
from ditc.passes import Bucket, Program, Schedule, Window, schedule
from ditc.passes.fingerprint import program_digest
from ditc.runtime.targets import parse_target

from .argument_types import positive
from .large_models import LARGE, Large
from .method_plans import SPARING, drawn_methods, each_method

__all__ = ["bench_engines"]


@dataclass(frozen=True)
class Row:
    """An engine that was built.

    Attributes:
        model: its key in `LARGE`.
        bucket: name of its bucket.
        methods: those of its sites.
        lower_seconds: to make its graph; 0 where it was found in the cache.
        build_seconds: to build its engine.
        peak_bytes: of memory the engine's build held.
        plan_bytes: of the engine.
        stored_bytes: of the engine as a bundle holds it, compressed.
        weight_bytes: of the weights it takes.
        decomposed: sites without a dedicated kernel.
    """

    model: str
    bucket: str
    methods: str
    lower_seconds: float
    build_seconds: float
    peak_bytes: int
    plan_bytes: int
    stored_bytes: int
    weight_bytes: int
    decomposed: int


def bench_engines(
    name: str,
    target: str,
    cache: EngineCache,
    buckets: int | None,
    methods: Sequence[str] = SPARING,
) -> list[Row]:
    """Build the engines of a model and return what each took.

    Raises:
        DitcError: if one can't be built.
    """
    model = LARGE[name]
    started = time.monotonic()
    program = model.program()
    _say(f"{model.title}: captured in {time.monotonic() - started:.1f} s, {_peak()}")
    sched = _schedule(model, program, buckets, methods)
    rows = []
    for bucket in sched.buckets:  # one after the other, so that what each took can be told
        started = time.monotonic()
        key = _key(bucket)
        found = build(
            [Job(bucket.name, key, partial(ENGINE.lower, bucket))], cache, 1, lambda *_: None
        )
        seconds = time.monotonic() - started
        lowered = found[bucket.name]
        job = EngineJob(bucket.name, with_weight_inputs(lowered.graph))
        made = build_engines(find_library(parse_target(target)), [job], cache, 1, _ignore)
        rows.append(_row(name, bucket, seconds, lowered, made[bucket.name]))
        _say(_line(rows[-1]))
    return rows


def _schedule(
    model: Large, program: Program, buckets: int | None, methods: Sequence[str]
) -> Schedule:
    if buckets is None:
        return schedule(program, each_method(program, methods, Window(model.radius)))
    return schedule(program, drawn_methods(program, buckets, Window(model.radius)))


def _key(bucket: Bucket) -> str:
    parts = (bucket.methods, bucket.plan.windows, bucket.keep_outputs, bucket.keep_residuals)
    return key_of(
        "bench engines", program_digest(bucket.program), *(_sorted(part) for part in parts)
    )


def _sorted(part: Mapping[str, object] | frozenset[str]) -> list[object]:
    return list(sorted(part.items()) if isinstance(part, Mapping) else sorted(part))


def _row(name: str, bucket: Bucket, seconds: float, lowered: Lowered, engine: EngineFile) -> Row:
    weights = (source.like(bucket.program) for source in lowered.weights.values())
    methods = sorted({str(method) for method in bucket.methods.values()})
    return Row(
        model=name,
        bucket=bucket.name,
        methods=" ".join(methods) + (" → residual" if bucket.keep_residuals else ""),
        lower_seconds=seconds,
        build_seconds=engine.seconds,
        peak_bytes=engine.peak_bytes,
        plan_bytes=len(engine.plan),
        stored_bytes=len(lzma.compress(engine.plan, preset=XZ_PRESET)),
        weight_bytes=sum(
            t.numel() * t.element_size() for t in (*weights, *lowered.constants.values())
        ),
        decomposed=len(decomposed_sites({bucket.name: engine})),
    )


def _line(row: Row) -> str:
    return (
        f"{row.model:<11} {row.bucket} {row.methods:<24} lowered {row.lower_seconds:6.1f} s  "
        f"built {row.build_seconds:6.1f} s  {row.peak_bytes / 1e6:7.0f} MB  plan "
        f"{row.plan_bytes / 1e6:7.2f} MB ({row.stored_bytes / 1e6:.2f} stored)  "
        f"weights {row.weight_bytes / 1e6:9.1f} MB  "
        f"{row.decomposed} sites decomposed"
    )


def _ignore(*_: object) -> None: ...


def _peak() -> str:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return f"{peak / 1e6:.0f} MB at the peak"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, and write a table and JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m ditc.tools.bench_engines",
        description="Build engines of large models, without a GPU.",
    )
    parser.add_argument(
        "models", nargs="*", choices=[*LARGE, []], metavar="MODEL", help=", ".join(LARGE)
    )
    parser.add_argument("--target", default="tensorrt-rtx:sm89", help="(tensorrt-rtx:sm89)")
    parser.add_argument("--buckets", type=positive, help="of mixed methods, not one a method")
    parser.add_argument(
        "--method", action="append", choices=SPARING, help="beside full, all of them if none"
    )
    parser.add_argument("--cache", type=Path, default=default_cache(), help="(~/.cache/ditc)")
    parser.add_argument("-o", "--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    cache = EngineCache(options.cache)
    rows: list[Row] = []
    for name in options.models or LARGE:
        rows += bench_engines(
            name, options.target, cache, options.buckets, options.method or SPARING
        )
        if options.out is not None:
            record = [asdict(row) for row in rows]
            options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    _say(_peak())
    return 0


if __name__ == "__main__":
    sys.exit(main())
