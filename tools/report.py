"""`ditc report`: a plan or a bundle as one HTML file, and its heat map as a PNG."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from os.path import realpath
from pathlib import Path

from ditc.runtime.errors import DitcError

from .places import check_place
from .report_data import Facts, read_facts
from .report_extras import Demo, read_bench, read_demo, read_pareto
from .report_html import Extras, page
from .report_png import heat_map_png

__all__ = ["report", "write_report"]

PAGES = (".html", ".htm")
SAME = 1e-3
"""How far the shares of attention left of one plan may lie apart: halves are rounded."""


def report(options: argparse.Namespace) -> None:
    """Write the report of the plan or bundle that the options name.

    Raises:
        DitcError: if something can't be read or doesn't go together; nothing is written then.
    """
    written = write_report(
        options.path,
        options.out,
        variant=options.variant,
        bench=options.bench,
        pareto=options.pareto,
        demo=options.demo,
        png=options.png,
    )
    for path, size in written.items():
        sys.stdout.write(f"{path}: {size / 1e3:.0f} kB\n")


def write_report(
    path: Path,
    out: Path,
    *,
    variant: str | None = None,
    bench: Path | None = None,
    pareto: Path | None = None,
    demo: Path | None = None,
    png: Path | None = None,
) -> dict[Path, int]:
    """Write the report of a plan or a bundle; return the bytes of each file.

    Args:
        path: of the plan file or the bundle's folder.
        out: HTML file to write.
        variant: of a folder that holds several.
        bench: what `ditc bench --json` printed of the bundle.
        pareto: other plans, with what each costs and errs.
        demo: folder that `ditc demo` wrote.
        png: where the heat map goes by itself, None for nowhere.

    Raises:
        DitcError: if something can't be read or doesn't go together; nothing is written then.
    """
    _check_places(out, png, [given for given in (path, bench, pareto) if given is not None])
    facts = read_facts(path, variant)
    extras = Extras(
        bench=None if bench is None else read_bench(bench, _buckets(facts)),
        points=None if pareto is None else read_pareto(pareto),
        demo=None if demo is None else read_demo(demo),
    )
    _check_demo(facts, extras.demo)
    files = {out: page(facts, extras, version("ditc")).encode()}
    if png is not None:
        files[png] = heat_map_png(facts)
    _write(files)
    return {place: len(content) for place, content in files.items()}


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


def _check_places(out: Path, png: Path | None, read: Sequence[Path]) -> None:
    """Refuse to write over what is read or where no file can be, or two files in one place."""
    places = {"--out": out, **({} if png is None else {"--png": png})}
    for option, place in places.items():
        check_place(option, place)
        if realpath(place) in map(realpath, read):
            raise DitcError(f"{place}: is read for this report, write it somewhere else")
    if png is not None and realpath(png) == realpath(out):
        raise DitcError(f"--png {png}: is where the report goes, expected another place")
    if out.suffix not in PAGES:
        raise DitcError(f"--out {out}: is written as HTML: end it in .html")
    if png is not None and png.suffix != ".png":
        raise DitcError(f"--png {png}: is written as PNG: end it in .png")


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
