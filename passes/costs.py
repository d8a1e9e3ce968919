"""Count multiply-adds from shapes: of graphs, and of sites under a method.

One multiply-add is two FLOPs, so shares are the same in both. Matrix products count, elementwise
work does not. A window counts every (query, key) pair it sees, a residual its own window
attention, and projections count wherever they run.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import fx

from .arrow_attention import ARROW_ATTENTION, arrow_pairs
from .attention import WINDOW_ATTENTION
from .graphs import find, shape_of
from .method import Method
from .operators import LINEAR, MATMUL, SDPA, activation_of, weight_of
from .program import Program, Site
from .sites import region
from .window import Window

__all__ = [
    "ModelCost",
    "SiteCost",
    "attention_core",
    "model_cost",
    "multiply_adds",
    "site_cost",
]

aten = torch.ops.aten
CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)


@dataclass(frozen=True)
class SiteCost:
    """Multiply-adds of a site at one step, for all of the batch.

    Attributes:
        projections: of query, key, value and output projections.
        attention: of query · keyᵀ and of weights · value, full.
        tokens: queries a head.
        text: range of the tokens that every window leaves full.
    """

    projections: int
    attention: int
    tokens: int
    text: tuple[int, int] = (0, 0)

    @property
    def full(self) -> int:
        """Multiply-adds of the site as trained."""
        return self.projections + self.attention

    def to_json(self) -> dict[str, object]:
        """Return what a plan file holds of it; text only where there is some."""
        fields: dict[str, object] = asdict(self)
        del fields["text"]
        return fields if self.text[0] == self.text[1] else {**fields, "text": list(self.text)}

    def of(self, method: Method, window: Window, *, keeps_residual: bool = False) -> int:
        """Return the multiply-adds under a method.

        Source: `(4Nd² + f·2N²d)` with the window's density f, halved where one half of CFG is
        computed (DiTFastAttn, arXiv 2406.08552). A residual costs f·2N²d on top.
        """
        if method is Method.AST:
            return 0
        seen = self.attention * arrow_pairs(self.tokens, window, self.text) // self.tokens**2
        total = self.projections + (seen if method.windowed else self.attention)
        total += seen if keeps_residual else 0
        return total // 2 if method.shares_cfg else total


@dataclass(frozen=True)
class ModelCost:
    """Multiply-adds of a model at one step, as captured, for all of the batch.

    Attributes:
        rest: of all but the eligible sites.
        sites: of each eligible site.
    """

    rest: int
    sites: Mapping[str, SiteCost]

    @property
    def full(self) -> int:
        """Multiply-adds of the whole model, uncompressed."""
        return self.rest + sum(site.full for site in self.sites.values())

    def to_json(self) -> dict[str, object]:
        """Return what a plan file holds of it."""
        return {
            "rest": self.rest,
            "sites": {name: cost.to_json() for name, cost in self.sites.items()},
        }


def model_cost(program: Program) -> ModelCost:
    """Return what a model and its eligible sites cost."""
    sites = {site.name: site_cost(program, site) for site in program.sites if site.eligible}
    whole = multiply_adds(program.graph_module.graph)
    return ModelCost(whole - sum(cost.full for cost in sites.values()), sites)


def multiply_adds(graph: fx.Graph) -> int:
    """Return the multiply-adds of one run of a graph."""
    return sum(_node_cost(node) for node in graph.nodes)


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
        projections=sum(_node_cost(node) for node in inside if node.target in LINEAR),
        attention=pairs * (site.head_dim + shape_of(attention)[-1]),
        tokens=site.tokens,
        text=site.text,
    )


def attention_core(steps: int, layers: int, tokens: int, width: int, *, halves: int = 2) -> int:
    """Return the multiply-adds of attention alone over a generation: no projections.

    Source: steps · layers · halves · 2N²d (DiTFastAttn, arXiv 2406.08552).

    Args:
        steps: denoising steps.
        layers: self-attentions in the model.
        tokens: N, a sample's tokens.
        width: d, heads times head dimension.
        halves: 2 with classifier-free guidance, 1 without.
    """
    return steps * layers * halves * 2 * tokens**2 * width


def _node_cost(node: fx.Node) -> int:
    if node.op != "call_function":
        return 0
    if node.target in LINEAR:
        rows = math.prod(shape_of(activation_of(node))[:-1])
        return rows * math.prod(shape_of(weight_of(node)))
    if node.target in MATMUL or node.target is aten.baddbmm.default:
        first = node.args[1 if node.target is aten.baddbmm.default else 0]
        assert isinstance(first, fx.Node)
        return math.prod(shape_of(node)) * shape_of(first)[-1]
    if node.target in CONVOLUTIONS:
        weight = node.args[1]
        assert isinstance(weight, fx.Node)
        return math.prod(shape_of(node)) * math.prod(shape_of(weight)[1:])
    if node.target in (SDPA, WINDOW_ATTENTION, ARROW_ATTENTION):
        return _attention_cost(node)
    return 0


def _attention_cost(node: fx.Node) -> int:
    query, key = node.args[0], node.args[1]
    assert isinstance(query, fx.Node)
    assert isinstance(key, fx.Node)
    *batch, tokens, head_dim = shape_of(query)
    pairs = tokens * shape_of(key)[-2]
    if node.target is not SDPA:
        radius, block = node.args[3], node.args[4]
        assert isinstance(radius, int)
        assert isinstance(block, int)
        start, stop = (*node.args[6:8], 0, 0)[:2]
        assert isinstance(start, int)
        assert isinstance(stop, int)
        pairs = arrow_pairs(tokens, Window(radius, block), (start, stop))
    return math.prod(batch) * pairs * (head_dim + shape_of(node)[-1])
