"""What the demo reports: figures of cost, time and quality, and the lines that tell them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ditc.passes import Plan, Schedule, schedule_cost
from ditc.runtime import Bundle

from .counted import counted
from .glyphs import CLASSES, GlyphFeatures, load_classifier, render_batch, share_read
from .inspecting import bytes_by_part
from .quality import Closeness, Figure, closeness, frechet_distance, lpips, small_sample
from .report_words import decibels
from .timing import Timing

__all__ = ["Report", "figures_of", "lines"]

BUSY = 1.25
"""Third quartile over first beyond which times say more about the machine than about engines."""
DRAWN_EACH = 50
"""Drawn glyphs of every class that images are held against."""
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
        frechet: Fréchet distance to freshly drawn glyphs, in the classifier's features, of
            `compressed`, `uncompressed` and `drawn`: as many glyphs of another draw, which is
            what so few images have at best.
        frechet_note: what to know of distances from so few images, None where they suffice.
        absent: figures that there are none of, and why.
        bundle_bytes: bytes of the compressed bundle by part.
        buckets: graphs in the compressed bundle.
        samples: images behind accuracy, closeness and distances.
        threads: threads of PyTorch, as many as were fastest; ONNX Runtime takes all cores.
        plan: how the plan was found, in words.
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
    plan: str


def figures_of(
    sched: Schedule,
    bundles: dict[str, Bundle],
    images: dict[str, Images],
    timings: dict[str, Timing],
    search_s: float,
) -> Report:
    """Return the figures of a compressed schedule.

    Args:
        sched: the compressed schedule.
        bundles: `compressed` and `uncompressed`.
        images: one glyph of every class of each bundle, `[classes, 1, height, width]`.
        timings: wall time an image of each bundle and of `eager`.
        search_s: wall time of the search that found the plan.
    """
    cost = schedule_cost(sched)
    classifier = load_classifier()
    labels = torch.arange(len(CLASSES))
    accuracy = {
        name: share_read(classifier, torch.from_numpy(made), labels)
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
        plan=_told(sched.plan, search_s),
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


def _told(plan: Plan, search_s: float) -> str:
    """Return how a plan was found, and what it never tried, in one line."""
    if plan.origin is None:
        return "written, not found"
    found = plan.origin
    text = (
        f"found in {search_s:.0f} s: {found.search} search, threshold {found.threshold:g}, "
        f"{found.samples} samples"
    )
    refused: dict[str, int] = {}
    for methods in found.gate.refused.values() if found.gate else ():
        for method in methods:
            refused[method] = refused.get(method, 0) + 1
    if not refused:
        return text
    slow = ", ".join(f"{method} at {counted(count, 'site')}" for method, count in refused.items())
    return f"{text}; never tried, as not faster than full here: {slow}"


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
    rounds = counted(len(small.rounds_ms), "round")
    yield (
        f"speedup {report.measured_speedup:.2f}x, the median of {rounds} in turn, of "
        f"{report.predicted_speedup:.2f}x that the multiply-adds promise ({reached:.0%})"
    )
    yield f"one image at a time; PyTorch on {counted(report.threads, 'thread')}, its fastest here"
    if max(plain.spread, small.spread) > BUSY:
        yield "the machine was busy: times differ between rounds, run it again when it is idle"
    yield (
        f"PSNR {decibels(report.closeness.psnr_db)}, SSIM {report.closeness.ssim:.3f} "
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
    yield f"plan {report.plan}"
    parts = ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in report.bundle_bytes.items())
    yield f"bundle: {parts}, {report.buckets} buckets"
