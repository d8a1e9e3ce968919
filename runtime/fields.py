"""Read untrusted JSON strictly: every field is there, of its type and in range, or an error."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from .errors import BundleError

__all__ = [
    "JsonValue",
    "canonical_json",
    "digest_of",
    "load_json",
    "read_choice",
    "read_counts",
    "read_dtype",
    "read_flag",
    "read_integer",
    "read_list",
    "read_mapping",
    "read_name",
    "read_names",
    "read_number",
    "read_object",
    "read_sha256",
    "read_shape",
    "read_string",
]

DTYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
MAX_ELEMENTS = 2**40
JsonValue = None | bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"]
Item = TypeVar("Item")
Choice = TypeVar("Choice", bound=str | None)


def canonical_json(value: JsonValue) -> str:
    """Return `value` as JSON with sorted keys, two spaces of indent and a newline at the end."""
    return json.dumps(value, sort_keys=True, indent=2, allow_nan=False) + "\n"


def digest_of(value: JsonValue) -> str:
    """Return the SHA-256 of the canonical JSON, 64 lower-case hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def load_json(text: str, where: str) -> JsonValue:
    """Return the JSON value in `text`.

    Raises:
        BundleError: if it isn't JSON, a key occurs twice in an object, or a number isn't finite.
    """

    def unique(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
        found: dict[str, JsonValue] = {}
        for key, value in pairs:
            if key in found:
                raise BundleError(f"{where}: the key {key!r} occurs twice, expected it once")
            found[key] = value
        return found

    def finite(literal: str) -> float:
        number = float(literal)
        if not math.isfinite(number):
            raise BundleError(f"{where}: holds the number {literal}, expected finite numbers")
        return number

    try:
        value: JsonValue = json.loads(
            text, object_pairs_hook=unique, parse_float=finite, parse_constant=finite
        )
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where}: is no JSON ({error}), copy or compile it again") from error
    return value


def read_object(value: object, where: str, names: Sequence[str]) -> dict[str, object]:
    """Return an object that has exactly the fields `names`.

    Raises:
        BundleError: if it isn't an object, or a field is missing or unknown.
    """
    found = read_mapping(value, where)
    for name in names:
        if name not in found:
            raise BundleError(f"{where}: the field {name!r} is missing, compile the bundle again")
    for name in found:
        if name not in names:
            raise BundleError(f"{where}: unknown field {name!r}, expected {', '.join(names)}")
    return found


def read_mapping(value: object, where: str) -> dict[str, object]:
    """Return an object with any fields, or raise BundleError."""
    if not isinstance(value, dict):
        raise _wrong(where, "an object", value)
    for name in value:
        read_string(name, f"{where}: a field")
    return value


def read_list(value: object, where: str, read: Callable[[object, str], Item]) -> tuple[Item, ...]:
    """Return a list whose items `read(item, where)` accepts, or raise BundleError."""
    if not isinstance(value, list):
        raise _wrong(where, "a list", value)
    return tuple(read(item, f"{where}[{index}]") for index, item in enumerate(value))


def read_string(value: object, where: str) -> str:
    """Return a string that a terminal can show, or raise BundleError."""
    if not isinstance(value, str):
        raise _wrong(where, "a string", value)
    if not value.isprintable():
        raise BundleError(f"{where}: is {value!r}, expected printable text")
    return value


def read_name(value: object, where: str) -> str:
    """Return a string that isn't empty, or raise BundleError."""
    name = read_string(value, where)
    if not name:
        raise BundleError(f"{where}: is empty, expected a name")
    return name


def read_names(value: object, where: str) -> tuple[str, ...]:
    """Return a list of names without repeats, or raise BundleError."""
    names = read_list(value, where, read_name)
    for name in names:
        if names.count(name) > 1:
            raise BundleError(f"{where}: names {name!r} twice, expected it once")
    return names


def read_integer(value: object, where: str, low: int, high: int) -> int:
    """Return an integer in `low` to `high`, or raise BundleError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(where, "an integer", value)
    if not low <= value <= high:
        raise BundleError(f"{where}: is {value}, expected {low} to {high}")
    return value


def read_number(value: object, where: str) -> float:
    """Return a number that float64 holds, or raise BundleError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(where, "a number", value)
    try:
        return float(value)
    except OverflowError:
        raise BundleError(f"{where}: is an integer beyond float64") from None


def read_choice(value: object, where: str, choices: Sequence[Choice]) -> Choice:
    """Return one of `choices`, or raise BundleError."""
    for choice in choices:
        if value == choice:
            return choice
    expected = ", ".join("null" if choice is None else repr(choice) for choice in choices)
    raise BundleError(f"{where}: is {value!r}, expected one of {expected}")


def read_counts(value: object, where: str) -> dict[str, int]:
    """Return an object of integers from 1 to 2**63 - 1, or raise BundleError."""
    return {
        name: read_integer(count, f"{where}.{name}", 1, 2**63 - 1)
        for name, count in read_mapping(value, where).items()
    }


def read_flag(value: object, where: str) -> bool:
    """Return True or False, or raise BundleError for anything else, 0 and 1 among it."""
    if not isinstance(value, bool):
        raise BundleError(f"{where}: is {value!r}, expected true or false")
    return value


def read_dtype(value: object, where: str, *, raw: bool = False) -> str:
    """Return the name of a dtype that bundles may hold, or raise BundleError.

    Args:
        value: what was read.
        where: to tell of it.
        raw: whether it may be one whose numbers are carried as raw bits, `bfloat16`.
    """
    return read_choice(value, where, (*DTYPES, "bfloat16") if raw else DTYPES)


def read_shape(value: object, where: str) -> tuple[int, ...]:
    """Return a shape of positive sizes with at most 2**40 elements, or raise BundleError."""
    shape = read_list(value, where, lambda item, place: read_integer(item, place, 1, MAX_ELEMENTS))
    if math.prod(shape) > MAX_ELEMENTS:
        raise BundleError(f"{where}: is {list(shape)}, expected at most {MAX_ELEMENTS} elements")
    return shape


def read_sha256(value: object, where: str) -> str:
    """Return a SHA-256 in hexadecimal, or raise BundleError."""
    digest = read_string(value, where)
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise BundleError(f"{where}: is {digest!r}, expected 64 hexadecimal digits")
    return digest


def _wrong(where: str, expected: str, value: object) -> BundleError:
    return BundleError(f"{where}: expected {expected}, found a {type(value).__name__}")
