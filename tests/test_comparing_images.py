"""`ditc compare`: what it prints of two sets, and what it says of what there is none of."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ditc.tools.cli import main
from ditc.tools.glyphs import GlyphFeatures, render_batch
from ditc.tools.quality import closeness, frechet_distance

Capture = pytest.CaptureFixture[str]
COUNT = 36


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Glyphs, and the same with noise; no weights at hand."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    glyphs = render_batch(torch.arange(COUNT), torch.Generator().manual_seed(0)).numpy()
    noise = np.random.default_rng(0).standard_normal(glyphs.shape).astype(np.float32)
    places = tmp_path / "first.npy", tmp_path / "second.npy"
    np.save(places[0], np.clip(glyphs + 0.2 * noise, -1, 1))
    np.save(places[1], glyphs)
    return places


def test_figures_for_programs(capsys: Capture, sets: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = map(str, sets)
    assert main(["compare", first, second, "--features", "glyphs", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    images, references = np.load(first), np.load(second)
    near = closeness(images, references)
    distance = frechet_distance(images, references, GlyphFeatures.load())
    figures = found["figures"]
    assert found["images"] == COUNT
    assert figures["psnr_db"] == {"value": near.psnr_db, "absent": None}
    assert figures["ssim"] == {"value": near.ssim, "absent": None}
    assert figures["frechet"] == {"value": pytest.approx(distance.value, rel=1e-6), "absent": None}
    assert distance.value is not None
    assert distance.value > 1
    assert found["note"].startswith("36 images can't span 256 features")
    for name in ("lpips", "clip_first", "clip_second"):
        assert figures[name]["value"] is None
        assert figures[name]["absent"]


def test_lines_for_people(capsys: Capture, sets: tuple[Path, Path], tmp_path: Path) -> None:
    assert main(["compare", *map(str, sets)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "36 pairs of images, 1 x 32 x 32"
    assert lines[1].split()[:2] == ["PSNR,", "dB"]
    assert any(
        line.startswith("LPIPS (AlexNet)            absent: images of 32 x") for line in lines
    )
    weights = tmp_path / "hub" / "checkpoints"
    assert any(f"absent: the weights of Inception aren't at {weights}" in line for line in lines)
    assert sum(line.endswith("there are no prompts to hold images against") for line in lines) == 2
    assert len(lines) == 7


def test_equal_sets_have_no_noise(capsys: Capture, sets: tuple[Path, Path]) -> None:
    assert main(["compare", str(sets[1]), str(sets[1]), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert figures["psnr_db"]["absent"] == "the images are equal, so there is no noise"
    assert figures["ssim"]["value"] == pytest.approx(1)


def test_refusals(capsys: Capture, sets: tuple[Path, Path], tmp_path: Path) -> None:
    def told(*arguments: object) -> str:
        assert main(["compare", *map(str, arguments)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("ditc: ")

    assert told(sets[0], tmp_path / "none").endswith(
        "no folder of images, no .png and no .npy file is there"
    )
    prompts = tmp_path / "prompts.txt"
    assert "can't be read" in told(*sets, "--prompts", prompts)
    prompts.write_text("a\n\nb\n")
    assert told(*sets, "--prompts", prompts) == (
        f"--prompts {prompts}: expected a line for each of 36 images, found 2 in 3 lines"
    )
    np.save(tmp_path / "wide.npy", np.zeros((4, 3, 32, 32), np.float32))
    assert told(tmp_path / "wide.npy", tmp_path / "wide.npy", "--features", "glyphs") == (
        "--features glyphs: expected images [1, 32, 32], found [3, 32, 32]"
    )
