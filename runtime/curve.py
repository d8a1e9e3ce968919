"""What a limit on buckets costs, as a manifest tells it."""

from dataclasses import dataclass

from .errors import BundleError
from .fields import JsonValue, read_list, read_number, read_object

__all__ = ["CurveInfo"]


@dataclass(frozen=True)
class CurveInfo:
    """The predicted cost of the attention sites in a generation, at every limit on buckets.

    Attributes:
        costs: at 1, 2, … buckets, the last without a limit; never rising.
        full: uncompressed.
    """

    costs: tuple[float, ...]
    full: float

    def to_json(self) -> dict[str, JsonValue]:
        """Return the JSON object."""
        return {"costs": list(self.costs), "full": self.full}

    @classmethod
    def from_json(cls, value: object, where: str) -> "CurveInfo":
        """Return what `to_json` wrote, or raise BundleError."""
        found = read_object(value, where, ("costs", "full"))
        costs = read_list(found["costs"], f"{where}.costs", read_number)
        full = read_number(found["full"], f"{where}.full")
        if not costs or min(costs) < 0 or list(costs) != sorted(costs, reverse=True):
            raise BundleError(f"{where}.costs: expected numbers that never rise, from 1 bucket on")
        return cls(costs, full)
