"""All that a GPU can tell, in one command: `python -m ditc.tools.gpu_report -o results.json`.

Writes the JSON named, and a Markdown table beside it. What isn't installed is absent, with the
reason; nothing is guessed. With `--device cpu --tiny` it is a dry run, and says so.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from .argument_types import positive
from .gpu_entries import Entry
from .gpu_machine import describe
from .gpu_methods import methods, model_entries
from .gpu_models import SHAPES, ModelShape
from .gpu_parity import DTYPES, cases, parity
from .gpu_table import markdown
from .gpu_windows import TUNED, AttentionShape, tunings, windows

__all__ = ["SECTIONS", "main"]

VERSION = 1
TOKENS = (1024, 4096, 16384)
HEADS = ((16, 72), (24, 128))
WORDS = 512


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 1 if something failed or the device isn't there."""
    options = _parser().parse_args(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.stderr.write(f"gpu_report: torch {torch.__version__} finds no GPU\n")
        return 1
    if not options.out.parent.is_dir():
        sys.stderr.write(f"gpu_report: there is no folder {options.out.parent}\n")
        return 1
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    entries: list[Entry] = []
    for section in options.only or SECTIONS:
        for entry in SECTIONS[section](options):
            entries.append(entry)
            sys.stderr.write(f"{entry.section}, {entry.name}: {_short(entry)}\n")
        _write(options, entries)  # after each, so that a run cut short leaves what it has
    return int(any(entry.status == "failed" for entry in entries))


def _short(entry: Entry) -> str:
    if entry.status != "measured":
        return f"{entry.status}, {entry.reason}"
    name, value = next(iter(entry.values.items()))
    return f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"


def _write(options: argparse.Namespace, entries: Sequence[Entry]) -> None:
    dry_run = options.tiny or not options.device.startswith("cuda")
    machine = describe(options.device)
    record = {
        "version": VERSION,
        "dry_run": dry_run,
        "machine": machine,
        "options": {
            "device": options.device,
            "dtype": options.dtype,
            "rounds": options.rounds,
            "steps": options.steps,
            "tiny": options.tiny,
        },
        "entries": [asdict(entry) for entry in entries],
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    table = markdown(entries, machine, dry_run=dry_run)
    options.out.with_suffix(".md").write_text(table, encoding="utf-8")


def _parity(options: argparse.Namespace) -> Iterator[Entry]:
    yield from parity(options.device, cases(tiny=options.tiny))


def _attentions(options: argparse.Namespace) -> list[AttentionShape]:
    if options.tiny:
        return [AttentionShape(1, 2, 24, 64), AttentionShape(1, 1, 16, 40, 7)]
    plain = [AttentionShape(2, heads, dim, n) for heads, dim in HEADS for n in TOKENS]
    return plain + [AttentionShape(2, 24, 128, n, WORDS) for n in TOKENS[1:]]


def _windows(options: argparse.Namespace) -> Iterator[Entry]:
    for shape in _attentions(options):
        yield from windows(shape, DTYPES[options.dtype], options.device, options.rounds)


def _methods(options: argparse.Namespace) -> Iterator[Entry]:
    for tokens in (64,) if options.tiny else TOKENS:
        shape = ModelShape(1, 1152, 16, tokens, 0, 2)
        shape = replace(shape, width=32, heads=2) if options.tiny else shape
        yield from methods(shape, DTYPES[options.dtype], options.device, options.rounds)


def _models(options: argparse.Namespace) -> Iterator[Entry]:
    for name, shape in SHAPES.items():
        if options.tiny:
            words = min(shape.text_tokens, 5)
            shape = ModelShape(2, 32, 2, 64, words, 2)
        dtype = DTYPES[options.dtype]
        rounds = max(3, options.rounds // 3)  # a generation is a long run already
        yield from model_entries(name, shape, dtype, options.device, rounds, options.steps)


def _tuning(options: argparse.Namespace) -> Iterator[Entry]:
    choices = TUNED[:2] if options.tiny else TUNED
    for shape in _attentions(options)[1::3]:
        yield from tunings(shape, DTYPES[options.dtype], options.device, options.rounds, choices)


SECTIONS: dict[str, Callable[[argparse.Namespace], Iterator[Entry]]] = {
    "parity": _parity,
    "windows": _windows,
    "methods": _methods,
    "models": _models,
    "tuning": _tuning,
}
"""In the order in which they are run."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ditc.tools.gpu_report", description=__doc__)
    parser.add_argument("-o", "--out", type=Path, required=True, help="JSON to write")
    parser.add_argument("--device", default="cuda", help="as torch names it (cuda)")
    parser.add_argument("--dtype", choices=DTYPES, default="fp16", help="of what is timed (fp16)")
    parser.add_argument("--rounds", type=positive, default=15, help="of timing (15)")
    parser.add_argument("--steps", type=positive, default=10, help="of whole generations (10)")
    parser.add_argument("--tiny", action="store_true", help="shapes that a dry run takes")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="sections to run (all)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
