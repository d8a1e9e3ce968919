"""Types of the `ditc` command's arguments: text in, a value out, or what is wrong with it."""

import argparse
from pathlib import Path

from ditc.runtime.errors import DitcError, LoweringError
from ditc.runtime.targets import parse_target

from .windows import WindowChoice, parse_window

__all__ = ["batch_range", "limit", "positive", "seed", "target", "variant", "window"]


def seed(text: str) -> int:
    """Return an integer of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is below 0")
    return value


def positive(text: str) -> int:
    """Return an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


def variant(text: str) -> tuple[str, int, int, Path]:
    """Return name, height, width and plan of `512x768=plan.json`."""
    name, equals, plan = text.partition("=")
    height, cross, width = name.partition("x")
    if not equals or not plan or not cross:
        raise argparse.ArgumentTypeError(f"{text!r} is no variant: expected 512x512=plan.json")
    return name, positive(height), positive(width), Path(plan)


def batch_range(text: str) -> dict[str, tuple[int, int]]:
    """Return the range of `batch=1..8`, both ends within it."""
    name, equals, ends = text.partition("=")
    least, dots, most = ends.partition("..")
    if name != "batch" or not equals or not dots:
        raise argparse.ArgumentTypeError(f"{text!r} is no range: expected batch=1..8")
    return {"batch": (positive(least), positive(most))}


def limit(text: str) -> int | str | None:
    """Return a number of buckets, `knee`, or None for `all`."""
    if text in ("knee", "all"):
        return None if text == "all" else text
    return positive(text)


def target(text: str) -> str:
    """Return a target that there is."""
    try:
        return str(parse_target(text))
    except LoweringError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def window(text: str) -> WindowChoice:
    """Return the window that a text names."""
    try:
        return parse_window(text)
    except DitcError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
