"""Try ditc on every transformer of diffusers at a tiny size; write the table of models.

python -m ditc.tools.zoo            capture, methods against the intercepted models: the counts
python -m ditc.tools.zoo --onnx     the same, each mixed plan lowered and run by ONNX Runtime
python -m ditc.tools.zoo --table docs/MODELS.md
"""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from .zoo_entry import Tiny, transformer_classes
from .zoo_image import IMAGE
from .zoo_joint import JOINT
from .zoo_other import OTHER
from .zoo_sana import SANA
from .zoo_stream import STREAM
from .zoo_trial import Trial, trial
from .zoo_video import VIDEO
from .zoo_wan import WAN

__all__ = ["ZOO", "left_out", "main", "table"]

ZOO: tuple[Tiny, ...] = (*IMAGE, *STREAM, *JOINT, *VIDEO, *WAN, *SANA, *OTHER)
NO_DENOISER = {"MiniMaxMusic3RVQDepthDecoder": "it takes no timestep"}
TOLERANCE, ENGINE_TOLERANCE = 1e-5, 1e-3


def left_out() -> tuple[str, ...]:
    """Return the models of diffusers that are neither tried nor known to be no denoiser."""
    known = {tiny.name for tiny in ZOO} | NO_DENOISER.keys()
    return tuple(sorted(transformer_classes().keys() - known))


def table(trials: Iterable[Trial]) -> str:
    """Return the table of models as Markdown."""
    lines = [
        "# Models",
        "",
        "Every transformer of diffusers 0.42 that has attention and takes a timestep, tried at a "
        "tiny size with random weights. Written by `python -m ditc.tools.zoo --table "
        "docs/MODELS.md`.",
        "",
        "*Sites* are the attentions that a plan may compress, of all that there are; *text* says "
        "how many tokens of a sequence keep full attention under a window. Methods that a model "
        "can't use are named with the reason.",
        "",
        "| model | captured | sites | text | what is left alone, and why |",
        "|---|---|---|---|---|",
    ]
    lines.extend(_row(result) for result in trials)
    return "\n".join([*lines, ""])


def _row(result: Trial) -> str:
    title = result.tiny.title
    if result.program is None:
        return f"| {title} | no | | | {_short(result.failure)} |"
    sites = result.program.sites
    able = [site for site in sites if site.eligible]
    texts = sorted({site.text[1] - site.text[0] for site in able} - {0})
    reasons = Counter(site.reason for site in sites if not site.eligible)
    told = [f"{count} × {reason}" for reason, count in reasons.items()]
    told += [f"no `{method}`: {_short(why)}" for method, why in result.refused.items()]
    text = ", ".join(str(count) for count in texts)
    return f"| {title} | yes | {len(able)} of {len(sites)} | {text} | {'; '.join(told)} |"


def _short(message: str) -> str:
    """Return a message without the folders of this machine."""
    words = [word.rpartition("/")[2] if "/" in word else word for word in message.split()]
    return " ".join(words).replace("|", "/")


def faults(result: Trial) -> list[str]:
    """Return what is wrong with a trial, a line each."""
    found = [result.failure] if result.failure else []
    for name, value in result.errors.items():
        limit = ENGINE_TOLERANCE if name == "onnx" else TOLERANCE
        if not value <= limit:
            found.append(f"{name}: error {value:.1e} above {limit:.0e}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 1 if a model that was captured computes something else."""
    parser = argparse.ArgumentParser(prog="python -m ditc.tools.zoo", description=__doc__)
    parser.add_argument("--onnx", action="store_true", help="lower each mixed plan and run it")
    parser.add_argument("--table", type=Path, help="write the table of models there")
    parser.add_argument("names", nargs="*", help="parts of names; all models if none")
    given = parser.parse_args(arguments)
    chosen = [tiny for tiny in ZOO if not given.names or any(n in tiny.title for n in given.names)]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for tiny in chosen:
            results.append(trial(tiny, Path(folder) if given.onnx else None))
            _tell(results[-1])
    if given.table:
        given.table.write_text(table(results), encoding="utf-8")
    captured = [result for result in results if result.program is not None]
    sited = [r for r in captured if r.program and any(s.eligible for s in r.program.sites)]
    right = [result for result in sited if not faults(result)]
    whole = [result for result in right if not result.refused]
    print(
        f"{len(captured)} of {len(results)} captured, equal to the bit; {len(sited)} have sites; "
        f"{len(right)} agree with the reference, {len(whole)} of them under every method"
    )
    return 0 if len(right) == len(sited) else 1


def _tell(result: Trial) -> None:
    worst = max(result.errors.values(), default=0.0)
    state = "; ".join(faults(result)) or f"error {worst:.1e}"
    if result.refused:
        state += f"; refused: {', '.join(result.refused)}"
    print(f"{result.tiny.title}: {state}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
