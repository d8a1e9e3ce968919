"""Tell image tokens from others: which positions of a sequence are made from the latents.

Every value is followed as a mask that says which of its elements come from the latents, and every
attention in question is replaced by one that leaves each token to itself. What is marked then was
made from the latents, token by token: text, registers and tokens of time stay unmarked, wherever
and however they were joined to the image. No weight is read.

Where only the first index of one axis is marked, such as the first frame, the tokens that are tell
whether a sequence runs along that axis: of one frame's tokens all are or none, of one place's some.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import fx

from .graphs import shape_of
from .marks import Marks, any_of

__all__ = ["image_tokens", "token_axes"]


def image_tokens(
    module: fx.GraphModule,
    example: Mapping[str, torch.Tensor],
    latents: str,
    queries: Mapping[fx.Node, fx.Node],
) -> dict[fx.Node, tuple[bool, ...]]:
    """Return, for each attention, which of its queries are made from the latents.

    Args:
        module: a captured graph.
        example: arguments it may be run with, by input name.
        latents: name of the input that holds the latents.
        queries: query of each attention, `[..., tokens, head_dim]`, by the attention's output.
    """
    made = _marked(module, example, latents, queries, torch.tensor(True))
    return {node: tuple(rows.any(dim=0).tolist()) for node, rows in made.items()}


def token_axes(
    module: fx.GraphModule,
    example: Mapping[str, torch.Tensor],
    latents: str,
    queries: Mapping[fx.Node, fx.Node],
) -> dict[fx.Node, frozenset[int]]:
    """Return the axes of the latents behind the batch that the tokens of each attention run along.

    Arguments are those of `image_tokens`.
    """
    found: dict[fx.Node, frozenset[int]] = {node: frozenset() for node in queries}
    shape = example[latents].shape
    for axis in range(1, len(shape)):
        where = torch.zeros([size if at == axis else 1 for at, size in enumerate(shape)]).bool()
        where.select(axis, 0).fill_(True)
        for node, rows in _marked(module, example, latents, queries, where).items():
            if (rows.any(dim=1) & ~rows.all(dim=1)).any():
                found[node] |= {axis}
    return found


def _marked(
    module: fx.GraphModule,
    example: Mapping[str, torch.Tensor],
    latents: str,
    queries: Mapping[fx.Node, fx.Node],
    where: torch.Tensor,
) -> dict[fx.Node, torch.Tensor]:
    """Return, for each attention, which of its queries are marked, `[rows, tokens]`."""
    if not queries:
        return {}
    marks = Marks(module, example, latents, where)
    needed = _needed(module.graph, queries)
    last = {arg: node for node in needed for arg in _sources(node, queries)}
    found: dict[fx.Node, torch.Tensor] = {}
    for node in needed:
        if node in queries:
            made = any_of(marks.of(queries[node]), (-1,))
            found[node] = made.flatten(0, -3)[..., 0]
            marks.set(node, made.expand(shape_of(node)))
        else:
            marks.follow(node)
        for source in _sources(node, queries):
            if last[source] is node:
                marks.forget(source)
    return found


def _needed(graph: fx.Graph, queries: Mapping[fx.Node, fx.Node]) -> list[fx.Node]:
    """Return the nodes that the queries are computed from, in order."""
    wanted: set[fx.Node] = set(queries)
    for node in reversed(graph.nodes):
        if node in wanted:
            wanted.update(_sources(node, queries))
    return [node for node in graph.nodes if node in wanted]


def _sources(node: fx.Node, queries: Mapping[fx.Node, fx.Node]) -> Iterable[fx.Node]:
    return (queries[node],) if node in queries else node.all_input_nodes
