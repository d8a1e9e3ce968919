"""Masks as channels: attention under a mask   becomes   attention without one.

A mask that says the same to all queries adds a number to each key's scores. So does a channel more:
scale · [q, 1 / scale] · [k, mask] = scale · q · k + mask. The same holds for a mask that is a
product of a number for each query and one for each key. Windows then need to know of no masks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from .graphs import call, given, shape_of
from .operators import SDPA

__all__ = ["Factors", "attention_mask", "joining", "mask_factors", "with_mask"]

aten = torch.ops.aten

CHANNELS = 8
"""That a mask takes, equal ones: kernels want heads of multiples of eight."""
HIDDEN = -2048.0
"""Added to scores of hidden keys: as good as minus infinity beside scores of any model, and small
enough for half precision. A query that sees hidden keys alone sees these."""


def attention_mask(attention: fx.Node) -> fx.Node | None:
    """Return the mask that a fused attention is given, None if it is given none."""
    if attention.target is not SDPA:
        return None
    mask = given(attention, 3, "attn_mask")
    return mask if isinstance(mask, fx.Node) else None


@dataclass(frozen=True)
class Factors:
    """A mask as a product.

    Attributes:
        keys: `[..., 1, tokens]`, boolean or a number.
        queries: `[..., tokens, 1]`, a number; None where it is one for all.
    """

    keys: fx.Node
    queries: fx.Node | None = None


def mask_factors(mask: fx.Node, tokens: int) -> Factors | None:
    """Return what a mask says of keys, and what of queries.

    Args:
        mask: what an attention is given; boolean, or added to scores.
        tokens: keys a head, and queries.

    Returns:
        None if it is no product of the two.
    """
    mask = _before_expanding(mask)
    if _ends(mask) == (1, tokens):
        return Factors(mask)
    if mask.target is not aten.mul.Tensor or not mask.meta["val"].is_floating_point():
        return None
    sides = [_before_expanding(arg) for arg in mask.args if isinstance(arg, fx.Node)]
    for keys, queries in (sides, sides[::-1]) if len(sides) == 2 else ():
        if _ends(keys) == (1, tokens) and _ends(queries) == (tokens, 1):
            return Factors(keys, queries)
    return None


def joining(attention: fx.Node, tokens: int) -> Iterator[fx.Node]:
    """Yield the nodes that make an attention's mask of its factors, which are none if it is one."""
    mask = attention_mask(attention)
    factors = None if mask is None else mask_factors(mask, tokens)
    if mask is None or factors is None:
        return
    front = [mask]
    while front:
        node = front.pop()
        if node not in (factors.keys, factors.queries):
            yield node
            front.extend(node.all_input_nodes)


def _before_expanding(mask: fx.Node) -> fx.Node:
    """Return a mask as it was before it was repeated for all queries or keys."""
    while mask.target is aten.expand.default:
        source = mask.args[0]
        assert isinstance(source, fx.Node)
        if len(shape_of(source)) < 2:
            break
        mask = source
    return mask


def _ends(mask: fx.Node) -> tuple[int, ...]:
    return shape_of(mask)[-2:]


def with_mask(
    graph: fx.Graph, mask: Factors, query: fx.Node, key: fx.Node, scale: float
) -> tuple[fx.Node, fx.Node]:
    """Add query and key with channels that stand for a mask, at the insert point.

    Args:
        graph: to add to.
        mask: of the attention.
        query: `[..., tokens, head_dim]`.
        key: as the query, with as many heads.
        scale: factor on query · key.
    """
    dtype = key.meta["val"].dtype
    if mask.keys.meta["val"].dtype is torch.bool:
        seen = call(graph, aten.to.dtype, mask.keys, dtype)
        bias = call(graph, aten.mul.Tensor, call(graph, aten.sub.Tensor, seen, 1.0), -HIDDEN)
    else:
        bias = call(graph, aten.clamp.default, mask.keys, HIDDEN)
    column = call(graph, aten.transpose.int, bias, -2, -1)
    share = call(graph, aten.div.Tensor, column, float(CHANNELS))
    if mask.queries is None:
        rows = call(graph, aten.full_like.default, share, 1 / scale)
    else:
        rows = call(graph, aten.mul.Tensor, mask.queries, 1 / scale)
    sizes = [*shape_of(key)[:-1], CHANNELS]
    wide = [
        call(graph, aten.expand.default, call(graph, aten.to.dtype, part, dtype), sizes)
        for part in (rows, share)
    ]
    return (
        call(graph, aten.cat.default, [query, wide[0]], -1),
        call(graph, aten.cat.default, [key, wide[1]], -1),
    )
