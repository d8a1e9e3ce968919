"""Plans and other inputs of reports, made by hand so that every figure can be checked by hand."""

import json
from pathlib import Path

import numpy as np

from ditc.passes import Method, ModelCost, Origin, Plan, SiteCost, Window
from ditc.passes.program import Identity

FULL, ASC, WA_RS, WA_RS_ASC, AST = Method
SITES = ("blocks.0.attn", "blocks.1.attn", "blocks.10.attn")
EVIL = "</script><img src=x onerror=alert(1)>\"'&<b>"
REST = 10_000
COST = SiteCost(projections=800, attention=1600, tokens=16)
"""Full: 2400. A band of 2 tokens a side sees 16 + 2·(15 + 14) = 74 of 256 pairs, so 462."""
CELLS = (
    (FULL, FULL, FULL),
    (WA_RS, AST, ASC),
    (AST, WA_RS_ASC, WA_RS),
    (FULL, AST, ASC),
)
SPENT = (
    (2400 + 462, 2400 + 462, 2400),
    (800 + 462, 0, (2400 + 462) // 2),
    (0, (800 + 462) // 2, 800 + 462),
    (2400, 0, 1200),
)
TOTALS = tuple(REST + sum(row) for row in SPENT)
TRIED = {AST: 0.5, WA_RS_ASC: 0.25, WA_RS: 0.03125}
DELTA = 0.3


def make_plan(sites: tuple[str, ...] = SITES, searched: bool = True) -> Plan:
    rows = tuple(dict(zip(sites, row, strict=True)) for row in CELLS)
    losses = ({site: {} for site in sites}, *[dict.fromkeys(sites, TRIED)] * 3)
    return Plan(
        identity=Identity("package.models.Tiny", "0" * 64),
        latents=(4, 8, 8),
        cfg="cond-first",
        steps=4,
        windows={site: Window(2) for site in sites},
        cells=rows,
        cost=ModelCost(REST, dict.fromkeys(sites, COST)),
        origin=Origin("greedy", DELTA, "relative", 7, 2, "0.1.0") if searched else None,
        losses=losses if searched else None,
    )


def write_plan(folder: Path, sites: tuple[str, ...] = SITES, searched: bool = True) -> Path:
    path = folder / "plan.json"
    make_plan(sites, searched).save(path)
    return path


def write_json(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def timing(median: float) -> dict[str, object]:
    return {"median_ms": median, "low_ms": median - 1, "high_ms": median + 1, "rounds_ms": []}


def write_bench(path: Path, medians: dict[str, float]) -> Path:
    buckets = {name: timing(median) for name, median in medians.items()}
    return write_json(path, {"buckets": buckets, "generation_ms": sum(medians.values())})


POINTS = [
    {"multiply_adds_left": 0.9, "loss": 0.1, "threshold": 0.1},
    {"multiply_adds_left": 0.7, "loss": 0.2, "threshold": DELTA},
    {"multiply_adds_left": 0.8, "loss": 0.3, "label": "by <hand>"},
]
FIGURES = {
    "attention_left": sum(map(sum, SPENT)) / (4 * 3 * 2400),
    "predicted_speedup": 1.5,
    "measured_speedup": 1.25,
    "per_image": {"uncompressed": timing(500.0), "compressed": timing(400.0)},
    "closeness": {"psnr_db": 20.0, "ssim": 0.875},
    "accuracy": {"uncompressed": 1.0, "compressed": 0.75},
    "frechet": {"uncompressed": 120.04, "compressed": 150.06, "drawn": 110.0},
    "frechet_note": "2 images can't span <256> features",
    "absent": {"LPIPS": "images of <32> pixels are too small"},
    "samples": 2,
    "classes": "AB",
}


def write_demo(folder: Path) -> Path:
    """Write two images: the first equal before and after, the second off by 0.2 everywhere."""
    folder.mkdir()
    write_json(folder / "report.json", FIGURES)
    before = np.zeros((2, 1, 32, 32), np.float32)
    before[:, :, 8:24, 8:24] = 0.5
    after = before + np.array([0, 0.2], np.float32)[:, None, None, None]
    np.save(folder / "images-uncompressed.npy", before)
    np.save(folder / "images-compressed.npy", after)
    return folder
