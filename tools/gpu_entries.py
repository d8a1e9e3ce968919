"""What a GPU report is made of: entries that are measured, absent or failed, never guessed."""

import contextlib
import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

__all__ = ["AbsentError", "Entry", "Values", "attempt"]

Values = Mapping[str, float | int | str | bool]
Status = Literal["measured", "absent", "failed"]


class AbsentError(Exception):
    """What an entry needs isn't on this machine; the message says what."""


@dataclass(frozen=True)
class Entry:
    """One line of the report.

    Attributes:
        section: `parity`, `windows`, `methods`, `models` or `tuning`.
        name: what was run.
        status: measured; absent, if something it needs isn't there; or failed.
        values: numbers by name, units in the names; empty unless something was measured.
        reason: why it is absent or failed.
    """

    section: str
    name: str
    status: Status
    values: Values = field(default_factory=dict)
    reason: str = ""


def attempt(section: str, name: str, measure: Callable[[], Values]) -> Entry:
    """Return an entry of what a function returns, or of why it didn't.

    A report is made once on a machine that is seldom at hand: what fails is told in its place, and
    the rest is run all the same.
    """
    try:
        return Entry(section, name, "measured", measure())
    except AbsentError as error:
        return Entry(section, name, "absent", reason=str(error))
    except Exception as error:  # whatever libraries, drivers and memory run into
        lines = str(error).splitlines() or [""]
        return Entry(section, name, "failed", reason=f"{type(error).__name__}: {lines[0]}")
    finally:
        if torch.cuda.is_available():
            gc.collect()
            with contextlib.suppress(RuntimeError):  # a device that failed stays so
                torch.cuda.empty_cache()
