"""The errors ditc raises; every message says what, where and what to do.

DitcError
├── CaptureError    a module can't be turned into a program
├── PlanError       a plan is malformed, or holds for something else
├── PassError       a rewrite can't be done, or left a graph that doesn't verify
├── LoweringError   a graph can't be expressed for the target
├── BundleError     a bundle is incomplete, altered, or of another version
└── EngineError     an engine can't be loaded or run, or its inputs are at fault
"""

__all__ = [
    "BundleError",
    "CaptureError",
    "DitcError",
    "EngineError",
    "LoweringError",
    "PassError",
    "PlanError",
    "first_line",
    "install",
]


class DitcError(Exception):
    """Base of all errors that ditc raises on purpose."""


class CaptureError(DitcError):
    """A module can't be turned into a program, or was called unlike it was captured."""


class PlanError(DitcError):
    """A plan is malformed, or holds for another model, step count or layout."""


class PassError(DitcError):
    """A rewrite can't be done, or left a graph that the verifier refuses."""


class LoweringError(DitcError):
    """A graph, weight or sampler can't be expressed for the target."""


class BundleError(DitcError):
    """A bundle is incomplete, altered, or of another version."""


class EngineError(DitcError):
    """An engine can't be loaded or run, or what it was given doesn't fit."""


def install(extra: str) -> str:
    """Return what a message says to do where what an extra of ditc's brings is missing."""
    return f"install ditc's extra [{extra}] (in a clone: pip install '.[{extra}]')"


def first_line(error: BaseException) -> str:
    """Return the first line of an error of another library, its type's name where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip() if lines else type(error).__name__
