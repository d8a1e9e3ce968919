"""Windows of tiles beside bands on the demo model: `python -m ditc.tools.bench_tiles`.

For each window of tiles there is the narrowest band that sees as many pairs. Each is judged by the
loss of the model's output with one site in the window, all other sites full, over all sites and
steps, the residual a step old; and by the loss of the latents that a plan ends in which has the
window at every site in two steps of three.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import onnx
import torch
from torch.utils import _pytree as pytree

from ditc.export import sampler_table
from ditc.export.onnx import lower
from ditc.passes import (
    Bucket,
    Method,
    Plan,
    Program,
    TileWindow,
    TorchSession,
    Window,
    schedule,
)
from ditc.passes.window import SiteWindow
from ditc.runtime.errors import DitcError
from ditc.runtime.sampler import SamplerTable

from .argument_types import positive
from .decisions import relative_loss
from .demo import CALIBRATION, GUIDANCE_SCALE, SEED, STEPS
from .models import demo_recording
from .progress import progress
from .search import find
from .space import space_of
from .trajectory import Trajectory
from .windows import parse_window, windowed

__all__ = ["MOVING", "Row", "band_as_dense", "main", "markdown", "moves", "row", "rows"]

TILES = "tile:1x2,tile:1x1:2,tile:2x2,tile:1x4,tile:1x2:2,tile:2x4,tile:1x4:2,tile:3x4,tile:4x4"
EVERY = 3
"""Steps from one full one to the next in the plan."""
MOVING = ("Gather", "Transpose", "Slice", "Split", "Concat")
"""Operators of ONNX that move tokens."""
NEVER = 1e-12
"""A threshold that no candidate stays under."""


@dataclass(frozen=True)
class Row:
    """A window and what it does.

    Attributes:
        name: what the table calls it.
        density: visible share of all pairs.
        site_loss: mean loss of one site in the window, over all sites and steps behind the first.
        plan_loss: of the latents of the plan, against uncompressed ones.
        moves: operators of each kind of `MOVING` that a site in the window has more than a full
            one, in the lowered graph.
    """

    name: str
    density: float
    site_loss: float
    plan_loss: float
    moves: Mapping[str, float]


def band_as_dense(window: TileWindow) -> Window:
    """Return the narrowest band that sees at least as many pairs as a window of tiles."""
    tokens = window.layout.tokens
    pairs = window.pairs(tokens)
    return next(band for r in range(tokens) if (band := Window(r)).pairs(tokens) >= pairs)


def moves(program: Program, windows: Mapping[str, SiteWindow]) -> Mapping[str, float]:
    """Return how many operators that move tokens a site in the window has more than a full one."""
    plan = replace(Plan.uniform(program, 2, Method.WA_RS), windows=dict(windows))
    plain = _operators(schedule(program, Plan.uniform(program, 1, Method.FULL)).bucket_of(0))
    windowed = _operators(schedule(program, plan).bucket_of(1))
    return {kind: (windowed[kind] - plain[kind]) / len(windows) for kind in MOVING}


def _operators(bucket: Bucket) -> Counter[str]:
    graph = onnx.ModelProto.FromString(lower(bucket).graph).graph
    return Counter(node.op_type for node in graph.node)


def row(name: str, program: Program, window: SiteWindow, steps: int) -> Row:
    """Return what a window does at every site of the demo model, laid out for it."""
    windows = {site.name: window for site in program.sites if site.eligible}
    table = sampler_table(demo_recording().scheduler, steps)
    space = space_of(program, windows)
    only = replace(space, candidates=dict.fromkeys(windows, (Method.WA_RS,)))
    found = find("greedy", only, table, NEVER, guidance_scale=GUIDANCE_SCALE, seed=SEED)
    losses = [
        cell[Method.WA_RS] for step in found.plan.losses or () for cell in step.values() if cell
    ]
    plan = replace(Plan.uniform(program, steps, Method.WA_RS), windows=windows)
    for step in range(0, steps, EVERY):
        for site in windows:
            plan = plan.replace(step, site, Method.FULL)
    latents = _latents(program, plan, table)
    return Row(
        name,
        window.density(program.sites[0].tokens),
        fmean(losses),
        relative_loss(torch.from_numpy(found.latents), latents),
        moves(program, windows),
    )


def _latents(program: Program, plan: Plan, table: SamplerTable) -> torch.Tensor:
    """Return the latents that sampling under a plan ends in."""
    session = TorchSession(schedule(program, plan))
    trajectory = Trajectory(program, table, GUIDANCE_SCALE, SEED)
    for step in range(plan.steps):
        trajectory.advance(step, pytree.tree_leaves(session(step, **trajectory.inputs(step)))[0])
    return torch.from_numpy(trajectory.latents)


def rows(named: Sequence[str], steps: int) -> Iterator[Row]:
    """Yield for each window of tiles what it does, and then what a band as dense does."""
    plain = demo_recording(CALIBRATION).capture()
    for name in named:
        program, windows = windowed(plain, parse_window(name))
        (window,) = set(windows.values())
        if not isinstance(window, TileWindow):
            raise DitcError(f"window {name!r} isn't of tiles: expected one as tile:4x4")
        yield row(name, program, window, steps)
        band = band_as_dense(window)
        yield row(f"band:{band.radius}", plain, band, steps)


def markdown(found: Iterable[Row]) -> Iterator[str]:
    """Yield the rows as lines of a table in Markdown."""
    yield (
        "| window | density | loss of `wa-rs` at one site | loss of a plan's latents "
        f"| {', '.join(MOVING)} a site |"
    )
    yield "|---|---:|---:|---:|---:|"
    for entry in found:
        counts = ", ".join(f"{count:g}" for count in entry.moves.values())
        yield (
            f"| `{entry.name}` | {entry.density:.1%} | {entry.site_loss:.4f} "
            f"| {entry.plan_loss:.4f} | {counts} |"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 1 with one line on stderr where the input is at fault."""
    parser = argparse.ArgumentParser(
        prog="python -m ditc.tools.bench_tiles", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--tiles", default=TILES, help=f"with commas between ({TILES})")
    parser.add_argument("--steps", type=positive, default=STEPS, help=f"of sampling ({STEPS})")
    options = parser.parse_args(arguments)
    try:
        named = options.tiles.split(",")
        found = []
        with progress("windows", 2 * len(named)) as advance:
            for entry in rows(named, options.steps):
                found.append(entry)
                advance()
    except DitcError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write("\n".join(markdown(found)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
