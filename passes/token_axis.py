"""Where a value holds the image tokens of a sequence: on which axis, among what."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from .tile_window import TileLayout

__all__ = ["TokenAxis", "moved", "order_of", "reshaped"]


@dataclass(frozen=True)
class TokenAxis:
    """An axis of size `outer · length · inner` that counts the tokens of a sequence in its middle.

    Attributes:
        dim: number of the axis, from the front.
        length: tokens of the sequence.
        image: how many of them are image tokens, one behind the other.
        first: the first of these.
        outer: what is counted more slowly on the same axis, as samples.
        inner: what is counted faster on the same axis, as heads.
    """

    dim: int
    length: int
    image: int
    first: int = 0
    outer: int = 1
    inner: int = 1

    @property
    def size(self) -> int:
        """Size of the axis."""
        return self.outer * self.length * self.inner

    @property
    def alone(self) -> bool:
        """Whether nothing else is counted on the axis."""
        return self.outer == self.inner == 1


def moved(axis: TokenAxis, dim: int) -> TokenAxis:
    """Return the same on another axis."""
    return replace(axis, dim=dim)


def reshaped(axis: TokenAxis, before: Sequence[int], after: Sequence[int]) -> TokenAxis | None:
    """Return where a reshape from one shape to another puts the tokens; None if it parts them."""
    outer = math.prod(before[: axis.dim]) * axis.outer
    inner = axis.inner * math.prod(before[axis.dim + 1 :])
    for dim, size in enumerate(after):
        front, back = math.prod(after[:dim]), math.prod(after[dim + 1 :])
        if size == 0 or outer % front or inner % back:
            continue
        found = replace(axis, dim=dim, outer=outer // front, inner=inner // back)
        if found.size == size:
            return found
    return None


def order_of(axis: TokenAxis, layout: TileLayout, *, back: bool = False) -> torch.Tensor:
    """Return the entries of an axis in the order in which tile order takes them.

    Args:
        axis: where the image tokens are.
        layout: their order.
        back: return the way back instead: tokens are in tile order, entries in the model's.
    """
    image = torch.tensor(layout.order())
    image = image.argsort() if back else image
    tokens = torch.arange(axis.length)
    tokens[axis.first : axis.first + layout.tokens] = axis.first + image
    entries = torch.arange(axis.size).view(axis.outer, axis.length, axis.inner)
    return entries[:, tokens].reshape(-1)
