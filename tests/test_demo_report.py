"""What `ditc demo` tells."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ditc.passes import Gate, Method, Plan
from ditc.tools.demo_report import Report, _absent, _distances, _told, lines
from ditc.tools.glyphs import render_batch
from ditc.tools.models import DEMO_PLAN
from ditc.tools.quality import Closeness
from ditc.tools.timing import timing

REPORT = Report(
    attention_left=0.25,
    model_left=0.5,
    predicted_speedup=2.0,
    measured_speedup=1.5,
    per_image={
        "uncompressed": timing([90.0]),
        "compressed": timing([60.0]),
        "eager": timing([120.0]),
    },
    closeness=Closeness(psnr_db=25.04, ssim=0.9876),
    accuracy={"uncompressed": 1.0, "compressed": 0.975},
    frechet={"compressed": 140.04, "uncompressed": 120.0, "drawn": 110.0},
    frechet_note="36 images can't span 256 features",
    absent={"LPIPS": "images of 32 x 32 are too small"},
    bundle_bytes={"weights": 8_000_000, "graphs": 250_000, "other": 9_000},
    buckets=6,
    samples=36,
    threads=2,
    plan="found in 20 s: greedy search",
)


def test_the_lines_of_a_report() -> None:
    text = "\n".join(lines(REPORT))
    for part in (
        "attention multiply-adds left         100.0%        25.0%",
        "whole-model multiply-adds left       100.0%        50.0%",
        "time per image, ditc                  90 ms        60 ms",
        "time per image, eager PyTorch        120 ms",
        "glyphs read as asked                 100.0%        97.5%",
        "speedup 1.50x, the median of 1 round in turn, of 2.00x that the multiply-adds promise",
        "one image at a time; PyTorch on 2 threads",
        "PSNR 25.0 dB, SSIM 0.988 against the uncompressed images, over 36 of them",
        "Fréchet distance to drawn glyphs 140.0 compressed, 120.0 uncompressed, 110.0 another draw",
        "  (36 images can't span 256 features)",
        "LPIPS: absent, images of 32 x 32 are too small",
        "plan found in 20 s: greedy search",
        "bundle: weights 8.00 MB, graphs 0.25 MB, other 0.01 MB, 6 buckets",
    ):
        assert part in text
    assert "busy" not in text


def test_figures_of_glyphs_that_are_drawn_and_of_noise() -> None:
    """Drawn glyphs are nearer to drawn glyphs than noise is; there is no LPIPS of 32 pixels."""
    glyphs = render_batch(torch.arange(36), torch.Generator().manual_seed(9)).numpy()
    images = {
        "uncompressed": glyphs,
        "compressed": np.random.default_rng(0).uniform(-1, 1, (36, 1, 32, 32)).astype(np.float32),
    }
    found = _distances(images)
    assert found["uncompressed"] == pytest.approx(found["drawn"], rel=0.3)
    assert found["compressed"] > 3 * found["drawn"]
    assert list(_absent(images)) == ["LPIPS", "CLIP score"]


def test_a_busy_machine_is_said() -> None:
    busy = {**REPORT.per_image, "compressed": timing([60.0, 200.0, 61.0, 190.0])}
    assert "the machine was busy" in "\n".join(lines(replace(REPORT, per_image=busy)))


def test_how_a_plan_was_found() -> None:
    plan = Plan.load(DEMO_PLAN)
    assert plan.origin is not None
    gate = Gate(
        "onnx", {site: (Method.WA_RS, Method.ASC)[: 1 + k % 2] for k, site in enumerate(plan.sites)}
    )
    slow = replace(plan, origin=replace(plan.origin, gate=gate))
    assert _told(plan, 19.7) == "found in 20 s: greedy search, threshold 0.1, 4 samples"
    assert _told(slow, 19.7).endswith(
        "4 samples; never tried, as not faster than full here: wa-rs at 6 sites, asc at 3 sites"
    )
    assert _told(replace(plan, origin=None), 0.0) == "written, not found"
