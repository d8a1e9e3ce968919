"""Types of the command line's arguments: numbers in their range, or one line of usage."""

import argparse

__all__ = ["limit", "positive", "seed"]


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


def limit(text: str) -> int | str | None:
    """Return a number of buckets, `knee`, or None for `all`."""
    if text in ("knee", "all"):
        return None if text == "all" else text
    return positive(text)
