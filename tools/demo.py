"""`ditc demo`: the main job on the shipped model: compile, run, compare, report."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ditc.export import compile as compile_bundle
from ditc.passes import Plan, Recording, Schedule, schedule, schedule_cost
from ditc.runtime import Bundle
from ditc.runtime.guidance import guide
from ditc.runtime.sampler import SamplerState

from .glyphs import (
    CLASSES,
    IMAGE_SIZE,
    NULL_CLASS,
    GlyphFeatures,
    load_classifier,
    render_batch,
)
from .images import comparison, to_bytes
from .inspecting import bytes_by_part
from .models import demo_recording
from .progress import progress
from .quality import Closeness, Figure, closeness, frechet_distance, lpips, small_sample
from .timing import Timing, in_turn

__all__ = ["GUIDANCE_SCALE", "PLAN", "Report", "run_demo"]

PLAN = Path(__file__).parent / "demo_model" / "plan.json"
GUIDANCE_SCALE = 4.0
BUSY = 1.25
"""Third quartile over first beyond which times say more about the machine than about engines."""
DRAWN_EACH = 50
"""Drawn glyphs of every class that images are held against."""
SHOWN = "DITC2357ABKQ"
Images = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Report:
    """What the demo found.

    Attributes:
        attention_left: share of the attention sites' multiply-adds that is left.
        model_left: the same of the whole model.
        predicted_speedup: what the multiply-adds promise, 1 / model_left.
        measured_speedup: compressed against uncompressed engine, median of rounds.
        per_image: wall time an image of `compressed`, `uncompressed` and `eager`.
        closeness: compressed images against uncompressed ones.
        accuracy: share of glyphs that the classifier reads as the class asked for.
        bundle_bytes: bytes of the compressed bundle by part.
        buckets: graphs in the compressed bundle.
        frechet: Fréchet distance to freshly drawn glyphs, in the classifier's features, of
            `compressed`, `uncompressed` and `drawn`: as many glyphs of another draw, which is
            what so few images have at best.
        frechet_note: what to know of distances from so few images, None where they suffice.
        absent: figures that there are none of, and why.
        samples: images behind accuracy, closeness and distances.
        threads: threads of PyTorch, as many as were fastest; ONNX Runtime takes all cores.
    """

    attention_left: float
    model_left: float
    predicted_speedup: float
    measured_speedup: float
    per_image: dict[str, Timing]
    closeness: Closeness
    accuracy: dict[str, float]
    frechet: dict[str, float]
    frechet_note: str | None
    absent: dict[str, str]
    bundle_bytes: dict[str, int]
    buckets: int
    samples: int
    threads: int


def run_demo(out: Path, rounds: int = 7) -> Report:
    """Compile the shipped model with and without its plan, run both, and write what came of it.

    Args:
        out: folder for bundles, `grid.png` and `report.json`; made if it isn't there.
        rounds: how often each way of making an image is timed.
    """
    out.mkdir(parents=True, exist_ok=True)
    recording = demo_recording()
    program = recording.capture()
    plan = Plan.load(PLAN)
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
    report = _report(schedules["compressed"], bundles, images, timings)
    _write(report, images, out)
    return report


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
            made.append(_generate(bundle, label, seed=label))
            advance()
    return np.concatenate(made)


def _generate(bundle: Bundle, label: int, seed: int) -> Images:
    return bundle.generate(
        seed=seed,
        guidance_scale=GUIDANCE_SCALE,
        class_labels=np.array([label, NULL_CLASS]),
    )


def _timings(
    bundles: dict[str, Bundle], recording: Recording, steps: int, rounds: int
) -> dict[str, Timing]:
    eager = EagerSampler(recording, bundles["uncompressed"], steps)
    _choose_threads(recording)
    ways = {
        "uncompressed": lambda: _generate(bundles["uncompressed"], 3, seed=0),
        "compressed": lambda: _generate(bundles["compressed"], 3, seed=0),
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


def _report(
    sched: Schedule,
    bundles: dict[str, Bundle],
    images: dict[str, Images],
    timings: dict[str, Timing],
) -> Report:
    cost = schedule_cost(sched)
    classifier = load_classifier()
    labels = torch.arange(len(CLASSES))
    with torch.no_grad():
        accuracy = {
            name: (classifier(torch.from_numpy(made)).argmax(-1) == labels).float().mean().item()
            for name, made in images.items()
        }
    return Report(
        attention_left=cost.attention_left,
        model_left=cost.model_left,
        predicted_speedup=1 / cost.model_left,
        measured_speedup=timings["compressed"].ratio_to(timings["uncompressed"]),
        per_image=timings,
        closeness=closeness(images["compressed"], images["uncompressed"]),
        accuracy=accuracy,
        frechet=_distances(images),
        frechet_note=small_sample(len(CLASSES), GlyphFeatures.num_features),
        absent=_absent(images),
        bundle_bytes=bytes_by_part(bundles["compressed"].manifest),
        buckets=len(sched.buckets),
        samples=len(CLASSES),
        threads=torch.get_num_threads(),
    )


def _distances(images: dict[str, Images]) -> dict[str, float]:
    """Return the Fréchet distance of each set, and of a fresh draw, to many drawn glyphs."""
    labels = torch.arange(len(CLASSES))
    generator = torch.Generator().manual_seed(0)
    drawn = render_batch(labels, generator).numpy()
    batches = [render_batch(labels, generator).numpy() for _ in range(DRAWN_EACH)]
    references, features = np.concatenate(batches), GlyphFeatures.load()
    found = {
        name: frechet_distance(made, references, features).value
        for name, made in {**images, "drawn": drawn}.items()
    }
    return {name: value for name, value in found.items() if value is not None}


def _absent(images: dict[str, Images]) -> dict[str, str]:
    """Return the figures that glyphs have none of, and why."""
    figures = {
        "LPIPS": lpips(images["compressed"], images["uncompressed"]),
        "CLIP score": Figure(None, "glyphs are asked for by class: there are no prompts"),
    }
    return {name: figure.absent for name, figure in figures.items() if figure.absent is not None}


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


def lines(report: Report) -> Iterator[str]:
    """Yield the report as lines for people."""
    plain, small, eager = (
        report.per_image[name] for name in ("uncompressed", "compressed", "eager")
    )
    yield ""
    yield "                               uncompressed   compressed"
    yield f"attention multiply-adds left         100.0%       {report.attention_left:6.1%}"
    yield f"whole-model multiply-adds left       100.0%       {report.model_left:6.1%}"
    yield f"time per image, ditc             {plain.median_ms:7.0f} ms   {small.median_ms:7.0f} ms"
    yield f"time per image, eager PyTorch    {eager.median_ms:7.0f} ms"
    plain_read, small_read = (report.accuracy[name] for name in ("uncompressed", "compressed"))
    yield f"glyphs read as asked                 {plain_read:6.1%}       {small_read:6.1%}"
    yield ""
    reached = report.measured_speedup / report.predicted_speedup
    rounds = len(small.rounds_ms)
    yield (
        f"speedup {report.measured_speedup:.2f}x, the median of {rounds} rounds in turn, of "
        f"{report.predicted_speedup:.2f}x that the multiply-adds promise ({reached:.0%})"
    )
    yield f"one image at a time; PyTorch on {report.threads} threads, its fastest here"
    if max(plain.spread, small.spread) > BUSY:
        yield "the machine was busy: times differ between rounds, run it again when it is idle"
    yield (
        f"PSNR {report.closeness.psnr_db:.1f} dB, SSIM {report.closeness.ssim:.3f} "
        f"against the uncompressed images, over {report.samples} of them"
    )
    distances = report.frechet
    yield (
        f"Fréchet distance to drawn glyphs {distances['compressed']:.1f} compressed, "
        f"{distances['uncompressed']:.1f} uncompressed, {distances['drawn']:.1f} another draw"
    )
    if report.frechet_note is not None:
        yield f"  ({report.frechet_note})"
    for name, why in report.absent.items():
        yield f"{name}: absent, {why}"
    parts = ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in report.bundle_bytes.items())
    yield f"bundle: {parts}, {report.buckets} buckets"
