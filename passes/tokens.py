"""Tell image tokens from others: which positions of a sequence are made from the latents.

The graph is run once with nothing but NaN for latents, and with every attention replaced by one
that leaves each token to itself. What is NaN then was made from the latents, token by token: text,
registers and tokens of time stay finite, wherever and however they were joined to the image.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import cast

import torch
from torch import fx
from torch.fx.node import Argument

from ditc.runtime.errors import PassError

from .graphs import weight

__all__ = ["image_tokens"]


def image_tokens(
    module: fx.GraphModule,
    example: Mapping[str, torch.Tensor],
    latents: str,
    queries: Mapping[fx.Node, fx.Node],
) -> dict[fx.Node, tuple[bool, ...]]:
    """Return, for each attention, which of its queries are made from the latents.

    Args:
        module: a captured graph.
        example: arguments to run it with, by input name.
        latents: name of the input that holds the latents.
        queries: query of each attention, `[..., tokens, head_dim]`, by the attention's output.
    """
    if not queries:
        return {}
    needed = _needed(module.graph, queries)
    last = {arg: node for node in needed for arg in _sources(node, queries)}
    values: dict[fx.Node, object] = {}
    found: dict[fx.Node, tuple[bool, ...]] = {}
    with torch.no_grad():
        for node in needed:
            if node in queries:
                query = values[queries[node]]
                assert isinstance(query, torch.Tensor)
                unknown = query.isnan().any(dim=-1, keepdim=True)
                found[node] = tuple(unknown.flatten(0, -3).any(dim=0)[:, 0].tolist())
                values[node] = _left_alone(unknown, node)
            else:
                values[node] = _run(module, node, values, example, latents)
            for source in _sources(node, queries):
                if last[source] is node:
                    values.pop(source, None)
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


def _left_alone(unknown: torch.Tensor, node: fx.Node) -> torch.Tensor:
    """Return an attention's output that holds of each token what its query does."""
    value = node.meta["val"]
    output = torch.zeros(value.shape, dtype=value.dtype, device=unknown.device)
    return output.masked_fill(unknown.expand(value.shape), float("nan"))


def _run(
    module: fx.GraphModule,
    node: fx.Node,
    values: Mapping[fx.Node, object],
    example: Mapping[str, torch.Tensor],
    latents: str,
) -> object:
    if node.op == "placeholder":
        value = example[node.name]
        return torch.full_like(value, float("nan")) if node.name == latents else value
    if node.op == "get_attr":
        return weight(module, str(node.target))
    if not callable(node.target):
        raise PassError(f"node {node.name}: a {node.op} can't be run")
    held = cast("Callable[[fx.Node], Argument]", values.__getitem__)
    args, kwargs = fx.map_arg((node.args, node.kwargs), held)
    return node.target(*args, **kwargs)
