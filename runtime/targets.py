"""What models are lowered to by this version, and in which precision."""

import re
from dataclasses import dataclass

from .errors import LoweringError

__all__ = [
    "EXTRAS",
    "LIBRARIES",
    "PRECISIONS",
    "TARGETS",
    "WEIGHTS_MODES",
    "Target",
    "parse_target",
]

TARGETS = ("onnx", "tensorrt-rtx", "tensorrt", "torch-tensorrt")
PRECISIONS = ("fp32", "fp16", "bf16")
LIBRARIES = {
    "tensorrt-rtx": ("tensorrt_rtx",),
    "tensorrt": ("tensorrt",),
    "torch-tensorrt": ("tensorrt", "tensorrt_rtx"),
}
"""The Python module that builds and runs the engines of a target; of several it is the one that
the Torch-TensorRT installed builds with."""
EXTRAS = {"tensorrt_rtx": "rtx", "tensorrt": "tensorrt"}
"""Which of ditc's extras brings each of these modules."""
LISTING = ("tensorrt-rtx", "torch-tensorrt")
"""Targets that a list of GPUs may follow."""
WEIGHTS_MODES = ("inputs", "baked")
"""Whether an engine takes its weights as inputs, or holds them."""


@dataclass(frozen=True)
class Target:
    """What buckets are lowered to.

    Attributes:
        name: one of `TARGETS`.
        capabilities: compute capabilities of the GPUs to build for, as `sm89`, ascending; empty
            where the target has none, or builds for the GPU at hand.
    """

    name: str
    capabilities: tuple[str, ...] = ()

    @property
    def libraries(self) -> tuple[str, ...]:
        """Python modules of which one has its engines; none for graphs that ONNX Runtime takes."""
        return LIBRARIES.get(self.name, ())

    def __str__(self) -> str:
        listed = ",".join(self.capabilities)
        return f"{self.name}:{listed}" if listed else self.name


def parse_target(text: str) -> Target:
    """Return the target that a text names, as `tensorrt-rtx:sm89,sm120`.

    Raises:
        LoweringError: if there is no such target, or what follows the colon is no list of GPUs.
    """
    name, colon, listed = text.partition(":")
    if name not in TARGETS:
        raise LoweringError(f"target {text!r} is not known: expected {' or '.join(TARGETS)}")
    if not colon:
        return Target(name)
    if name not in LISTING:
        raise LoweringError(
            f"target {text!r}: {name} takes no list of GPUs, only {' and '.join(LISTING)} do; give "
            f"{name!r}"
        )
    found = listed.split(",")
    for entry in found:
        if not re.fullmatch(r"sm[1-9][0-9]{1,2}", entry):
            raise LoweringError(
                f"target {text!r}: {entry!r} is no compute capability, expected as sm89 or sm120"
            )
    return Target(name, tuple(sorted(set(found), key=lambda entry: int(entry[2:]))))
