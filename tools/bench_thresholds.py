"""What thresholds buy on the demo model: `python -m ditc.tools.bench_thresholds`.

Every search at every threshold is searched, compiled and run; beside each plan stands what a user
could do instead at the same time: the same sampler with fewer steps and nothing compressed. Times
are ratios, both sides in turn; images are one a class, each from its own seed.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ditc.export import compile as compile_bundle
from ditc.export import sampler_table
from ditc.passes import Plan, Schedule, schedule, schedule_cost
from ditc.runtime import Bundle
from ditc.runtime.errors import DitcError

from .argument_types import positive
from .bench_sites import measure
from .demo import CALIBRATION, GUIDANCE_SCALE, SEED, STEPS
from .demo_runs import image_of, images_of, steps_beside_torch
from .glyphs import CLASSES, load_classifier, share_read
from .latencies import Latencies
from .models import demo_recording
from .progress import progress
from .quality import closeness
from .search import SEARCHES, find
from .space import Space, space_of
from .timing import in_turn

__all__ = ["Row", "Skipped", "main", "markdown"]

THRESHOLDS = (0.025, 0.05, 0.075, 0.1, 0.125, 0.15)
SITE_ROUNDS = 30
TIMED_CLASS = 3
Images = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Skipped:
    """The uncompressed model at fewer steps.

    Attributes:
        steps: how many.
        ssim: of its images against those of all steps.
        accuracy: share of glyphs that the classifier reads as the class asked for.
    """

    steps: int
    ssim: float
    accuracy: float


@dataclass(frozen=True)
class Row:
    """What a search found at a threshold, and what that does.

    Attributes:
        search: name of the search.
        threshold: δ.
        search_s: wall time of the search.
        attention_left: share of the attention sites' multiply-adds that is left.
        predicted: speedup that the whole model's multiply-adds promise.
        speedup: measured against the uncompressed engine.
        ssim: of the images against the uncompressed ones.
        accuracy: share of glyphs that the classifier reads as the class asked for.
        parity: largest difference of the engines from PyTorch running the same schedule, over all
            steps, relative to the largest output.
        skipped: the uncompressed model at as many steps as take the same time.
    """

    search: str
    threshold: float
    search_s: float
    attention_left: float
    predicted: float
    speedup: float
    ssim: float
    accuracy: float
    parity: float
    skipped: Skipped


class _Bench:
    """The demo model, its uncompressed engine and images, and what was made of it so far."""

    def __init__(self, folder: Path, rounds: int) -> None:
        self._folder = folder
        self._rounds = rounds
        self._recording = demo_recording()
        self._program = self._recording.capture()
        self.latencies = measure(space_of(self._program), SITE_ROUNDS)
        self._space = _space(self.latencies)
        self._skipped: dict[int, Skipped] = {}
        full = schedule(self._program, Plan.uniform(self._program, STEPS, "full"))
        self._plain = self._compiled(full, "plain")
        self._images = images_of(self._plain)

    def row(self, search: str, threshold: float) -> Row:
        """Search a plan, compile it, run it."""
        started = time.perf_counter()
        table = sampler_table(self._recording.scheduler, STEPS)
        found = find(
            search, self._space, table, threshold, guidance_scale=GUIDANCE_SCALE, seed=SEED
        )
        search_s = time.perf_counter() - started
        sched = schedule(self._program, found.plan)
        bundle = self._compiled(sched, f"{search}-{threshold:g}")
        images = images_of(bundle)
        timed = {
            name: partial(image_of, one, TIMED_CLASS)
            for name, one in (("plain", self._plain), ("plan", bundle))
        }
        taken = in_turn(timed, self._rounds)
        speedup = taken["plan"].ratio_to(taken["plain"])
        cost = schedule_cost(sched)
        return Row(
            search,
            threshold,
            search_s,
            cost.attention_left,
            1 / cost.model_left,
            speedup,
            closeness(images, self._images).ssim,
            _accuracy(images),
            _parity(sched, bundle),
            self._at_fewer_steps(max(1, round(STEPS / speedup))),
        )

    def _at_fewer_steps(self, steps: int) -> Skipped:
        if steps not in self._skipped:
            sched = schedule(self._program, Plan.uniform(self._program, steps, "full"))
            images = images_of(self._compiled(sched, f"steps-{steps}"))
            ssim = closeness(images, self._images).ssim
            self._skipped[steps] = Skipped(steps, ssim, _accuracy(images))
        return self._skipped[steps]

    def _compiled(self, sched: Schedule, name: str) -> Bundle:
        place = compile_bundle(sched, self._folder / name, sampler=self._recording.scheduler)
        return Bundle.open(place)


def _space(latencies: Latencies) -> Space:
    return space_of(demo_recording(CALIBRATION).capture(), latencies=latencies)


def _accuracy(images: Images) -> float:
    return share_read(load_classifier(), torch.from_numpy(images), torch.arange(len(CLASSES)))


def _parity(sched: Schedule, bundle: Bundle) -> float:
    return max(
        float(np.abs(found - expected).max() / np.abs(expected).max())
        for found, expected in steps_beside_torch(sched, bundle)
    )


def markdown(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the rows as lines of a table in Markdown."""
    yield (
        "| search | δ | attention left | speedup (promised) | SSIM | read right | search "
        "| fewer steps at equal time: SSIM, read right |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|---|"
    for row in rows:
        other = row.skipped
        yield (
            f"| {row.search} | {row.threshold:g} | {row.attention_left:.1%} | {row.speedup:.2f} "
            f"({row.predicted:.2f}) | {row.ssim:.3f} | {row.accuracy:.1%} | {row.search_s:.1f} s "
            f"| {other.steps} steps: {other.ssim:.3f}, {other.accuracy:.1%} |"
        )


def _write(place: Path, rows: Sequence[Row]) -> None:
    text = json.dumps([asdict(row) for row in rows], indent=1)
    place.write_text(text + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 1 with one line on stderr where the input is at fault."""
    parser = argparse.ArgumentParser(
        prog="python -m ditc.tools.bench_thresholds", description=__doc__.splitlines()[0]
    )
    listed = ",".join(f"{threshold:g}" for threshold in THRESHOLDS)
    parser.add_argument("--thresholds", default=listed, help=f"with commas between ({listed})")
    known = ",".join(SEARCHES)
    parser.add_argument("--searches", default=known, help=f"with commas between ({known})")
    parser.add_argument("--rounds", type=positive, default=9, help="of timing (9)")
    parser.add_argument("--json", type=Path, help="file to keep the rows in, after each")
    options = parser.parse_args(arguments)
    rows: list[Row] = []
    try:
        wanted = [
            (search, float(threshold))
            for search in options.searches.split(",")
            for threshold in options.thresholds.split(",")
        ]
        with tempfile.TemporaryDirectory(prefix="ditc-thresholds-") as folder:
            bench = _Bench(Path(folder), options.rounds)
            with progress("plans", len(wanted)) as advance:
                for search, threshold in wanted:
                    rows.append(bench.row(search, threshold))
                    if options.json is not None:
                        _write(options.json, rows)
                    advance()
    except (DitcError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write("\n".join(markdown(rows)) + "\n")
    sys.stdout.write(f"largest difference from PyTorch: {max(row.parity for row in rows):.1e}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
