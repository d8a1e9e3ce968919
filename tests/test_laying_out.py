"""Tokens laid out in tiles: the same values, and windows of tiles as the method defines them."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from ditc.export import compile as compile_bundle
from ditc.passes import (
    Plan,
    Program,
    TileLayout,
    TileWindow,
    TorchSession,
    Window,
    capture,
    schedule,
    with_tile_layout,
)
from ditc.passes.graphs import find
from ditc.passes.sites import region
from ditc.passes.window import SiteWindow
from ditc.runtime import Bundle
from ditc.runtime.errors import PassError, PlanError
from ditc.tools.windows import WindowChoice, windowed, with_windows
from ditc.tools.zoo import ZOO
from ditc.tools.zoo_reference import Intercepted
from ditc.tools.zoo_trial import captured

from . import models
from .reference import Eager, tile_mask
from .samples import SAMPLES, Sample, mixed, sample

GRID, TILE = (5, 5), (2, 3)
"""Tiles that divide neither axis."""
NAMES = ["dit", "pixart", "merged-heads", "single-module"]


def error(found: object, expected: object) -> float:
    """Return the largest error over the largest value."""
    pairs = list(zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True))
    assert pairs
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def moved(program: Program) -> list[str]:
    """Return the nodes whose tokens are put in another order."""
    graph = program.graph_module.graph
    nodes = graph.find_nodes(op="call_function", target=torch.ops.aten.index_select.default)
    return [node.args[0].name for node in nodes]


def inside(program: Program) -> set[str]:
    graph = program.graph_module.graph
    found = (region(graph, site.projections, site.exits) for site in program.sites)
    return {node.name for nodes in found for node in nodes}


@pytest.mark.parametrize("name", NAMES)
def test_the_program_computes_the_same(name: str) -> None:
    program = sample(name, "cond-first").program
    laid = with_tile_layout(program, TILE, GRID)
    for seed in (1, 2):
        kwargs = SAMPLES[name][1](seed)
        # What differs is the order in which attention adds up keys.
        assert error(laid(**kwargs), program(**kwargs)) <= 2e-6
    able = [site for site in laid.sites if site.eligible]
    assert {site.tiles for site in able} == {TileLayout(GRID, TILE)}
    assert not {site.tiles for site in laid.sites if site.kind == "cross"} - {None}
    assert not any("index_select" in node for node in inside(laid))
    assert with_tile_layout(laid, TILE, GRID) is laid


def test_what_is_moved_is_the_entry_the_exit_and_positions() -> None:
    program = sample("dit", "cond-first").program
    assert program.grid == GRID
    laid = with_tile_layout(program, TILE)
    entry, positions, leaving = "flatten", "pos_embed_pos_embed", "linear_30"
    assert sorted(moved(laid)) == sorted([entry, positions, leaving])
    assert find(program.graph_module.graph, leaving).meta["val"].shape[1] == 25
    assert moved(program) == []


@pytest.mark.parametrize("cfg", ["cond-first", "uncond-first"])
@pytest.mark.parametrize("name", ["dit", "merged-heads"])
def test_plans_of_tiles_agree_with_masks_on_the_grid(name: str, cfg: str) -> None:
    plain = sample(name, cfg)
    laid = Sample(name, plain.module, with_tile_layout(plain.program, TILE, GRID))
    window = TileWindow(GRID, TILE, (0, 1))
    plan = mixed(laid, 3, window)
    assert set(plan.windows.values()) == {window}
    session = TorchSession(schedule(plain.program, plan))  # which lays the program out itself
    eager = reference(plain, plan, cfg)
    for step in range(plan.steps):
        kwargs = plain.kwargs(step)
        assert error(session(step, **kwargs), eager(step, **kwargs)) <= 1e-5


def reference(model: Sample, plan: Plan, cfg: str) -> Eager:
    masks = {
        site: tile_mask(window.grid, window.tile, window.reach)
        for site, window in plan.windows.items()
        if isinstance(window, TileWindow)
    }
    cells = [{site: str(method) for site, method in row.items()} for row in plan.cells]
    return Eager(model.module, model.paths(), cells, masks, cfg)


def test_engines_agree_with_masks_on_the_grid(tmp_path: Path) -> None:
    plain = sample("dit", "uncond-first")
    laid = with_tile_layout(plain.program, (3, 2))
    plan = Plan.uniform(laid, 3, "wa-rs", TileWindow(GRID, (3, 2), (0, 0)))
    plan = plan.replace(2, plan.sites[0], "wa-rs+asc")
    bundle = Bundle.open(compile_bundle(schedule(laid, plan), tmp_path / "bundle"))
    eager = reference(plain, plan, "uncond-first")
    for step in range(3):
        kwargs = plain.kwargs(step)
        arrays = {name: value.numpy() for name, value in kwargs.items()}
        found = torch.from_numpy(bundle.step(step, **arrays))
        assert error(found, eager(step, **kwargs)) <= 1e-4


@pytest.mark.parametrize(
    ("title", "tile", "laid"),
    [
        ("FluxTransformer2DModel (dev)", (2, 3), 3),
        ("LatteTransformer3DModel", (2, 3), 2),
        ("WanTransformer3DModel", (1, 2, 3), 2),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_joint_temporal_and_video(title: str, tile: tuple[int, ...], laid: int) -> None:
    tiny = next(tiny for tiny in ZOO if tiny.title == title)
    _, program = captured(tiny)
    found = with_tile_layout(program, tile)
    kwargs = tiny.kwargs(2)
    assert error(found(**kwargs), program(**kwargs)) <= 2e-6
    assert sum(site.tiles is not None for site in found.sites) == laid
    assert not any("index_select" in node for node in inside(found))
    assert not [name for name in moved(found) if name.startswith(("getitem", "empty_like"))]


TEXTS = {
    "FluxTransformer2DModel (dev)": (0, 6),
    "SD3Transformer2DModel": (16, 22),
    "CogVideoXTransformer3DModel": (0, 6),
    "Kandinsky5Transformer3DModel": (0, 0),
}
"""Where the text is at the sites with most tokens, as the models' own code joins it."""


SHARING = {"SD3Transformer2DModel", "CogVideoXTransformer3DModel"}


@pytest.mark.parametrize("title", TEXTS)
@pytest.mark.filterwarnings("ignore")
def test_text_sees_and_is_seen_by_all_under_tiles(title: str) -> None:
    tiny = next(tiny for tiny in ZOO if tiny.title == title)
    module, program = captured(tiny)
    grid = program.grid
    assert grid is not None
    tile = (1,) * (len(grid) - 2) + (2, 3)
    laid, windows = windowed(program, WindowChoice(tile=tile, reach=(0,) * len(tile)))
    plan = with_windows(Plan.uniform(laid, 3, "wa-rs"), windows)
    if title in SHARING:
        plan = plan.replace(2, plan.sites[0], "wa-rs+asc")
    longest = max(site.tokens for site in laid.sites if site.eligible)
    tiled = [site for site in laid.sites if site.tiles is not None]
    joined = [site for site in tiled if site.tokens == longest]
    assert {site.text for site in joined} == {TEXTS[title]}
    masks = {site.name: joint_mask(site.tokens, site.text, windows[site.name]) for site in tiled}
    bands = {
        name: (window.radius, window.block)
        for name, window in windows.items()
        if isinstance(window, Window)
    }
    eager = Intercepted(
        module,
        [(site.name, site.tokens, site.context_tokens) for site in program.sites],
        [{site: str(method) for site, method in row.items()} for row in plan.cells],
        {**masks, **bands},
        {site.name: site.text for site in program.sites},
        tiny.cfg,
        fused=tiny.fused,
    )
    session = TorchSession(schedule(program, plan))
    for step in range(plan.steps):
        kwargs = tiny.kwargs(step)
        assert error(session(step, **kwargs), eager.run(step, kwargs)) <= 1e-5


@pytest.mark.filterwarnings("ignore")
def test_samples_that_are_joined_one_by_one_are_refused() -> None:
    tiny = next(tiny for tiny in ZOO if tiny.title == "Lumina2Transformer2DModel")
    _, program = captured(tiny)
    with pytest.raises(PassError, match=r"aten.slice_scatter.default.*; use a band instead"):
        with_tile_layout(program, (2, 3))


def joint_mask(tokens: int, text: tuple[int, int], window: SiteWindow) -> torch.Tensor:
    """Return `[tokens, tokens]`: text sees and is seen by all, image tokens see their tiles."""
    assert isinstance(window, TileWindow)
    image = torch.ones(tokens, dtype=torch.bool)
    image[slice(*text)] = False
    mask = torch.ones(tokens, tokens, dtype=torch.bool)
    near = tile_mask(window.grid, window.tile, window.reach)
    assert not near.all()
    mask[image[:, None] & image[None, :]] = near.flatten()
    return mask


class _Mixing(nn.Module):
    """Tokens are unfolded between attentions, for a convolution."""

    def __init__(self, *, skip: bool) -> None:
        super().__init__()
        self.skip = skip
        self.first, self.second = models.SdpaAttention(16, 2), models.SdpaAttention(16, 2)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.first(x)
        grid = self.conv(x.transpose(1, 2).unflatten(2, GRID))
        mixed = grid.flatten(2).transpose(1, 2)
        return x + mixed if self.skip else self.second(mixed)


@pytest.mark.parametrize(
    ("skip", "reason"),
    [
        (True, "add_1 joins them with what unflatten (aten.unflatten.int) made of them"),
        (False, "site second doesn't get them in tile order: unflatten (aten.unflatten.int)"),
    ],
)
def test_convolutions_in_the_middle_are_refused(skip: bool, reason: str) -> None:
    program = capture(_Mixing(skip=skip).eval(), {"x": models.noise(2, 25, 16)})
    with pytest.raises(PassError) as caught:
        with_tile_layout(program, TILE, GRID)
    assert str(caught.value).startswith("image tokens can't lie in tiles of 2×3 on a grid of 5×5: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_can_not_be_laid_out() -> None:
    program = sample("merged-heads", "cond-first").program
    with pytest.raises(PassError, match="of 2 axes, can't be told: state it with grid="):
        with_tile_layout(program, TILE)
    with pytest.raises(PassError, match="nowhere become a sequence of 24 tokens; use a band"):
        with_tile_layout(program, TILE, (4, 6))
    with pytest.raises(PlanError, match="tile 6×2 on a grid of 5×5"):
        with_tile_layout(program, (6, 2), GRID)
    laid = with_tile_layout(program, TILE, GRID)
    with pytest.raises(PassError, match="tokens can be laid out once"):
        with_tile_layout(laid, (1, 1), GRID)
    band = Plan.uniform(program, 2, "wa-rs")
    with pytest.raises(PlanError, match=r"for tokens in the model's own order, they lie in tiles"):
        schedule(laid, band)
