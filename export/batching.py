"""Batch sizes that one bundle serves: a schedule at two of them, graphs lowered for all."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from ditc.passes.identity import in_batch
from ditc.passes.program import Program
from ditc.passes.scheduling import Bucket, Schedule
from ditc.runtime.dynamic import MAX_BATCH, DynamicInfo
from ditc.runtime.errors import CaptureError, LoweringError

from .blocks import MOST_SCORES
from .building import Job
from .cache import key_of
from .generalising import generalised, input_shapes
from .lowered import Lowered
from .onnx import lower
from .parts import ALL_STEPS, part_jobs
from .specialising import Specialisation
from .tensorrt import Shape

__all__ = ["Batches", "batches_of", "dynamic_info", "lower_range", "range_parts"]

TRACED = (2, 3)
"""Samples that graphs are lowered at; at one sample tracers take the batch's axis for none."""


@dataclass(frozen=True, eq=False)
class Batches:
    """The batch sizes that graphs are to serve.

    Attributes:
        least: samples at least.
        most: samples at most.
        captured: samples that the program was captured with.
        traced: the schedule for each number of samples that graphs are lowered at.
    """

    least: int
    most: int
    captured: int
    traced: tuple[Schedule, Schedule]

    def shapes(self, graph: bytes) -> dict[str, tuple[Shape, Shape, Shape]]:
        """Return the shapes of a graph's inputs that hold the batch: least, usual and largest."""
        halves = 2 if in_batch(self.traced[0].program.cfg) else 1
        least, usual, most = (
            input_shapes(graph, halves, count) for count in (self.least, self.captured, self.most)
        )
        return {name: (least[name], usual[name], most[name]) for name in usual}

    def buckets(self, name: str) -> tuple[Bucket, Bucket]:
        """Return a bucket at both numbers of samples."""
        first, second = (
            next(bucket for bucket in sched.buckets if bucket.name == name) for sched in self.traced
        )
        return first, second

    def of(self, sched: Schedule) -> "Batches":
        """Return the same sizes of another schedule of the program."""
        first, second = (sched.on(traced.program) for traced in self.traced)
        return replace(self, traced=(first, second))


def batches_of(
    sched: Schedule,
    dynamic: Mapping[str, tuple[int, int]] | None,
    special: Specialisation,
) -> Batches | None:
    """Return the batch sizes that `dynamic` asks for, None where it asks for none.

    Args:
        sched: for the program as captured.
        dynamic: `{"batch": (least, most)}`.
        special: what is done to programs before they are lowered, as it is to that one.

    Raises:
        LoweringError: if it names anything but `batch`, is no range, or leaves out the samples
            that the program was captured with; or the program can't be captured with others.
    """
    if not dynamic:
        return None
    if set(dynamic) != {"batch"}:
        name = sorted(set(dynamic) - {"batch"})[0]
        raise LoweringError(
            f"dynamic: {name!r} can't vary, only 'batch' can: compile resolutions as variants"
        )
    least, most = dynamic["batch"]
    if not 1 <= least <= most <= MAX_BATCH:
        raise LoweringError(
            f"dynamic: batch is {least} to {most}, expected a range within 1 to {MAX_BATCH}"
        )
    samples = sched.program.samples
    if not least <= samples <= most:
        raise LoweringError(
            f"dynamic: batch is {least} to {most}, but the model was captured with {samples} "
            "samples: capture it with a number of that range"
        )
    try:
        programs = [_resized(sched.program, count) for count in TRACED]
    except CaptureError as error:
        raise LoweringError(f"dynamic: the batch can't vary: {error}") from error
    programs = [special.of(found, sched.program) for found in programs]
    return Batches(least, most, samples, (sched.on(programs[0]), sched.on(programs[1])))


def _resized(program: Program, samples: int) -> Program:
    found = program.resized(samples)
    before, after = program.latents.shape[0], found.latents.shape[0]
    names = [entry.name for entry in program.inputs]
    if [entry.name for entry in found.inputs] != names or after * program.samples != (
        before * samples
    ):
        raise CaptureError("with other samples the model takes other inputs")
    return found


def dynamic_info(batches: Batches | None, lowered: Mapping[str, Lowered]) -> DynamicInfo | None:
    """Return what a manifest tells of the range.

    Raises:
        LoweringError: if the batch of a tensor lies on different axes in different graphs.
    """
    if batches is None:
        return None
    axes: dict[str, int] = {}
    for graph in (graph for key, graph in lowered.items() if key != ALL_STEPS):
        for name, axis in graph.axes.items():
            if axes.setdefault(name, axis) != axis:
                raise LoweringError(f"dynamic: {name} holds the batch on axes {axes[name]}, {axis}")
    return DynamicInfo(batches.least, batches.most, axes)


def range_parts(batches: Batches, samples: int) -> list[Job]:
    """Return what lowers the graphs of the prologue for any number of samples.

    Args:
        batches: the sizes.
        samples: that multiply-adds are told of.
    """
    programs = [sched.program for sched in batches.traced]
    halves = 2 if in_batch(programs[0].cfg) else 1
    first, second = (part_jobs(program) for program in programs)
    return [
        Job(
            one.name,
            key_of("range", one.key, two.key, samples),
            partial(_range_part, one, two, halves, samples),
        )
        for one, two in zip(first, second, strict=True)
    ]


def _range_part(one: Job, two: Job, halves: int, samples: int) -> Lowered:
    return generalised(one.make(), two.make(), TRACED, halves, samples, one.name)


def lower_range(first: Bucket, second: Bucket, samples: int, most: int) -> Lowered:
    """Lower a bucket's graph for any number of samples.

    Args:
        first: the bucket at the first of `TRACED` samples.
        second: the same at the second.
        samples: that multiply-adds are told of.
        most: samples at most, for which attention over blocks is cut into calls.

    Raises:
        LoweringError: as `lower` does, or if what differs isn't linear in the samples.
    """
    graphs = [
        lower(bucket, MOST_SCORES * count // most)
        for bucket, count in zip((first, second), TRACED, strict=True)
    ]
    halves = 2 if in_batch(first.program.cfg) else 1
    return generalised(graphs[0], graphs[1], TRACED, halves, samples, f"bucket {first.name}")
