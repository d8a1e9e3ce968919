"""Names of sites on attention nodes, so that what is told of an engine's node names its site."""

from collections.abc import Sequence

import onnx_ir
from torch import fx

from ditc.passes.operators import SDPA
from ditc.passes.program import Program
from ditc.passes.window_nodes import WINDOWED

__all__ = ["SITE", "mark_sites", "name_attentions", "sites_of"]

SITE = "ditc.site"
"""Key of `Node.meta` under which an attention keeps the name of its site."""


def mark_sites(graph: fx.Graph, program: Program) -> None:
    """Note on each attention of a rewritten graph which site it is of, where it is of one."""
    attentions = {site.attention: site.name for site in program.sites}
    queries = {site.query: site.name for site in program.sites}
    for node in graph.nodes:
        if node.target is SDPA and node.name in attentions:
            node.meta[SITE] = attentions[node.name]
        elif node.target in WINDOWED:
            query = node.args[0]
            while isinstance(query, fx.Node) and query.name not in queries:
                query = next(iter(query.all_input_nodes), None)  # past a mask's channels
            if isinstance(query, fx.Node):
                node.meta[SITE] = queries[query.name]


def sites_of(graph: fx.Graph) -> list[str | None]:
    """Return the site of each `scaled_dot_product_attention`, in order."""
    nodes = (node for node in graph.nodes if node.target is SDPA)
    return [node.meta.get(SITE) for node in nodes]


def name_attentions(model: onnx_ir.Model, sites: Sequence[str | None]) -> None:
    """Name each attention node after its site and its number among the graph's attentions.

    They stand in the order of those they were translated from; where one was left out or written
    out, so that they can't be told apart, all keep their names.
    """
    nodes = [node for node in model.graph.all_nodes() if node.op_type == "Attention"]
    if len(nodes) != len(sites):
        return
    for number, (node, site) in enumerate(zip(nodes, sites, strict=True)):
        if site is not None:
            node.name = f"{site}#{number}"
