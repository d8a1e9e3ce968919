"""Count multiply-adds of graphs and of their sites, from shapes.

Matrix products and convolutions count, elementwise work does not.
"""

import math
from collections.abc import Sequence

import torch
from torch import fx

from .costs import ModelCost, SiteCost
from .graphs import find, shape_of
from .identity import in_batch
from .operators import CONVOLUTIONS, LINEAR, MATMUL, SDPA, activation_of, weight_of
from .program import Program, Site
from .sites import region
from .window import arrow_pairs
from .window_nodes import WINDOWED, read_windowed

__all__ = ["model_cost", "multiply_adds", "node_multiply_adds", "site_cost"]

aten = torch.ops.aten


def model_cost(program: Program) -> ModelCost:
    """Return what a model and its eligible sites cost in a step, of two calls if it makes two."""
    calls = 1 if program.cfg is None or in_batch(program.cfg) else 2
    costs = {site.name: site_cost(program, site) for site in program.sites if site.eligible}
    rest = multiply_adds(program.graph_module.graph) - sum(cost.full for cost in costs.values())
    return ModelCost(calls * rest, {name: cost.times(calls) for name, cost in costs.items()})


def multiply_adds(graph: fx.Graph) -> int:
    """Return the multiply-adds of one run of a graph."""
    return sum(node_multiply_adds(node) for node in graph.nodes)


def site_cost(program: Program, site: Site) -> SiteCost:
    """Return what a site costs."""
    graph = program.graph_module.graph
    inside = region(graph, site.projections, site.exits)
    attention = find(graph, site.attention)
    query = find(graph, site.query)
    assert attention is not None
    assert query is not None
    pairs = math.prod(shape_of(query)[:-1]) * site.context_tokens
    return SiteCost(
        projections=sum(node_multiply_adds(node) for node in inside if node.target in LINEAR),
        attention=pairs * (site.head_dim + shape_of(attention)[-1]),
        tokens=site.tokens,
        text=site.text,
    )


def node_multiply_adds(node: fx.Node) -> int:
    """Return the multiply-adds of one node."""
    if node.op != "call_function":
        return 0
    if node.target in LINEAR:
        rows = math.prod(shape_of(activation_of(node))[:-1])
        return rows * math.prod(shape_of(weight_of(node)))
    if node.target in MATMUL or node.target is aten.baddbmm.default:
        first = node.args[1 if node.target is aten.baddbmm.default else 0]
        assert isinstance(first, fx.Node)
        return math.prod(shape_of(node)) * shape_of(first)[-1]
    if node.target is aten.einsum.default:
        return _einsum_cost(node)
    if node.target in CONVOLUTIONS:
        weight = node.args[1]
        assert isinstance(weight, fx.Node)
        return math.prod(shape_of(node)) * math.prod(shape_of(weight)[1:])
    if node.target in (SDPA, *WINDOWED):
        return _attention_cost(node)
    return 0


def _einsum_cost(node: fx.Node) -> int:
    """Return the product of all axes' sizes; of one operand nothing is multiplied."""
    equation, operands = node.args[:2]
    assert isinstance(equation, str)
    assert isinstance(operands, Sequence)
    if len(operands) == 1:
        return 0
    taken = equation.replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, operand in zip(taken, operands, strict=True):
        assert isinstance(operand, fx.Node)
        for name, size in _sizes(term, shape_of(operand)).items():
            sizes[name] = max(size, sizes.get(name, 1))
    return math.prod(sizes.values())


def _sizes(term: str, shape: tuple[int, ...]) -> dict[str, int]:
    """Return the size of each letter of an operand's term, and of what an ellipsis stands for.

    Axes of an ellipsis are named by their number from the last one on: they align there.
    """
    front, _, end = term.partition("...")
    behind = len(shape) - len(end)
    middle = shape[len(front) : behind]
    hidden = {f".{len(middle) - at}": size for at, size in enumerate(middle)}
    named = dict(zip(front, shape, strict=False)) | dict(zip(end, shape[behind:], strict=True))
    return named | hidden


def _attention_cost(node: fx.Node) -> int:
    query, key = node.args[0], node.args[1]
    assert isinstance(query, fx.Node)
    assert isinstance(key, fx.Node)
    *batch, tokens, head_dim = shape_of(query)
    pairs = tokens * shape_of(key)[-2]
    if node.target is not SDPA:
        options = read_windowed(node)
        pairs = arrow_pairs(tokens, options.window, options.text)
    return math.prod(batch) * pairs * (head_dim + shape_of(node)[-1])
