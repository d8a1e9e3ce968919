"""Sites whose attention has a mask over keys: in a window it holds as well, under every method."""

import random
from pathlib import Path

import pytest
import torch
from torch import nn

from ditc.export import compile as compile_bundle
from ditc.passes import (
    Plan,
    Program,
    TileWindow,
    TorchSession,
    Window,
    capture,
    schedule,
    with_tile_layout,
)
from ditc.runtime import Bundle
from ditc.tools.zoo_reference import Intercepted

from . import models
from .golden import site_of, text_of
from .reference import tile_mask, visible

STEPS, TOKENS, BATCH, HEADS = 5, 25, 4, 4
METHODS = ("full", "asc", "wa-rs", "wa-rs+asc", "ast")


class Masked(nn.Module):
    """Two attentions under a mask `[batch, tokens]`, keys and values of fewer heads than queries.

    Args:
        kind: how the mask reaches the attention.
        groups: query heads for each head of keys.
    """

    def __init__(self, kind: str, groups: int = 1, width: int = 32) -> None:
        super().__init__()
        self.kind, self.width = kind, width
        self.ins = nn.ModuleList(
            nn.ModuleList(nn.Linear(width, width // n) for n in (1, groups, groups))
            for _ in range(2)
        )
        self.outs = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.register_buffer("fixed", models.noise(TOKENS, seed=3) > -0.5)

    def mask(self, shown: torch.Tensor) -> torch.Tensor:
        if self.kind == "constant":
            return self.fixed[None, None, None]
        if self.kind == "added":
            return shown.logical_not()[:, None, None].float() * -10000.0 + 0.5
        if self.kind == "product":
            weak = 0.5 - shown.float()
            return weak[:, None, :, None] * weak[:, None, None]
        wide = shown[:, None, None]
        return wide.expand(-1, HEADS, TOKENS, -1) if self.kind == "expanded" else wide

    def forward(self, x: torch.Tensor, t: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        x = x + t[:, None, None] + 0.1 * visible[..., None]
        mask = self.mask(visible)
        for layers, out in zip(self.ins, self.outs, strict=True):
            query, key, value = (
                layer(x).unflatten(-1, (-1, self.width // HEADS)).transpose(1, 2)
                for layer in layers
            )
            attended = nn.functional.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, enable_gqa=True
            )
            x = x + out(attended.transpose(1, 2).flatten(2))
        return x


def kwargs(step: int = 0) -> models.Kwargs:
    shown = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    shown[0, 20:] = shown[1, 3:9] = shown[2, :2] = False
    times = torch.full((BATCH,), 1 - step / 10)
    return {"x": models.noise(BATCH, TOKENS, 32, seed=step), "t": times, "visible": shown}


def made(kind: str, cfg: str | None, groups: int = 1) -> tuple[nn.Module, Program]:
    module = models.randomised(Masked(kind, groups))
    return module, capture(module, kwargs(), cfg=cfg)


def mixed(program: Program, window: Window, seed: int) -> Plan:
    draw = random.Random(seed)
    plan = Plan.uniform(program, STEPS, "wa-rs", window)
    for step in range(2, STEPS):
        for site in plan.sites:
            plan = plan.replace(step, site, draw.choice(METHODS))
    return plan


def reference(module: nn.Module, program: Program, plan: Plan) -> Intercepted:
    return Intercepted(
        module,
        [(site.name, site.tokens, site.context_tokens) for site in program.sites],
        [{site: str(method) for site, method in row.items()} for row in plan.cells],
        {
            site: tile_mask(window.grid, window.tile, window.reach)
            if isinstance(window, TileWindow)
            else visible(TOKENS, window.radius, window.block)
            for site, window in plan.windows.items()
        },
        {},
        program.cfg,
        fused=True,
    )


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def check(module: nn.Module, program: Program, plan: Plan) -> None:
    session, eager = TorchSession(schedule(program, plan)), reference(module, program, plan)
    for step in range(STEPS):
        (expected,) = eager.run(step, kwargs(step))
        assert off(session(step, **kwargs(step)), expected) <= 1e-5, step


@pytest.mark.parametrize(
    ("kind", "groups", "cfg"),
    [
        ("plain", 1, "cond-first"),
        ("added", 4, "uncond-first"),
        ("expanded", 1, "cond-first"),
        ("constant", 2, "uncond-first"),
        ("product", 2, "uncond-first"),
    ],
)
def test_mixed_methods_under_a_mask(kind: str, groups: int, cfg: str) -> None:
    module, program = made(kind, cfg, groups)
    assert [site.eligible for site in program.sites] == [True, True]
    check(module, program, mixed(program, Window(8, 2), seed=1))


@pytest.mark.parametrize("method", METHODS[1:])
def test_every_method_under_a_mask_with_grouped_heads(method: str) -> None:
    module, program = made("plain", "uncond-first", 2)
    check(module, program, Plan.uniform(program, STEPS, method, Window(6)))


@pytest.mark.parametrize(
    ("kind", "precision", "limit"),
    [
        ("plain", "fp32", 1e-4),
        ("added", "fp32", 1e-4),
        ("product", "fp32", 1e-4),
        ("plain", "fp16", 1e-2),
        ("added", "fp16", 1e-2),
    ],
)
def test_engines_under_a_mask(kind: str, precision: str, limit: float, tmp_path: Path) -> None:
    module, program = made(kind, "uncond-first", 2)
    plan = mixed(program, Window(6), seed=2)
    place = compile_bundle(schedule(program, plan), tmp_path / "b", precision=precision, jobs=1)
    bundle, eager = Bundle.open(place, threads=1), reference(module, program, plan)
    for step in range(STEPS):
        arrays = {name: value.numpy() for name, value in kwargs(step).items()}
        found = torch.from_numpy(bundle.step(step, **arrays))
        (expected,) = eager.run(step, kwargs(step))
        assert off(found, expected) <= limit


def test_what_hidden_keys_hold_changes_nothing() -> None:
    _, program = made("plain", None)
    plan = Plan.uniform(program, 2, "wa-rs", Window(8))
    found = []
    for seed in (1, 2):
        given = [kwargs(step) for step in range(2)]
        for step, call in enumerate(given):
            hidden = call["visible"].logical_not()
            call["x"][hidden] = 9 * models.noise(int(hidden.sum()), 32, seed=seed + step)
        session = TorchSession(schedule(program, plan))
        found.append([session(step, **call)[call["visible"]] for step, call in enumerate(given)])
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-5)


def test_masks_lie_in_tiles_too() -> None:
    module, program = made("plain", "cond-first")
    laid = with_tile_layout(program, (2, 3), (5, 5))
    plan = Plan.uniform(laid, 3, "wa-rs", TileWindow((5, 5), (2, 3), (1, 0)))
    plan = plan.replace(2, laid.sites[1].name, "wa-rs+asc")
    session, eager = TorchSession(schedule(laid, plan)), reference(module, program, plan)
    for step in range(3):
        (expected,) = eager.run(step, kwargs(step))
        assert off(session(step, **kwargs(step)), expected) <= 1e-5


def test_the_graph_has_a_mask_as_channels() -> None:
    _, program = made("plain", "cond-first")
    plan = Plan.uniform(program, 2, "wa-rs", Window(3))
    graph = schedule(program, plan).bucket_of(1).graph_module.graph
    lines = [line for line in text_of(graph) if "ditc.window_attention" in line]
    assert len(lines) == 2
    assert "scaled_dot_product_attention" not in "".join(text_of(graph))
    site = site_of(program)
    assert (site.head_dim, site.heads) == (8, HEADS)
    wide = [node for node in graph.nodes if node.target is torch.ops.aten.cat.default]
    assert {tuple(node.meta["val"].shape) for node in wide} == {(BATCH, HEADS, TOKENS, 16)}
