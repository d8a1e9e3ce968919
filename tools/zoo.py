"""Try ditc on every transformer of diffusers at a tiny size; write the table of models.

python -m ditc.tools.zoo            capture, methods against the intercepted models: the counts
python -m ditc.tools.zoo --onnx     the same, each mixed plan lowered and run by ONNX Runtime
python -m ditc.tools.zoo --onnx --table docs/models.md --keep zoo.json
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .zoo_entry import Tiny, transformer_classes
from .zoo_image import IMAGE
from .zoo_joint import JOINT
from .zoo_other import OTHER
from .zoo_outcome import Outcome, faults, keep, kept, outcome, summary, table
from .zoo_sana import SANA
from .zoo_stream import STREAM
from .zoo_trial import trial
from .zoo_video import VIDEO
from .zoo_wan import WAN

__all__ = ["ZOO", "left_out", "main"]

ZOO: tuple[Tiny, ...] = (*IMAGE, *STREAM, *JOINT, *VIDEO, *WAN, *SANA, *OTHER)
NO_DENOISER = {"MiniMaxMusic3RVQDepthDecoder": "it takes no timestep"}


def left_out() -> tuple[str, ...]:
    """Return the models of diffusers that are neither tried nor known to be no denoiser."""
    known = {tiny.name for tiny in ZOO} | NO_DENOISER.keys()
    return tuple(sorted(transformer_classes().keys() - known))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 1 if a model that was captured computes something else."""
    parser = argparse.ArgumentParser(prog="python -m ditc.tools.zoo", description=__doc__)
    parser.add_argument("--onnx", action="store_true", help="lower each mixed plan and run it")
    parser.add_argument("--table", type=Path, help="write the table of models there")
    parser.add_argument(
        "--keep", type=Path, help="JSON of outcomes; models that it holds aren't tried again"
    )
    parser.add_argument("names", nargs="*", help="parts of names; all models if none")
    given = parser.parse_args(arguments)
    chosen = [tiny for tiny in ZOO if not given.names or any(n in tiny.title for n in given.names)]
    known = kept(given.keep) if given.keep else {}
    results = []
    for tiny in chosen:
        results.append(known.get(tiny.title) or _tried(tiny, onnx=given.onnx))
        known[tiny.title] = results[-1]
        if given.keep:
            keep(given.keep, known.values())
        print(_line(results[-1]), flush=True)
    if given.table:
        given.table.write_text(table(results), encoding="utf-8")
    print(summary(results))
    return 1 if any(faults(result) for result in results if result.captured) else 0


def _tried(tiny: Tiny, *, onnx: bool) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        return outcome(trial(tiny, Path(folder) if onnx else None))


def _line(result: Outcome) -> str:
    worst = max(result.errors.values(), default=0.0)
    state = "; ".join(faults(result)) or f"error {worst:.1e}"
    if result.refused:
        state += f"; refused: {', '.join(result.refused)}"
    return f"{result.title}: {state}"


if __name__ == "__main__":
    sys.exit(main())
