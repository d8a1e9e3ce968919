"""Lower every graph of a schedule: its buckets' and its prologue's, several at once."""

from collections.abc import Callable
from functools import partial

from ditc.passes import Bucket, Schedule
from ditc.passes.fingerprint import program_digest

from .batching import Batches, lower_range, range_parts
from .building import Job, build
from .cache import EngineCache, key_of
from .forms import Form
from .lowered import Lowered
from .parts import part_jobs

__all__ = ["lowered_graphs"]


def lowered_graphs(
    sched: Schedule,
    form: Form,
    cache: EngineCache,
    workers: int,
    done: Callable[[str, bool], object],
    batches: Batches | None,
) -> dict[str, Lowered]:
    """Return the graph of each bucket and of the prologue by its name, from the cache or into it.

    Args:
        sched: whose buckets.
        form: to lower them to; ONNX if they serve several batch sizes.
        cache: where graphs are kept.
        workers: graphs at once.
        done: told each graph's name, and whether it was built.
        batches: the sizes that each graph serves, None for the one it was captured with.

    Raises:
        LoweringError: naming the graph, if it can't be lowered.
    """
    program = program_digest(sched.program)
    if batches is not None:
        traced = [program_digest(other.program) for other in batches.traced]
        program = f"{program} {traced} up to {batches.most}"
    jobs = [
        Job(bucket.name, _key(bucket, form, program), _make(bucket, form, batches))
        for bucket in sched.buckets
    ]
    parts = (
        part_jobs(sched.program, form)
        if batches is None
        else range_parts(batches, sched.program.samples)
    )
    return build([*jobs, *parts], cache, workers, done)


def _make(bucket: Bucket, form: Form, batches: Batches | None) -> Callable[[], Lowered]:
    if batches is None:
        return partial(form.lower, bucket)
    first, second = batches.buckets(bucket.name)
    return partial(lower_range, first, second, bucket.program.samples, batches.most)


def _key(bucket: Bucket, form: Form, program: str) -> str:
    """Return the cache key of a bucket's graph: all that it is made from."""
    return key_of(
        form.name,
        form.windows if _has_windows(bucket) else "",
        program,
        sorted(bucket.methods.items()),
        sorted(bucket.plan.windows.items()),
        sorted(bucket.keep_outputs),
        sorted(bucket.keep_residuals),
        "" if bucket.timestep is None else bucket.timestep,
    )


def _has_windows(bucket: Bucket) -> bool:
    """Whether a graph has windows: of methods, or for residuals that it leaves."""
    used = any(method.windowed for method in bucket.methods.values())
    return used or bool(bucket.keep_residuals)
