"""Bench builds of the demo: `python -m ditc.tools.bench_builds [CHANGES] [SEED]`.

Its plan is compiled into an empty cache, then again, then plans that differ from it in one step:
a step is drawn and another method for one site there, then for every site. At the knee of the curve
near the bundle that is replaced, which is what `ditc compile` does; there with steps grouped anew,
which makes further graphs; and without a limit on buckets.
"""

import argparse
import json
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from ditc.export import compile as compile_bundle
from ditc.passes import Method, Plan, Program, schedule
from ditc.passes.nearing import Earlier
from ditc.runtime.errors import PlanError

from .argument_types import positive, seed
from .building import NEAR
from .models import DEMO_PLAN, demo_recording

__all__ = ["changed", "run"]

Limit = Literal["knee"] | None


def changed(plan: Plan, program: Program, draw: random.Random, cells: int | None = None) -> Plan:
    """Return a plan that differs in one step and can run.

    Args:
        plan: the plan to differ from.
        program: what it is for.
        draw: where the step and its methods come from.
        cells: how many sites get another method; None for all.
    """
    while True:
        step = draw.randrange(1, plan.steps)
        sites = draw.sample(plan.sites, cells or len(plan.sites))
        row = dict(plan.cells[step])
        for site in sites:
            row[site] = draw.choice([method for method in Method if method is not row[site]])
        found = replace(plan, cells=(*plan.cells[:step], row, *plan.cells[step + 1 :]))
        with suppress(PlanError):
            found.check(program)
            return found


def run(changes: int, seed: int) -> dict[str, object]:
    """Return seconds of builds, and how many graphs each change built."""
    recording = demo_recording()
    program, plan = recording.capture(), Plan.load(DEMO_PLAN)
    found: dict[str, object] = {"steps": plan.steps, "sites": len(plan.sites)}
    near = schedule(program, plan, "knee").earlier
    kinds: tuple[tuple[str, Limit, Earlier | None], ...] = (
        ("knee", "knee", near),
        ("knee, anew", "knee", None),
        ("all", None, None),
    )
    for name, limit, earlier in kinds:
        with TemporaryDirectory(prefix="ditc-builds-") as folder:
            builder = _Builder(program, recording.scheduler, limit, earlier, Path(folder))
            found[name] = _measured(builder, plan, changes, seed)
    return found


@dataclass(frozen=True)
class _Builder:
    """Compiles plans of one model in a folder."""

    program: Program
    sampler: object
    limit: Limit
    near: Earlier | None
    folder: Path

    def build(self, plan: Plan, cache: str = "cache") -> tuple[float, int, int]:
        """Return seconds, graphs built and buckets of a compile."""
        built: list[str] = []
        start = time.perf_counter()
        sched = schedule(self.program, plan, self.limit, near=self.near, near_most=NEAR)
        compile_bundle(
            sched,
            self.folder / "bundle",
            sampler=self.sampler,
            cache=self.folder / cache,
            log=built.append,
        )
        graphs = sum(line.endswith(": built") for line in built)
        return time.perf_counter() - start, graphs, len(sched.buckets)

    def rebuilt(self, plan: Plan) -> int:
        """Return how many graphs of a plan are built beside those in the cache, which stays."""
        shutil.copytree(self.folder / "cache", self.folder / "copy")
        try:
            return self.build(plan, "copy")[1]
        finally:
            shutil.rmtree(self.folder / "copy")


def _measured(builder: _Builder, plan: Plan, changes: int, seed: int) -> dict[str, object]:
    first, graphs, buckets = builder.build(plan)
    second, again, _ = builder.build(plan)
    draw = random.Random(seed)
    rebuilt: dict[str, object] = {}
    for what, cells in (("one cell", 1), ("one step, all cells", None)):
        plans = [changed(plan, builder.program, draw, cells) for _ in range(changes)]
        counts = Counter(builder.rebuilt(other) for other in plans)
        rebuilt[what] = {f"{count} graphs": number for count, number in sorted(counts.items())}
    return {
        "buckets": buckets,
        "first_seconds": round(first, 2),
        "first_built": graphs,
        "second_seconds": round(second, 3),
        "second_built": again,
        "second_of_first": round(second / first, 4),
        "changes_that_built": rebuilt,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m ditc.tools.bench_builds", description=__doc__)
    parser.add_argument(
        "changes", nargs="?", type=positive, default=10, help="how many plans to change (10)"
    )
    parser.add_argument("seed", nargs="?", type=seed, default=0, help="of the changes (0)")
    options = parser.parse_args(arguments)
    sys.stdout.write(json.dumps(run(options.changes, options.seed), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
