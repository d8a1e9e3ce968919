"""The pieces of a program for the unconditional half of the batch alone, behind its first site.

A value behind a site holds both halves of guidance along some axis, or is the same for both. A
piece for one half yields half of what it makes; of what enters it whole, and of what it makes from
that, it takes half where half is needed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from ditc.runtime.errors import PassError

from .batch_moves import BATCH, asked, carriers
from .counting import multiply_adds
from .graphs import call, copy_module, flat_outputs, infer, shape_of
from .halving import BatchAxes
from .piece import Piece, SitePieces
from .program import Program
from .verify import verify

__all__ = ["Halves", "halves_of"]

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Halves:
    """The pieces for the unconditional half of the batch alone.

    Attributes:
        glue: what runs behind each site.
        sites: each site's pieces in turn.
        axes: for every value that enters or leaves a piece by halves, by name, the axis they lie
            on; all others are whole.
    """

    glue: tuple[Piece, ...]
    sites: tuple[tuple[Piece, ...], ...]
    axes: Mapping[str, int]


def halves_of(
    program: Program, glue: Sequence[Piece], parts: Sequence[SitePieces]
) -> Halves | None:
    """Return the pieces for the unconditional half of the batch.

    Args:
        program: that was cut.
        glue: what runs before each site, and behind the last.
        parts: the sites.

    Returns:
        None where there are no halves, or where an operator behind a site treats the batch in a
        way that isn't known.
    """
    if program.cfg is None:
        return None
    batch = program.latents.shape[0]
    axes = {entry.name: 0 for entry in program.inputs if entry.shape[:1] == (batch,)}
    _follow(glue[0], axes)
    last = program.cfg == "cond-first"
    sites, behind = [], []
    try:
        for part, piece in zip(parts, glue[1:], strict=True):
            sites.append(tuple(_halved(stretch, axes, last) for stretch in part.in_turn))
            behind.append(_halved(piece, axes, last))
    except PassError:
        return None
    return Halves(tuple(behind), tuple(sites), axes)


def _follow(piece: Piece, axes: dict[str, int]) -> None:
    """Add the axes of what a piece makes to `axes`, as far as they are known: it runs whole."""
    batched = BatchAxes(())
    for node in piece.module.graph.nodes:
        if node.op == "placeholder" and node.name in axes:
            batched.axis[node] = axes[node.name]
        if node.op != "call_function":
            continue
        try:
            batched.follow(node, BATCH)
        except PassError:
            continue
    axes.update({node.name: axis for node, axis in batched.axis.items()})


def _halved(piece: Piece, axes: dict[str, int], last: bool) -> Piece:
    """Return a piece for half the batch, and add the axes of what it yields to `axes`.

    Args:
        piece: for all of it.
        axes: of what enters the piece by halves.
        last: which half.
    """
    module = copy_module(piece.module)
    graph = module.graph
    batched = BatchAxes(())
    for node in graph.find_nodes(op="placeholder"):
        if node.name in axes:
            batched.axis[node] = axes[node.name]
            value = node.meta["val"]
            node.meta["val"] = value.narrow(axes[node.name], 0, value.shape[axes[node.name]] // 2)
    for node in list(graph.nodes):
        if node.op == "call_function":
            batched.follow(node, BATCH)
            _take_halves(node, batched, last)
            batched.halve(node)
            infer([node])
    verify(module)
    module.recompile()
    for name, node in zip(piece.outputs, flat_outputs(graph), strict=True):
        if node in batched.axis:
            axes[name] = batched.axis[node]
    return Piece(module, piece.inputs, piece.outputs, multiply_adds(graph))


def _take_halves(node: fx.Node, batched: BatchAxes, last: bool) -> None:
    """Take half of what a node with half the batch has whole and needs half of."""
    if node not in batched.axis:
        return
    for source in carriers(node):
        at = None if source in batched.axis else asked(node, source, batched.axis[node])
        if at is None:
            continue
        size = shape_of(source)[at] // 2
        with node.graph.inserting_before(node):
            half = call(node.graph, aten.slice.Tensor, source, at, size * last, size * (1 + last))
        batched.axis[half] = at
        node.replace_input_with(source, half)
