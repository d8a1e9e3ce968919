"""Tiles beside bands: as dense, no worse on a grid, and no more moving of tokens in the graph."""

from collections.abc import Mapping
from functools import lru_cache

import pytest
import torch

from ditc.passes import Program, TileWindow, Window, capture, with_tile_layout
from ditc.passes.window import SiteWindow
from ditc.tools.bench_tiles import band_as_dense, main, moves
from ditc.tools.zoo import ZOO

from . import models


def test_bands_as_dense_as_tiles() -> None:
    window = TileWindow((16, 16), (4, 4), (1, 1))
    band = band_as_dense(window)
    assert band.pairs(256) >= window.pairs(256) > Window(band.radius - 1).pairs(256)


def at_all(program: Program, window: SiteWindow) -> Mapping[str, SiteWindow]:
    return {site.name: window for site in program.sites if site.eligible}


@lru_cache
def picture() -> Program:
    """Return a DiT on a grid of 16 x 16."""
    config = {"num_attention_heads": 2, "attention_head_dim": 8, "num_embeds_ada_norm": 10}
    module = models.DiTTransformer2DModel(
        in_channels=3, out_channels=3, num_layers=2, norm_num_groups=1, sample_size=32, **config
    )
    kwargs = {**models.dit_kwargs(batch=2), "hidden_states": models.noise(2, 3, 32, 32)}
    return capture(models.randomised(module), kwargs, cfg="cond-first")


@lru_cache
def video(title: str, frames_axis: int) -> Program:
    """Return a video model of the zoo on a grid of 4 x 8 x 8."""
    tiny = next(tiny for tiny in ZOO if tiny.title == title)
    kwargs = tiny.kwargs()
    latents = kwargs["hidden_states"]
    assert isinstance(latents, torch.Tensor)
    shape = [*latents.shape[:3], 16, 16]
    shape[frames_axis] = 4
    kwargs["hidden_states"] = models.noise(*shape)
    if "image_rotary_emb" in kwargs:
        kwargs["image_rotary_emb"] = (models.noise(256, 8), models.noise(256, 8, seed=1))
    return capture(tiny.module(), kwargs, cfg=tiny.cfg)


PROGRAMS = {
    "DiT": picture,
    "Wan": lambda: video("WanTransformer3DModel", 2),
    "CogVideoX": lambda: video("CogVideoXTransformer3DModel", 1),
}


@pytest.mark.parametrize(
    ("name", "window"),
    [
        ("DiT", TileWindow((16, 16), (3, 5), (1, 1))),
        ("Wan", TileWindow((4, 8, 8), (2, 2, 2), (1, 1, 1))),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_no_more_is_moved_at_a_site_than_in_a_band_as_dense(name: str, window: TileWindow) -> None:
    """Count in the lowered graph what a site in the window has more than a full one."""
    plain = PROGRAMS[name]()
    laid = with_tile_layout(plain, window.tile, window.grid)
    band = band_as_dense(window)
    ours, theirs = moves(laid, at_all(laid, window)), moves(plain, at_all(plain, band))
    assert ours["Transpose"] == 0
    assert all(ours[kind] <= theirs[kind] for kind in ("Gather", "Transpose"))


@pytest.mark.filterwarnings("ignore")
def test_no_more_is_moved_beside_text() -> None:
    """All that moves tokens is counted: text is split off and joined as well."""
    plain = PROGRAMS["CogVideoX"]()
    window = TileWindow((4, 8, 8), (3, 3, 3), (0, 0, 0))
    laid, band = with_tile_layout(plain, window.tile, window.grid), band_as_dense(window)
    ours, theirs = moves(laid, at_all(laid, window)), moves(plain, at_all(plain, band))
    assert ours["Transpose"] == 0
    assert sum(ours.values()) <= sum(theirs.values())


def test_the_bench_of_tiles(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tiles", "tile:4x4", "--steps", "2"]) == 0
    tiles, band = capsys.readouterr().out.splitlines()[2:]
    ours, theirs = ([cell.strip() for cell in row.split("|")] for row in (tiles, band))
    assert ours[1:3] == ["`tile:4x4`", "56.2%"]
    assert theirs[1] == "`band:87`"
    assert all(0 < float(loss) < 1 for loss in (*ours[3:5], *theirs[3:5]))
    moved = [[float(count) for count in row[5].split(",")[:2]] for row in (ours, theirs)]
    assert all(a <= b for a, b in zip(*moved, strict=True))
    assert main(["--tiles", "band"]) == 1
    assert "isn't of tiles" in capsys.readouterr().err
