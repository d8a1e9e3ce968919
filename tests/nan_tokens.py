"""Which tokens come from the latents, found by a run of the graph on NaN: the reference."""

from collections.abc import Iterable, Mapping

import torch
from torch import fx

from ditc.passes import Program
from ditc.passes.graphs import find, weight


def nan_tokens(program: Program) -> dict[str, tuple[bool, ...]]:
    """Return, for each site that isn't cross-attention, which queries a NaN in latents reaches.

    Attention itself leaves each token alone: its output is NaN where its query is.
    """
    graph = program.graph_module.graph
    attentions = {
        find(graph, site.attention): site for site in program.sites if site.kind != "cross"
    }
    values: dict[fx.Node, object] = {}
    found: dict[str, tuple[bool, ...]] = {}
    with torch.no_grad():
        for node in _needed(graph, attentions):
            if node not in attentions:
                values[node] = _run(program, node, values)
                continue
            site = attentions[node]
            unknown = values[find(graph, site.query)].isnan().any(dim=-1, keepdim=True)
            found[site.name] = tuple(unknown.flatten(0, -3).any(dim=0)[:, 0].tolist())
            output = torch.zeros(node.meta["val"].shape)
            values[node] = output.masked_fill(unknown.expand(output.shape), float("nan"))
    return found


def _needed(graph: fx.Graph, attentions: Iterable[fx.Node]) -> list[fx.Node]:
    wanted = set(attentions)
    for node in reversed(graph.nodes):
        if node in wanted:
            wanted.update(node.all_input_nodes)
    return [node for node in graph.nodes if node in wanted]


def _run(program: Program, node: fx.Node, values: Mapping[fx.Node, object]) -> object:
    if node.op == "placeholder":
        value = program.example[node.name]
        latents = node.name == program.latents.name
        return torch.full_like(value, float("nan")) if latents else value
    if node.op == "get_attr":
        return weight(program.graph_module, node.target)
    args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
    return node.target(*args, **kwargs)
