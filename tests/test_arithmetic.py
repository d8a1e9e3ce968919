"""Multiply-adds: the paper's figures, and graphs counted node by node."""

from dataclasses import replace

import pytest
import torch

from ditc.passes import (
    Method,
    Plan,
    SiteCost,
    Window,
    attention_core,
    multiply_adds,
    schedule,
    schedule_cost,
    site_cost,
)

from .samples import METHODS, mixed, sample

WIDTH = 1152
GIGA = 10**9


@pytest.mark.parametrize(("tokens", "giga"), [(1024, 2_705), (4096, 43_293), (16384, 692_692)])
def test_attention_core_of_the_papers_models(tokens: int, giga: int) -> None:
    # 20 steps, 28 layers; the paper rounds down.
    assert attention_core(20, 28, tokens, WIDTH) // GIGA == giga


def test_attention_core_of_one_half() -> None:
    assert attention_core(1, 1, 4, 8, halves=1) == 2 * 16 * 8


def papers_cost(tokens: int) -> SiteCost:
    return SiteCost(
        projections=2 * 4 * tokens * WIDTH**2, attention=2 * 2 * tokens**2 * WIDTH, tokens=tokens
    )


@pytest.mark.parametrize(
    ("tokens", "left"),
    [
        (1024, {"full": 100, "asc": 50, "wa-rs": 77, "wa-rs+asc": 38, "ast": 0}),
        (4096, {"full": 100, "asc": 50, "wa-rs": 51, "wa-rs+asc": 26, "ast": 0}),
        (16384, {"full": 100, "asc": 50, "wa-rs": 33, "wa-rs+asc": 16, "ast": 0}),
    ],
)
def test_shares_of_the_methods_are_the_papers(tokens: int, left: dict[str, int]) -> None:
    cost = papers_cost(tokens)
    for method, percent in left.items():
        found = 100 * cost.of(Method(method), Window.default(tokens)) / cost.full
        assert abs(found - percent) <= 1.5


@pytest.mark.parametrize("tokens", [1024, 4096])
def test_windows_and_residuals_are_never_free(tokens: int) -> None:
    cost, window = papers_cost(tokens), Window.default(tokens)
    seen = 2 * 2 * WIDTH * window.pairs(tokens)
    assert cost.of(Method.WA_RS, window) == cost.projections + seen
    assert cost.of(Method.WA_RS_ASC, window) == (cost.projections + seen) // 2
    assert cost.of(Method.FULL, window, keeps_residual=True) == cost.full + seen
    assert cost.of(Method.ASC, window, keeps_residual=True) == (cost.full + seen) // 2
    assert cost.of(Method.WA_RS, Window(tokens - 1)) == cost.full


@pytest.mark.parametrize("name", ["dit", "pixart", "fused-qkv", "merged-heads", "single-module"])
def test_site_cost_by_hand(name: str) -> None:
    program = sample(name, "cond-first").program
    site = next(site for site in program.sites if site.eligible)
    width = 16 if name in ("fused-qkv", "merged-heads", "single-module") else 24
    cost = site_cost(program, site)
    assert cost == SiteCost(
        projections=4 * 4 * 25 * width**2, attention=4 * 2 * 25**2 * width, tokens=25
    )


def test_graph_by_hand() -> None:
    # A layer: four projections, attention, an MLP of twice the width; before, the timestep.
    program = sample("fused-qkv", "cond-first").program
    layer = 4 * 25 * (4 * 16**2 + 2 * 16 * 32) + 4 * 2 * 25**2 * 16
    assert multiply_adds(program.graph_module.graph) == 4 * 16 + 2 * layer


def test_graph_with_a_convolution() -> None:
    program = sample("dit", "cond-first").program
    counts = torch.utils.flop_counter.FlopCounterMode(display=False)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), counts:
        program(**sample("dit", "cond-first").kwargs(0))
    # torch counts two FLOPs for a multiply-add, and attention only as matrix products.
    assert multiply_adds(program.graph_module.graph) == counts.get_total_flops() // 2


class _Einsum(torch.nn.Module):
    def __init__(self, equation: str) -> None:
        super().__init__()
        self.equation = equation

    def forward(self, *operands: torch.Tensor) -> torch.Tensor:
        return torch.einsum(self.equation, *operands)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("nhwc->nchw", [(2, 3, 4, 5)]),
        ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)]),
        ("hk, nhwc -> nkwc", [(3, 6), (2, 3, 4, 5)]),
        ("ij,jk", [(3, 4), (4, 5)]),
        ("...ij,jk->...ik", [(2, 3, 3, 4), (4, 5)]),
        ("i...,ij->j...", [(3, 2, 4), (3, 5)]),
    ],
)
def test_einsum_as_torch_counts_it(equation: str, shapes: list[tuple[int, ...]]) -> None:
    operands = tuple(torch.ones(shape) for shape in shapes)
    graph = torch.export.export(_Einsum(equation), operands).graph_module.graph
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counts:
        torch.einsum(equation, *operands)
    assert multiply_adds(graph) == counts.get_total_flops() // 2


@pytest.mark.parametrize(
    ("equation", "shapes", "expected"),
    [
        ("b...d,b...d->b", [(2, 3, 4), (2, 3, 4)], 24),
        ("...d,...d->", [(2, 3, 4), (3, 4)], 24),
        ("ij,jk->ik", [(2, 5), (1, 4)], 40),
        ("bi,bj->ij", [(6, 3), (1, 4)], 72),
        ("...n,d->...nd", [(2, 3), (5,)], 30),
    ],
)
def test_einsum_by_hand(equation: str, shapes: list[tuple[int, ...]], expected: int) -> None:
    operands = tuple(torch.ones(shape) for shape in shapes)
    graph = torch.export.export(_Einsum(equation), operands).graph_module.graph
    assert multiply_adds(graph) == expected


@pytest.mark.parametrize(
    ("name", "cfg"),
    [
        ("dit", "cond-first"),
        ("pixart", "uncond-first"),
        ("fused-qkv", "uncond-first"),
        ("merged-heads", "cond-first"),
        ("single-module", None),
    ],
)
def test_graphs_count_what_the_schedule_says(name: str, cfg: str | None) -> None:
    model = sample(name, cfg)
    sched = schedule(model.program, mixed(model, 3, window=Window(4, 2), steps=7))
    counted = tuple(multiply_adds(sched.bucket_of(step).graph_module.graph) for step in range(7))
    cost = schedule_cost(sched)
    assert counted == cost.steps
    assert sum(counted) == cost.model
    assert cost.model_full == 7 * multiply_adds(model.program.graph_module.graph)
    assert cost.model_full - cost.model == cost.attention_full - cost.attention


def test_a_full_plan_leaves_all() -> None:
    program = sample("dit", None).program
    cost = schedule_cost(schedule(program, Plan.uniform(program, 3, "full")))
    assert (cost.attention_left, cost.model_left) == (1.0, 1.0)


def test_asc_leaves_half_and_ast_the_first_step() -> None:
    program = sample("dit", "cond-first").program
    left = {
        method: schedule_cost(schedule(program, Plan.uniform(program, 5, method))).attention_left
        for method in METHODS
    }
    assert left["asc"] == (1 + 4 * 0.5) / 5
    assert left["ast"] == 1 / 5
    assert left["ast"] < left["wa-rs+asc"] < left["asc"] < left["wa-rs"] < left["full"] == 1.0


def test_a_plan_of_no_sites_leaves_all() -> None:
    program = sample("dit", None).program
    plan = replace(Plan.uniform(program, 2, "full"), windows={}, cells=({}, {}))
    assert schedule_cost(schedule(program, plan)).attention_left == 1.0
