"""`ditc report`: a plan or a bundle as one HTML file, and its heat map as a PNG."""

import argparse
import sys
from collections.abc import Mapping
from importlib.metadata import version
from os.path import realpath
from pathlib import Path

from ditc.runtime.errors import DitcError

from .places import check_place
from .report_data import Facts, read_facts
from .report_extras import Demo, read_bench, read_demo, read_pareto
from .report_html import Extras, page
from .report_png import heat_map_png

__all__ = ["report"]

PAGES = (".html", ".htm")
SAME = 1e-3
"""How far the shares of attention left of one plan may lie apart: halves are rounded."""


def report(options: argparse.Namespace) -> None:
    """Write the report of the plan or bundle that the options name.

    Raises:
        DitcError: if something can't be read or doesn't go together; nothing is written then.
    """
    facts = read_facts(options.path, options.variant)
    extras = Extras(
        bench=None if options.bench is None else read_bench(options.bench, _buckets(facts)),
        points=None if options.pareto is None else read_pareto(options.pareto),
        demo=None if options.demo is None else read_demo(options.demo),
    )
    _check_demo(facts, extras.demo)
    files = {options.out: page(facts, extras, version("ditc")).encode()}
    if options.png is not None:
        files[options.png] = heat_map_png(facts)
    _check_places(options, files)
    _write(files)
    for path, content in files.items():
        sys.stdout.write(f"{path}: {len(content) / 1e3:.0f} kB\n")


def _buckets(facts: Facts) -> tuple[str, ...]:
    if facts.buckets is None:
        raise DitcError("--bench: a plan has no buckets to time: report on the bundle made of it")
    return facts.buckets


def _check_demo(facts: Facts, demo: Demo | None) -> None:
    """Refuse figures and images of another plan than the one that is shown."""
    if demo is None or facts.costs is None:
        return
    theirs, mine = demo.attention_left, facts.costs.attention_left
    if abs(theirs - mine) > SAME:
        raise DitcError(
            f"--demo: its plan leaves {theirs:.1%} of attention, {facts.source} leaves {mine:.1%}: "
            "report on the bundle-compressed in the demo's folder"
        )


def _check_places(options: argparse.Namespace, files: Mapping[Path, bytes]) -> None:
    """Refuse to write over what was read or where no file can be, or two files in one place."""
    for option, path in (("--out", options.out), ("--png", options.png)):
        if path is not None:
            check_place(option, path)
    if options.png is not None and len({realpath(path) for path in files}) == 1:
        raise DitcError(f"--png {options.png}: is where the report goes, expected another place")
    read = {realpath(path) for path in (options.path, options.bench, options.pareto) if path}
    for path in files:
        if realpath(path) in read:
            raise DitcError(f"{path}: was read for this report, write it somewhere else")
    if options.out.suffix not in PAGES:
        raise DitcError(f"--out {options.out}: is written as HTML: end it in .html")


def _write(files: Mapping[Path, bytes]) -> None:
    """Write all files or none: beside their places first, then renamed."""
    beside = {path: path.with_name(f".{path.name}.partial") for path in files}
    try:
        for path, content in files.items():
            _write_one(path, beside[path], content)
        for path, partial in beside.items():
            partial.replace(path)
    finally:
        for partial in beside.values():
            partial.unlink(missing_ok=True)


def _write_one(path: Path, partial: Path, content: bytes) -> None:
    try:
        partial.write_bytes(content)
    except OSError as error:
        raise DitcError(f"{path}: can't be written: {error.strerror}") from error
