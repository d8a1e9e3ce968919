"""Read what a report can show besides plan and bundle: timings, trade-offs, images."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ditc.runtime.errors import DitcError

from .arrays import read_array
from .images import to_bytes
from .report_plan import Absent
from .report_points import Point
from .report_words import decibels, milliseconds

__all__ = ["Demo", "Latency", "Pixels", "read_bench", "read_demo", "read_pareto"]

SIDES = ("uncompressed", "compressed")
MAX_IMAGES = 64
MAX_POINTS = 200
MAX_PIXELS = 2**26
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Latency:
    """Wall time of one step in milliseconds: median, first and third quartile."""

    median_ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True)
class Demo:
    """What `ditc demo` found.

    Attributes:
        attention_left: share of the attention sites' multiply-adds that its plan leaves.
        figures: heading, uncompressed value, compressed value; empty where there is none.
        before: images of the uncompressed bundle, `[samples, height, width, 3]`, if there are any.
        after: the same of the compressed one.
        names: what each image is called.
        psnr_db: of each image against the uncompressed one, infinite where equal.
        of: how many images the folder holds; more than a page shows are left out.
        absent: figures of quality that there are none of, and why.
    """

    attention_left: float
    figures: tuple[tuple[str, str, str], ...]
    before: Pixels | None
    after: Pixels | None
    names: tuple[str, ...]
    psnr_db: tuple[float, ...]
    of: int
    absent: tuple[Absent, ...] = ()


def read_bench(path: Path, buckets: Sequence[str]) -> dict[str, Latency]:
    """Read what `ditc bench --json` printed.

    Args:
        path: the file.
        buckets: names of the bundle's buckets.

    Raises:
        DitcError: if it is something else, or of another bundle.
    """
    where = f"--bench {path}"
    record = _object(_json(path, where), where)
    timed = _object(record.get("buckets"), f"{where}: buckets")
    if set(timed) != set(buckets):
        raise DitcError(
            f"{where}: times the buckets {_listed(timed)}; the bundle has "
            f"{_listed(set(buckets))}: time this one with 'ditc bench BUNDLE --json'"
        )
    found = {}
    for name, entry in timed.items():
        fields = _object(entry, f"{where}: {name}")
        low, median, high = (
            _number(fields.get(key), f"{where}: {name}.{key}")
            for key in ("low_ms", "median_ms", "high_ms")
        )
        found[name] = Latency(median, low, high)
    return found


def read_pareto(path: Path) -> tuple[Point, ...]:
    """Read a list of plans with what each costs and errs.

    Raises:
        DitcError: naming the entry at fault.
    """
    where = f"--pareto {path}"
    entries = _json(path, where)
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_POINTS:
        raise DitcError(f"{where}: expected a list of 1 to {MAX_POINTS} objects")
    points = tuple(_point(entry, f"{where}: [{n}]") for n, entry in enumerate(entries))
    if len({point.measured for point in points}) > 1:
        raise DitcError(
            f"{where}: some entries have latency_ms, some multiply_adds_left: expected one of "
            "them throughout"
        )
    return points


def _point(entry: object, where: str) -> Point:
    fields = _object(entry, where)
    measured = "latency_ms" in fields
    if measured == ("multiply_adds_left" in fields):
        raise DitcError(f"{where}: expected either latency_ms or multiply_adds_left")
    key = "latency_ms" if measured else "multiply_adds_left"
    given = fields.get("threshold")
    threshold = None if given is None else _number(given, f"{where}.threshold")
    label = fields.get("label", "" if threshold is None else f"δ {threshold:g}")
    if not isinstance(label, str):
        raise DitcError(f"{where}.label: expected a string, found a {type(label).__name__}")
    return Point(
        cost=_number(fields[key], f"{where}.{key}"),
        measured=measured,
        loss=_number(fields.get("loss"), f"{where}.loss"),
        threshold=threshold,
        label=label,
    )


def read_demo(folder: Path) -> Demo:
    """Read the folder that `ditc demo` wrote: `report.json`, and images if it has any.

    Raises:
        DitcError: if the figures are missing or malformed, or the images don't go together.
    """
    path = folder / "report.json"
    where = f"--demo {path}"
    record = _object(_json(path, where), where)
    before, after = (_images(folder, name) for name in ("uncompressed", "compressed"))
    if (before is None) != (after is None):
        raise DitcError(f"--demo {folder}: has images of one bundle only: run 'ditc demo' again")
    figures = (*_figures(record, where), *_distances(record, where))
    absent = _absent(record, where)
    left = _number(record.get("attention_left"), f"{where}: attention_left")
    if before is None or after is None:
        return Demo(left, figures, None, None, (), (), 0, absent)
    if before.shape != after.shape:
        raise DitcError(
            f"--demo {folder}: images of shapes {list(before.shape)} and {list(after.shape)}, "
            "expected equal ones: run 'ditc demo' again"
        )
    names = _names(record.get("classes"), len(before))
    shown = slice(0, MAX_IMAGES)
    pairs = zip(before[shown], after[shown], strict=True)
    return Demo(
        attention_left=left,
        figures=figures,
        before=to_bytes(before[shown]),
        after=to_bytes(after[shown]),
        names=names[shown],
        psnr_db=tuple(_psnr(first, second) for first, second in pairs),
        of=len(before),
        absent=absent,
    )


def _names(classes: object, count: int) -> tuple[str, ...]:
    """Return a character a class where each image is of its own class, numbers elsewhere."""
    if isinstance(classes, str) and len(classes) == count:
        return tuple(classes)
    return tuple(str(number) for number in range(count))


def _figures(record: Mapping[str, object], where: str) -> tuple[tuple[str, str, str], ...]:
    def number(*keys: str) -> float:
        value: object = record
        for depth, key in enumerate(keys):
            value = _object(value, ": ".join((where, ".".join(keys[:depth])))).get(key)
        return _number(value, f"{where}: {'.'.join(keys)}", infinite=keys[-1] == "psnr_db")

    plain, small = (number("per_image", name, "median_ms") for name in SIDES)
    plain_read, small_read = (number("accuracy", name) for name in SIDES)
    psnr, ssim = number("closeness", "psnr_db"), number("closeness", "ssim")
    return (
        ("Time an image, median", milliseconds(plain), milliseconds(small)),
        ("Speedup, measured", "", f"{number('measured_speedup'):.2f}×"),
        ("Speedup, predicted from multiply-adds", "", f"{number('predicted_speedup'):.2f}×"),
        ("Read as the class asked for", f"{plain_read:.1%}", f"{small_read:.1%}"),
        ("PSNR against uncompressed", "", decibels(psnr)),
        ("SSIM against uncompressed", "", f"{ssim:.3f}"),
        ("Images behind these figures", "", f"{number('samples'):.0f}"),
    )


def _distances(record: Mapping[str, object], where: str) -> tuple[tuple[str, str, str], ...]:
    """Return the Fréchet distances; a demo of an earlier version has none."""
    if "frechet" not in record:
        return ()
    found = _object(record["frechet"], f"{where}: frechet")
    plain, small, drawn = (
        _number(found.get(name), f"{where}: frechet.{name}") for name in (*SIDES, "drawn")
    )
    note = record.get("frechet_note")
    if note is not None and not isinstance(note, str):
        raise DitcError(f"{where}: frechet_note: expected a string, found {_kind(note)}")
    rows = (
        ("Fréchet distance to drawn glyphs", f"{plain:.1f}", f"{small:.1f}"),
        ("The same of another draw of glyphs", "", f"{drawn:.1f}"),
    )
    return rows if note is None else (*rows, (f"Of these distances: {note}", "", ""))


def _absent(record: Mapping[str, object], where: str) -> tuple[Absent, ...]:
    """Return the figures that the demo says there are none of."""
    found = []
    if "frechet" not in record:
        found.append(Absent("Fréchet distance", "the demo's folder states none: run it again"))
    for name, why in _object(record.get("absent", {}), f"{where}: absent").items():
        if not isinstance(why, str):
            raise DitcError(f"{where}: absent.{name}: expected a string, found {_kind(why)}")
        found.append(Absent(name, why))
    return tuple(found)


def _images(folder: Path, name: str) -> npt.NDArray[np.float32] | None:
    path = folder / f"images-{name}.npy"
    if not path.exists():
        return None
    array = read_array(path, f"--demo {path}", mapped=True)
    fits = array.ndim == 4 and array.size and array.shape[1] in (1, 3)
    if array.dtype != np.float32 or not fits or array.size > MAX_PIXELS:
        raise DitcError(
            f"--demo {path}: is {array.dtype} {list(array.shape)}, expected float32 [samples, 1 or "
            f"3, height, width] of at most {MAX_PIXELS} values"
        )
    images = np.array(array)
    if not np.isfinite(images).all():
        raise DitcError(f"--demo {path}: holds values that aren't finite: run 'ditc demo' again")
    return images


def _psnr(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> float:
    """Return the peak signal-to-noise ratio of two images in [-1, 1], in dB."""
    gap = np.clip(first, -1, 1).astype(np.float64) - np.clip(second, -1, 1)
    error = float(np.mean(gap**2))
    return 10 * math.log10(4 / error) if error else math.inf


def _json(path: Path, where: str) -> object:
    try:
        value: object = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DitcError(f"{where}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DitcError(f"{where}: is no UTF-8 text: {error.reason}") from error
    except (ValueError, RecursionError) as error:
        raise DitcError(f"{where}: is no JSON: {error}") from error
    return value


def _object(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise DitcError(f"{where}: expected an object, found {_kind(value)}")
    return value


def _number(value: object, where: str, *, infinite: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DitcError(f"{where}: expected a number, found {_kind(value)}")
    if not 0 <= value <= 1e12 and not (infinite and not math.isnan(value)):
        raise DitcError(f"{where}: is {value}, expected a number from 0 to 1e12")
    return float(value)


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _listed(names: Mapping[str, object] | set[str], limit: int = 6) -> str:
    ordered = sorted(names)
    more = len(ordered) - limit
    shown = ", ".join(ordered[:limit]) or "none"
    return shown if more <= 0 else f"{shown} and {more} more"
