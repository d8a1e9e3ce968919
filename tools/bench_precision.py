"""What half precision costs and saves on the demo model: `python -m ditc.tools.bench_precision`.

The shipped plan is compiled in fp32 and in a half precision; both make one image a class from the
same seeds on ONNX Runtime. The error is of the model's output, step by step on the same latents,
against the fp32 schedule run by PyTorch.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ditc.export import compile as compile_bundle
from ditc.passes import Plan, Schedule, schedule
from ditc.runtime import Bundle
from ditc.runtime.errors import DitcError
from ditc.runtime.files import WEIGHTS_FILE

from .argument_types import positive
from .demo_runs import images_of, steps_beside_torch
from .glyphs import CLASSES
from .models import DEMO_PLAN, demo_recording
from .quality import closeness
from .timing import in_turn

__all__ = ["Comparison", "compare", "main"]


@dataclass(frozen=True)
class Comparison:
    """A precision beside fp32.

    Attributes:
        precision: which.
        error: norm of the output's error over the output's, the largest of all steps.
        ssim: of the images against those of fp32.
        weight_bytes: of the weight store.
        weight_bytes_fp32: the same in fp32.
        slot_bytes: kept between steps.
        slot_bytes_fp32: the same in fp32.
        time_ratio: how many times as long as fp32 a generation takes.
    """

    precision: str
    error: float
    ssim: float
    weight_bytes: int
    weight_bytes_fp32: int
    slot_bytes: int
    slot_bytes_fp32: int
    time_ratio: float


def compare(
    folder: Path,
    precision: str,
    rounds: int,
    classes: int = len(CLASSES),
    max_buckets: int | None = None,
) -> Comparison:
    """Compile the demo model in both precisions, run both, and compare.

    Args:
        folder: where the bundles go.
        precision: beside fp32.
        rounds: of timing.
        classes: of how many classes to make an image.
        max_buckets: merge the plan's steps to so many graphs, None to merge none.
    """
    recording = demo_recording()
    sched = schedule(recording.capture(), Plan.load(DEMO_PLAN), max_buckets=max_buckets)
    bundles = {}
    for name in (precision, "fp32"):
        place = compile_bundle(sched, folder / name, precision=name, sampler=recording.scheduler)
        bundles[name] = Bundle.open(place)
    full, half = bundles["fp32"], bundles[precision]
    images = {name: images_of(bundle, classes) for name, bundle in bundles.items()}
    timed = {name: partial(images_of, bundle, 1) for name, bundle in bundles.items()}
    taken = in_turn(timed, rounds)
    return Comparison(
        precision,
        _error(sched, half),
        closeness(images[precision], images["fp32"]).ssim,
        half.manifest.files[WEIGHTS_FILE].bytes,
        full.manifest.files[WEIGHTS_FILE].bytes,
        sum(half.manifest.storage_bytes.values()),
        sum(full.manifest.storage_bytes.values()),
        taken["fp32"].ratio_to(taken[precision]),
    )


def _error(sched: Schedule, bundle: Bundle) -> float:
    return max(
        float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
        for found, expected in steps_beside_torch(sched, bundle)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 1 with one line on stderr where the input is at fault."""
    parser = argparse.ArgumentParser(
        prog="python -m ditc.tools.bench_precision", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--precision", choices=("fp16", "bf16"), default="fp16", help="(fp16)")
    parser.add_argument("--rounds", type=positive, default=7, help="of timing (7)")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="ditc-precision-") as folder:
            found = compare(Path(folder), options.precision, options.rounds)
    except DitcError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(json.dumps(asdict(found), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
