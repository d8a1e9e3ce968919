"""What callers give: checked against the manifest, cast where nothing is lost in kind."""

from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .engine import Array
from .errors import EngineError

__all__ = ["as_array", "check_array", "check_finite", "check_names", "check_rows"]

KINDS = {"f": "float", "i": "integer", "u": "integer", "b": "bool"}


class _Tensor(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str: ...


def check_names(what: str, given: Iterable[str], expected: Iterable[str]) -> None:
    """Raise EngineError if a name is given that isn't expected; `what` is a noun as "input"."""
    known = list(expected)
    for name in given:
        if name not in known:
            listed = ", ".join(known) or "none"
            raise EngineError(f"unknown {what} {name!r}, expected {listed}")


def as_array(name: str, value: npt.ArrayLike) -> Array:
    """Return `value` as an array, or raise EngineError if its rows differ in length."""
    try:
        return np.asarray(value)
    except ValueError as error:
        raise EngineError(f"input {name!r} is no array: {error}") from error


def check_array(info: _Tensor, value: npt.ArrayLike, shape: tuple[int, ...] | None = None) -> Array:
    """Return `value` as a C-contiguous array of the input's dtype and shape.

    Floats are cast to floats, integers to integers that hold them; nothing else is cast.

    Args:
        info: the input's name, shape and dtype.
        value: anything numpy makes an array of.
        shape: another shape to expect in place of the input's, as half its batch.

    Raises:
        EngineError: if kind, shape or range don't fit, or a float isn't finite.
    """
    found = as_array(info.name, value)
    dtype = np.dtype(info.dtype)
    expected = info.shape if shape is None else shape
    if KINDS.get(found.dtype.kind) != KINDS[dtype.kind]:
        raise EngineError(
            f"input {info.name!r} has dtype {found.dtype}, expected {info.dtype}; convert it first"
        )
    if found.shape != expected:
        raise EngineError(f"input {info.name!r} has shape {found.shape}, expected {expected}")
    check_finite(f"input {info.name!r}", found)
    with np.errstate(over="ignore"):
        cast = np.asarray(found, dtype, order="C")  # ascontiguousarray gives scalars an axis
    if dtype.kind in "iu" and not np.array_equal(cast, found):
        raise EngineError(f"input {info.name!r} holds integers beyond {info.dtype}")
    check_finite(f"input {info.name!r} as {info.dtype}", cast)
    return cast


def check_rows(rows: Mapping[str, int], arrays: Mapping[str, Array]) -> None:
    """Raise EngineError if an integer picks a row that its table hasn't; engines take any.

    Args:
        rows: for each input that picks rows, how many there are.
        arrays: inputs by name.
    """
    for name, count in rows.items():
        array = arrays.get(name)
        if array is None or not array.size:
            continue
        for found in (array.min(), array.max()):
            if not 0 <= found < count:
                raise EngineError(
                    f"input {name!r} holds {found}, expected 0 to {count - 1}, as it picks rows of "
                    "a table"
                )


def check_finite(what: str, array: Array) -> None:
    """Raise EngineError if a float isn't finite; says how many and where the first is."""
    if array.dtype.kind != "f":
        return
    finite = np.isfinite(array)
    if finite.all():
        return
    first = tuple(int(index) for index in np.argwhere(~finite)[0])
    count = finite.size - int(np.count_nonzero(finite))
    raise EngineError(
        f"{what} has {count} values that are NaN or infinite, the first at {first}; "
        "expected finite numbers"
    )
