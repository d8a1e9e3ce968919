"""`ditc demo`: the main job on the shipped model: search, compile, run, compare, report."""

import json
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ditc.export import compile as compile_bundle
from ditc.export import sampler_table
from ditc.passes import Plan, Recording, Schedule, schedule
from ditc.runtime import Bundle
from ditc.runtime.guidance import guide
from ditc.runtime.sampler import SamplerState

from .bench import bench_record, time_buckets, time_prologue
from .bench_sites import measure
from .demo_report import Report, figures_of, lines
from .demo_runs import GUIDANCE_SCALE, image_of
from .glyphs import CLASSES, IMAGE_SIZE, NULL_CLASS
from .images import comparison, to_bytes
from .latencies import Latencies
from .models import demo_recording
from .progress import progress
from .report import write_report
from .search import find
from .space import space_of
from .timing import Timing, in_turn

__all__ = ["CALIBRATION", "GUIDANCE_SCALE", "SEED", "STEPS", "run_demo"]

STEPS = 20
THRESHOLD = 0.1
CALIBRATION = 4
SEED = 1
"""Of the search; images come from other seeds, one a class."""
SITE_ROUNDS = 30
SHOWN = "DITC2357ABKQ"
Images = npt.NDArray[np.float32]


def run_demo(out: Path, rounds: int = 7) -> Report:
    """Find a plan for the shipped model, compile with and without it, run both, and compare.

    Args:
        out: folder for the plan, the latencies it was found by, bundles, `grid.png`,
            `report.html` and the figures in it; made if it isn't there.
        rounds: how often each way of making an image is timed.
    """
    out.mkdir(parents=True, exist_ok=True)
    recording = demo_recording()
    program = recording.capture()
    latencies = measure(space_of(program), SITE_ROUNDS)
    latencies.save(out / "latency.json")
    plan, search_s = _found(latencies)
    plan.save(out / "plan.json")
    schedules = {
        "uncompressed": schedule(program, Plan.uniform(program, plan.steps, "full")),
        "compressed": schedule(program, plan),
    }
    bundles = {
        name: _compiled(sched, recording, out / f"bundle-{name}", name)
        for name, sched in schedules.items()
    }
    images = {name: _all_classes(bundle, name) for name, bundle in bundles.items()}
    timings = _timings(bundles, recording, plan.steps, rounds)
    report = figures_of(schedules["compressed"], bundles, images, timings, search_s)
    _write(report, images, out)
    compressed = bundles["compressed"]
    record = bench_record(
        compressed, time_buckets(compressed, rounds), time_prologue(compressed, rounds)
    )
    (out / "bench.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    write_report(out / "bundle-compressed", out / "report.html", bench=out / "bench.json", demo=out)
    sys.stdout.write(f"page     {out / 'report.html'}\n")
    return report


def _found(latencies: Latencies) -> tuple[Plan, float]:
    """Search a plan that takes nothing that isn't faster here; return it and the seconds taken."""
    recording = demo_recording(CALIBRATION)
    space = space_of(recording.capture(), latencies=latencies)
    table = sampler_table(recording.scheduler, STEPS)
    started = time.perf_counter()
    with progress("search", STEPS) as advance:
        found = find(
            "greedy",
            space,
            table,
            THRESHOLD,
            guidance_scale=GUIDANCE_SCALE,
            seed=SEED,
            on_step=lambda _: advance(),
        )
    return found.plan, time.perf_counter() - started


def _compiled(sched: Schedule, recording: Recording, place: Path, name: str) -> Bundle:
    count = len(sched.buckets)
    with progress(f"compile {name}", count) as advance:
        path = compile_bundle(sched, place, sampler=recording.scheduler, progress=advance)
    return Bundle.open(path)


def _all_classes(bundle: Bundle, name: str) -> Images:
    """Generate one glyph of every class, each from a seed of its own."""
    made = []
    with progress(f"generate {name}", len(CLASSES)) as advance:
        for label in range(len(CLASSES)):
            made.append(image_of(bundle, label))
            advance()
    return np.concatenate(made)


def _timings(
    bundles: dict[str, Bundle], recording: Recording, steps: int, rounds: int
) -> dict[str, Timing]:
    eager = EagerSampler(recording, bundles["uncompressed"], steps)
    _choose_threads(recording)
    ways = {
        "uncompressed": lambda: image_of(bundles["uncompressed"], 3, seed=0),
        "compressed": lambda: image_of(bundles["compressed"], 3, seed=0),
        "eager": lambda: eager(3),
    }
    with progress("time, in turn", rounds) as advance:
        return in_turn(ways, rounds, after_round=advance)


def _choose_threads(recording: Recording) -> None:
    """Give PyTorch the number of threads that makes it fastest: one, or all cores."""

    def step(threads: int) -> None:
        torch.set_num_threads(threads)
        with torch.no_grad():
            recording.module(**recording.kwargs)

    counts = {str(count): partial(step, count) for count in (1, torch.get_num_threads())}
    taken = in_turn(counts, rounds=5)
    torch.set_num_threads(int(min(taken, key=lambda count: taken[count].median_ms)))


class EagerSampler:
    """The same sampling in eager PyTorch: module, guidance, the bundle's own sampler table."""

    def __init__(self, recording: Recording, bundle: Bundle, steps: int) -> None:
        self.module = recording.module
        table = bundle.manifest.sampler
        assert table is not None
        self.table = table
        self.steps = steps

    def __call__(self, label: int) -> Images:
        """Return the latents of one glyph."""
        shape = (1, 1, IMAGE_SIZE, IMAGE_SIZE)
        noise = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        latents = noise * self.table.init_noise_scale
        labels = torch.tensor([label, NULL_CLASS])
        state = SamplerState(self.table)
        for step in range(self.steps):
            both = torch.from_numpy(np.concatenate([state.model_input(step, latents)] * 2))
            timestep = torch.full((2,), self.table.timesteps[step], dtype=torch.float32)
            with torch.no_grad():
                velocity = self.module(
                    hidden_states=both, timestep=timestep, class_labels=labels
                ).sample
            guided = guide("cond-first", velocity.numpy(), GUIDANCE_SCALE, latents.shape)
            latents = state.advance(step, latents, guided)
        return latents


def _write(report: Report, images: dict[str, Images], out: Path) -> None:
    record = {**asdict(report), "classes": CLASSES}
    for name, made in images.items():
        np.save(out / f"images-{name}.npy", made)
    (out / "report.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    shown = [CLASSES.index(character) for character in SHOWN]
    rows = [(name, _note(report, name), to_bytes(made[shown])) for name, made in images.items()]
    title = (
        f"{1 - report.attention_left:.0%} of attention removed: "
        f"{report.measured_speedup:.2f}x faster, SSIM {report.closeness.ssim:.3f}"
    )
    comparison(rows, title, out / "grid.png")
    for line in lines(report):
        sys.stdout.write(line + "\n")
    sys.stdout.write(f"\nimages   {out / 'grid.png'}\nfigures  {out / 'report.json'}\n")


def _note(report: Report, name: str) -> str:
    return f"{report.per_image[name].median_ms:.0f} ms an image"
