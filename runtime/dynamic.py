"""A range of batch sizes: which axes of a bundle's tensors hold the samples, and how many may be.

Shapes in a manifest are those of the samples it was compiled at; an axis of the batch is a
multiple of them, as of both halves of guidance.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from .entries import InputInfo, OutputInfo, SlotInfo
from .errors import BundleError
from .fields import JsonValue, read_integer, read_list, read_mapping, read_name, read_object

__all__ = ["MAX_BATCH", "DynamicInfo", "Scale"]

MAX_BATCH = 2**16
MAX_AXES = 64
Entry = TypeVar("Entry", InputInfo, OutputInfo, SlotInfo)


@dataclass(frozen=True)
class DynamicInfo:
    """The batch sizes that a bundle's graphs serve.

    Attributes:
        least: samples at least; guidance has twice as many rows.
        most: samples at most.
        axes: of inputs, outputs and slots by name the axis that holds the batch; what isn't named
            has the same shape at every size.
    """

    least: int
    most: int
    axes: Mapping[str, int]

    def axis_of(self, name: str) -> int | None:
        """Return the axis of a tensor, None if it has no batch; slots of two calls share one."""
        return self.axes.get(name, self.axes.get(name.partition("@")[0]))

    def to_json(self) -> dict[str, JsonValue]:
        """Return the JSON object."""
        return {"batch": [self.least, self.most], "axes": dict(self.axes)}

    @classmethod
    def from_json(cls, value: object, where: str) -> "DynamicInfo":
        """Return what `to_json` wrote, or raise BundleError."""
        found = read_object(value, where, ("batch", "axes"))
        batch = read_list(
            found["batch"], f"{where}.batch", lambda item, at: read_integer(item, at, 1, MAX_BATCH)
        )
        if len(batch) != 2 or batch[0] > batch[1]:
            raise BundleError(f"{where}.batch: is {list(batch)}, expected the least and the most")
        axes = read_mapping(found["axes"], f"{where}.axes")
        return cls(
            batch[0],
            batch[1],
            {
                read_name(name, f"{where}.axes"): read_integer(
                    axis, f"{where}.axes.{name}", 0, MAX_AXES
                )
                for name, axis in axes.items()
            },
        )


@dataclass(frozen=True)
class Scale:
    """From one number of samples to another."""

    dynamic: DynamicInfo
    before: int
    after: int

    def entry(self, entry: Entry, in_front: int = 0) -> Entry:
        """Return what a manifest says of a tensor, at the other number of samples.

        Args:
            entry: an input, output or slot.
            in_front: axes that come before those that the tensor has in a step.
        """
        axis = self.dynamic.axis_of(entry.name)
        if axis is None:
            return entry
        axis += in_front
        shape = list(entry.shape)
        shape[axis] = shape[axis] // self.before * self.after
        return replace(entry, shape=tuple(shape))
