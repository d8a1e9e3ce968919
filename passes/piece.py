"""A run of a program's nodes as a module of its own, and the pieces of a site."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import fx

from .program import Site

__all__ = ["Piece", "SitePieces", "Values"]

Values = dict[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Piece:
    """A run of a program's nodes as a module of its own.

    Attributes:
        module: takes the tensors named in `inputs`, returns those named in `outputs`.
        inputs: names of nodes of the program.
        outputs: names of nodes of the program.
        multiply_adds: of one run.
    """

    module: fx.GraphModule = field(repr=False)
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    multiply_adds: int

    def __call__(self, values: Mapping[str, torch.Tensor]) -> Values:
        """Run the piece on values by name and return what it yields, by name."""
        with torch.no_grad():
            results = self.module(*(values[name] for name in self.inputs))
        return dict(zip(self.outputs, results, strict=True))


@dataclass(frozen=True, eq=False)
class SitePieces:
    """A site, cut.

    Attributes:
        site: which.
        whole: from what enters the site to its exits.
        entry: from what enters the site to query, key and value.
        attention: from there to full attention, before the output projection.
        window: the same with attention in the window.
        exit: from the attention's output to the exits.
    """

    site: Site
    whole: Piece
    entry: Piece
    attention: Piece
    window: Piece
    exit: Piece

    @property
    def in_turn(self) -> tuple[Piece, Piece, Piece]:
        """The pieces that make the whole, one after the other."""
        return self.entry, self.attention, self.exit
