"""The decoder of a bundle, as a manifest tells it: latents of one picture to its pixels."""

from dataclasses import dataclass, fields

from .entries import MAX_COUNT, InputInfo, OutputInfo
from .errors import BundleError
from .fields import JsonValue, read_integer, read_name, read_names, read_object
from .files import check_relative

__all__ = ["DECODER", "FRAMES_AXIS", "DecoderInfo"]

DECODER = "decoder"
"""Name of its graph."""
FRAMES_AXIS = 2
"""Where videos' latents have their frames: behind batch and channels."""


@dataclass(frozen=True)
class DecoderInfo:
    """What a manifest tells of a decoder.

    Attributes:
        graph: the graph's path in the bundle, with forward slashes.
        input: latents of one picture, the batch of one first.
        output: its pixels from 0 to 255, `[1, channels, height, width]`.
        frames_axis: axis of the denoiser's latents that is decoded picture by picture; None where
            there are no frames.
        multiply_adds: of one picture.
        weights: the tensors of the weight store its graph uses, by their names there.
    """

    graph: str
    input: InputInfo
    output: OutputInfo
    frames_axis: int | None
    multiply_adds: int
    weights: tuple[str, ...]

    def to_json(self) -> dict[str, JsonValue]:
        """Return the JSON object."""
        return {
            "graph": self.graph,
            "input": self.input.to_json(),
            "output": self.output.to_json(),
            "frames_axis": self.frames_axis,
            "multiply_adds": self.multiply_adds,
            "weights": list(self.weights),
        }

    @classmethod
    def from_json(cls, value: object, where: str) -> "DecoderInfo":
        """Return what `to_json` wrote, or raise BundleError."""
        found = read_object(value, where, [field.name for field in fields(cls)])
        axis = found["frames_axis"]
        info = cls(
            graph=check_relative(read_name(found["graph"], f"{where}.graph"), f"{where}.graph"),
            input=InputInfo.from_json(found["input"], f"{where}.input"),
            output=OutputInfo.from_json(found["output"], f"{where}.output"),
            frames_axis=None if axis is None else read_integer(axis, f"{where}.frames_axis", 1, 4),
            multiply_adds=read_integer(
                found["multiply_adds"], f"{where}.multiply_adds", 0, MAX_COUNT
            ),
            weights=read_names(found["weights"], f"{where}.weights"),
        )
        if info.input.shape[:1] != (1,) or len(info.output.shape) != 4:
            raise BundleError(
                f"{where}: decodes {list(info.input.shape)} to {list(info.output.shape)}, expected "
                "latents of one sample to one picture"
            )
        if info.output.shape[1] not in (1, 3):
            raise BundleError(
                f"{where}.output: has {info.output.shape[1]} channels, expected 1 or 3"
            )
        return info
