"""The pieces of a program for the unconditional half of the batch alone, behind its first site.

A value behind a site holds both halves of guidance along some axis, or is the same for both. A
piece for one half yields half of what it makes; of what enters it whole, and of what it makes from
that, it takes half where half is needed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from ditc.runtime.errors import PassError

from .batch_moves import BATCH, asked, carriers
from .counting import multiply_adds
from .graphs import copy_module, flat_outputs, infer
from .halving import BatchAxes, check_half, take_half, write_half
from .identity import in_batch
from .piece import Piece, SitePieces
from .program import Program
from .verify import verify

__all__ = ["HalfPieces", "half_pieces_of"]


@dataclass(frozen=True, eq=False)
class HalfPieces:
    """The pieces for the unconditional half of the batch alone.

    Attributes:
        glue: what runs behind each site.
        sites: each site's pieces in turn.
        axes: for every value that enters or leaves a piece by halves, by name, the axis they lie
            on; all others are whole.
        last: whether it is the second half.
    """

    glue: tuple[Piece, ...]
    sites: tuple[tuple[Piece, ...], ...]
    axes: Mapping[str, int]
    last: bool

    def half(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Return the half of a value by its name, a whole one as it is."""
        return value.chunk(2, dim=self.axes[name])[self.last] if name in self.axes else value

    def with_half(self, name: str, value: torch.Tensor, half: torch.Tensor) -> torch.Tensor:
        """Return a value by its name with another half in it, of a whole one the other."""
        if name not in self.axes:
            return half
        other = value.chunk(2, dim=self.axes[name])[not self.last]
        return torch.cat([other, half] if self.last else [half, other], dim=self.axes[name])


@dataclass
class _Followed:
    """A piece that the batch was followed through.

    Attributes:
        axis: of each node that holds both halves.
        wanted: of a node and what it takes half of, though that is whole, the axis to halve.
    """

    axis: dict[fx.Node, int]
    wanted: dict[tuple[fx.Node, fx.Node], int] = field(default_factory=dict)


def half_pieces_of(
    program: Program, glue: Sequence[Piece], parts: Sequence[SitePieces]
) -> HalfPieces | None:
    """Return the pieces for the unconditional half of the batch.

    Args:
        program: that was cut.
        glue: what runs before each site, and behind the last.
        parts: the sites.

    Returns:
        None where the batch doesn't hold both halves, or where an operator behind a site treats
        it in a way that isn't known.
    """
    if program.cfg is None or not in_batch(program.cfg):
        return None
    batch = program.latents.shape[0]
    axes = {entry.name: 0 for entry in program.inputs if entry.shape[:1] == (batch,)}
    _follow_whole(glue[0], axes)
    last = program.cfg == "cond-first"
    rows = [(*part.in_turn, piece) for part, piece in zip(parts, glue[1:], strict=True)]
    try:
        halved = [[_halved(piece, axes, last) for piece in row] for row in rows]
    except PassError:
        return None
    for piece in (piece for row in halved for piece in row):
        verify(piece.module)
    sites = tuple(tuple(row[:-1]) for row in halved)
    return HalfPieces(tuple(row[-1] for row in halved), sites, axes, last)


def _follow_whole(piece: Piece, axes: dict[str, int]) -> None:
    """Add the axes of what a piece yields to `axes`, as far as they are known: it runs whole."""
    batched = _entering(piece, axes)
    for node in piece.module.graph.nodes:
        if node.op == "call_function":
            _try_to_follow(node, batched)
    _leave(piece, batched.axis, axes)


def _try_to_follow(node: fx.Node, batched: BatchAxes) -> None:
    try:
        batched.follow(node, BATCH)
    except PassError:
        batched.axis.pop(node, None)


def _halved(piece: Piece, axes: dict[str, int], last: bool) -> Piece:
    """Return a piece for half the batch, and add the axes of what it yields to `axes`.

    Args:
        piece: for all of it.
        axes: of what enters the piece by halves.
        last: which half.

    Raises:
        PassError: if it isn't known how an operator treats the batch.
    """
    followed = _followed(piece, axes)
    module = copy_module(piece.module)
    graph = module.graph
    copies = dict(zip(piece.module.graph.nodes, list(graph.nodes), strict=True))
    for (node, source), at in followed.wanted.items():
        with graph.inserting_before(copies[node]):
            half = take_half(copies[source], at, last=last)
        copies[node].replace_input_with(copies[source], half)
    for node, axis in followed.axis.items():
        copy, whole = copies[node], node.meta["val"]
        if node.op == "placeholder":
            copy.meta["val"] = whole.narrow(axis, 0, whole.shape[axis] // 2)
            continue
        write_half(copy, axis)
        infer([copy])
        check_half(copy, whole, axis)
    module.recompile()
    _leave(piece, followed.axis, axes)
    return Piece(module, piece.inputs, piece.outputs, multiply_adds(graph))


def _followed(piece: Piece, axes: Mapping[str, int]) -> _Followed:
    batched = _entering(piece, axes)
    followed = _Followed(batched.axis)
    for node in piece.module.graph.nodes:
        if node.op != "call_function":
            continue
        batched.follow(node, BATCH)
        if node not in batched.axis:
            continue
        for source in carriers(node):
            at = None if source in batched.axis else asked(node, source, batched.axis[node])
            if at is not None:
                followed.wanted[node, source] = at
    return followed


def _entering(piece: Piece, axes: Mapping[str, int]) -> BatchAxes:
    batched = BatchAxes(())
    for node in piece.module.graph.find_nodes(op="placeholder"):
        if node.name in axes:
            batched.axis[node] = axes[node.name]
    return batched


def _leave(piece: Piece, axis: Mapping[fx.Node, int], axes: dict[str, int]) -> None:
    """Add the axes of what a piece yields to `axes`."""
    for name, node in zip(piece.outputs, flat_outputs(piece.module.graph), strict=True):
        if node in axis:
            axes[name] = axis[node]
