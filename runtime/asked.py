"""What a bundle's schedule was made for, so that the next one can stay near it."""

from dataclasses import dataclass

from .errors import BundleError
from .fields import JsonValue, read_list, read_name, read_object

__all__ = ["AskedInfo"]


@dataclass(frozen=True)
class AskedInfo:
    """What was asked for, told by digests.

    Attributes:
        key: of all but the methods.
        steps: of each step's methods, before steps were merged.
    """

    key: str
    steps: tuple[str, ...]

    def to_json(self) -> dict[str, JsonValue]:
        """Return the JSON object."""
        return {"key": self.key, "steps": list(self.steps)}

    @classmethod
    def from_json(cls, value: object, where: str) -> "AskedInfo":
        """Return what `to_json` wrote, or raise BundleError."""
        found = read_object(value, where, ("key", "steps"))
        steps = read_list(found["steps"], f"{where}.steps", read_name)
        return cls(read_name(found["key"], f"{where}.key"), steps)

    def check(self, steps: int) -> None:
        """Check that there is a digest for each step.

        Raises:
            BundleError: if there isn't.
        """
        if len(self.steps) != steps:
            raise BundleError(f"asked.steps: has {len(self.steps)} entries, expected {steps}")
