"""Read values of a plan file, each of the type that it should have.

Every function raises `PlanError` if it isn't, naming where it stands, what was expected and found.
"""

from ditc.runtime.errors import PlanError

__all__ = [
    "MAX_NUMBER",
    "MAX_SEED",
    "kind_of",
    "read_fields",
    "read_integer",
    "read_list",
    "read_no_negative",
    "read_number",
    "read_positive",
    "read_text",
]

MAX_NUMBER = 1e12
"""The largest number that a plan may state."""
MAX_SEED = 2**63


def read_number(value: object, where: str) -> float:
    """Return a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PlanError(f"{where}: expected a number, found {kind_of(value)}")
    if not -MAX_NUMBER <= value <= MAX_NUMBER:
        raise PlanError(f"{where}: expected a number up to {MAX_NUMBER:g}, found a larger one")
    return float(value)


def read_no_negative(value: object, where: str) -> float:
    """Return a finite number from 0 on."""
    number = read_number(value, where)
    if number < 0:
        raise PlanError(f"{where}: is {number:g}, expected no negative number")
    return number


def read_positive(value: object, where: str) -> float:
    """Return a finite number above 0."""
    number = read_number(value, where)
    if number <= 0:
        raise PlanError(f"{where}: is {number:g}, expected a positive number")
    return number


def read_fields(
    value: object, where: str, names: set[str], optional: frozenset[str] | set[str] = frozenset()
) -> dict[str, object]:
    """Return an object that has all the names, and beyond them only optional ones."""
    if not isinstance(value, dict):
        raise PlanError(f"{where}: expected an object, found {kind_of(value)}")
    missing, unknown = sorted(names - set(value)), sorted(set(value) - names - optional)
    if missing:
        raise PlanError(f"{where}: field {missing[0]!r} is missing")
    if unknown:
        raise PlanError(f"{where}: unknown field {unknown[0]!r}")
    return value


def read_list(value: object, where: str) -> list[object]:
    """Return a list."""
    if not isinstance(value, list):
        raise PlanError(f"{where}: expected a list, found {kind_of(value)}")
    return value


def read_integer(value: object, where: str, low: int, high: int) -> int:
    """Return an integer from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        shown = value if isinstance(value, int | float) else kind_of(value)
        raise PlanError(f"{where}: expected an integer from {low} to {high}, found {shown}")
    return value


def read_text(value: object, where: str) -> str:
    """Return printable text."""
    if not isinstance(value, str) or not value or not value.isprintable():
        shown = repr(value) if isinstance(value, str) else kind_of(value)
        raise PlanError(f"{where}: expected printable text, found {shown}")
    return value


def kind_of(value: object) -> str:
    """Return what messages call the type of a value."""
    return "nothing" if value is None else type(value).__name__
