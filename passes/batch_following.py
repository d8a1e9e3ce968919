"""Follow the batch through a whole graph: on which axis every value holds it."""

import operator
from collections.abc import Sequence

import torch
from torch import fx

from ditc.runtime.errors import PassError

from .batch_moves import UnknownOperatorError, indifferent
from .batch_rules import FILLED
from .graphs import BOTH_HALVES, ONE_HALF, given, shape_of
from .halving import BatchAxes

__all__ = ["Followed", "follow_batch"]

aten = torch.ops.aten
HALVES = 2
"""It is these that have to stay whole; what a batch holds beside them may be merged or split."""


class Followed:
    """Where the values of a whole graph hold the batch.

    Attributes:
        axes: by node; the batch is outermost where it is merged.
        samples: which sample a value is of, where a model goes through them one by one.
        guessed: why it isn't known of a value, which is taken to have the batch first.
        lost: why a value that is made from the latents has no axis.
    """

    def __init__(self, axes: dict[fx.Node, int]) -> None:
        self.axes = axes
        self.samples: dict[fx.Node, int] = {}
        self.guessed: dict[fx.Node, PassError] = {}
        self.lost: dict[fx.Node, PassError] = {}


def follow_batch(graph: fx.Graph, latents: fx.Node, batch: int) -> Followed:
    """Return where a graph's values hold the batch, as far as they are made from the latents.

    Samples don't mix, so where one argument tells the axis, no other one has it elsewhere. Of
    operators that aren't known, those are taken to keep the batch first that keep the size of the
    first axis.

    Args:
        graph: the whole graph; values of one half alone are left out.
        latents: the input that has the batch first.
        batch: its size.
    """
    axes = BatchAxes((latents,))
    found = Followed(axes.axis)
    for node in graph.nodes:
        if BOTH_HALVES in node.meta:
            found.axes[node] = node.meta[BOTH_HALVES]
        elif node.op == "call_function" and ONE_HALF not in node.meta and node.target not in FILLED:
            _follow(node, axes, found, batch)
    return found


def _follow(node: fx.Node, axes: BatchAxes, found: Followed, batch: int) -> None:
    joined, sample = _joined(node, found, batch), _picked(node, found, batch)
    if joined is not None:
        found.axes[node] = joined
    elif sample is not None:
        found.samples[node] = sample
    elif not _takes_apart(node, found, batch):
        _carry(node, axes, found, batch)


def _carry(node: fx.Node, axes: BatchAxes, found: Followed, batch: int) -> None:
    try:
        axes.follow(node, HALVES)
    except PassError as error:
        if isinstance(error, UnknownOperatorError) and _keeps_first(node, found.axes, batch):
            found.axes[node], found.guessed[node] = 0, error
        else:
            found.lost[node] = error
    if node not in found.axes:
        _inherit(node, found)


def _inherit(node: fx.Node, found: Followed) -> None:
    """A value is of the one sample that it is made from, or as lost as that."""
    if node in found.lost:
        return
    sources = [arg for arg in node.all_input_nodes if not indifferent(node, arg)]
    reasons = [found.lost[arg] for arg in sources if arg in found.lost]
    samples = {found.samples[arg] for arg in sources if arg in found.samples}
    if reasons:
        found.lost[node] = reasons[0]
    elif len(samples) == 1:
        found.samples[node] = samples.pop()
    elif samples:
        found.lost[node] = PassError(f"node {node.name}: is made from several samples")


def _picked(node: fx.Node, found: Followed, batch: int) -> int | None:
    """Return which sample a node picks from the batch, None if it picks none."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return None
    if node.target is operator.getitem and _takes_apart(source, found, batch):
        index = node.args[1]
        assert isinstance(index, int)
        return index
    if node.target is aten.select.int and _along_batch(node, 1, found):
        index = node.args[2]
        assert isinstance(index, int)
        return index % shape_of(source)[found.axes[source]]
    return None


def _takes_apart(node: fx.Node, found: Followed, batch: int) -> bool:
    """Whether a node takes the batch apart into its samples."""
    if node.target is aten.unbind.int:
        return _along_batch(node, 1, found)
    splits = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)
    if node.target not in splits or not _along_batch(node, 2, found):
        return False
    shapes = [tuple(part.shape) for part in node.meta["val"]]
    return len(shapes) == batch and len(set(shapes)) == 1


def _along_batch(node: fx.Node, position: int, found: Followed) -> bool:
    source, dim = node.args[0], given(node, position, "dim", 0)
    if not isinstance(source, fx.Node) or source not in found.axes:
        return False
    assert isinstance(dim, int)
    return dim % len(shape_of(source)) == found.axes[source]


def _joined(node: fx.Node, found: Followed, batch: int) -> int | None:
    """Return the axis along which a node puts samples in their places, None if it doesn't."""
    if node.target is aten.select_scatter.default:
        _, written, dim, index = node.args[:4]
        assert isinstance(dim, int)
        assert isinstance(index, int)
        own = isinstance(written, fx.Node) and found.samples.get(written) == index % batch
        at = dim % len(shape_of(node))
        return at if own and shape_of(node)[at] == batch else None
    if node.target not in (aten.stack.default, aten.cat.default, aten.pad_sequence.default):
        return None
    parts = node.args[0]
    assert isinstance(parts, Sequence)
    values = [part for part in parts if isinstance(part, fx.Node)]
    if [found.samples.get(part) for part in values] != list(range(batch)):
        return None
    if node.target is aten.pad_sequence.default:
        return 0 if given(node, 1, "batch_first", default=False) else 1
    axis = given(node, 1, "dim", 0)
    assert isinstance(axis, int)
    equal = len({shape_of(part) for part in values}) == 1
    return axis % len(shape_of(node)) if equal else None


def _keeps_first(node: fx.Node, axes: dict[fx.Node, int], batch: int) -> bool:
    known = [arg for arg in node.all_input_nodes if arg in axes]
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.dim() == 0 or any(axes[arg] for arg in known):
        return False
    return value.shape[0] in {batch, *(shape_of(arg)[0] for arg in known)}
