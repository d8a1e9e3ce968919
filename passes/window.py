"""Windows: which keys a query may see."""

from dataclasses import dataclass
from typing import Protocol

from ditc.runtime.errors import PlanError

__all__ = ["SiteWindow", "Window", "arrow_pairs"]


class SiteWindow(Protocol):
    """Which image tokens see which at a site: `Window` or `TileWindow`, frozen values."""

    def pairs(self, tokens: int) -> int:
        """Return how many (query, key) pairs are visible among `tokens` tokens."""

    def density(self, tokens: int) -> float:
        """Return the visible share of all pairs, in (0, 1]."""

    def to_json(self) -> dict[str, object]:
        """Return what a plan file holds of it."""


@dataclass(frozen=True)
class Window:
    """A one-dimensional window over a token sequence.

    Query i sees key j where `|i // block - j // block| <= radius // block`. With `block=1` that
    is a band of `radius` tokens on each side, the paper's window. With a larger block every query
    of a block sees the same whole blocks, so that no mask is needed within them.

    Attributes:
        radius: tokens seen on each side, a multiple of `block`.
        block: tokens a block, 1 for a band.

    Raises:
        PlanError: if the radius is negative or no multiple of the block.
    """

    radius: int
    block: int = 1

    def __post_init__(self) -> None:
        if self.block < 1:
            raise PlanError(f"window block is {self.block}, expected at least 1")
        if self.radius < 0 or self.radius % self.block:
            raise PlanError(
                f"window radius is {self.radius}, expected a multiple of its block {self.block}, "
                "at least 0"
            )

    @classmethod
    def default(cls, tokens: int) -> "Window":
        """Return the paper's window: a band of an eighth of the tokens on each side."""
        return cls(radius=tokens // 8)

    def keys_of(self, start: int, stop: int, tokens: int) -> tuple[int, int]:
        """Return the half-open range of keys that some query in `start:stop` sees."""
        first = (start // self.block) * self.block - self.radius
        last = ((stop - 1) // self.block + 1) * self.block + self.radius
        return max(0, first), min(tokens, last)

    def pairs(self, tokens: int) -> int:
        """Return how many (query, key) pairs are visible among `tokens` tokens."""
        whole = (tokens - 1) // self.block
        rest = tokens - whole * self.block
        reach = self.radius // self.block
        near = min(reach, max(whole - 1, 0))
        among = whole + near * (2 * whole - near - 1)
        return among * self.block**2 + 2 * min(reach, whole) * self.block * rest + rest**2

    def density(self, tokens: int) -> float:
        """Return the visible share of all pairs, in (0, 1]."""
        return self.pairs(tokens) / tokens**2

    def to_json(self) -> dict[str, object]:
        """Return what a plan file holds of it."""
        return {"radius": self.radius, "block": self.block}


def arrow_pairs(tokens: int, window: SiteWindow, text: tuple[int, int]) -> int:
    """Return how many (query, key) pairs are visible: those of the window, and all with text."""
    words = text[1] - text[0]
    image = tokens - words
    return window.pairs(image) + 2 * words * image + words**2
