"""Build what is missing: several graphs at once, each in a process of its own, into the cache."""

import contextlib
import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess

import torch

from ditc.runtime import errors
from ditc.runtime.errors import DitcError, LoweringError

from .cache import EngineCache
from .lowered import Lowered

__all__ = ["Job", "build", "usable_cores"]

PARENT_DIED = 1
"""`PR_SET_PDEATHSIG` of prctl(2)."""


@dataclass(frozen=True)
class Job:
    """A graph to lower.

    Attributes:
        name: to tell of it.
        key: in the cache.
        make: lowers it.
    """

    name: str
    key: str
    make: Callable[[], Lowered]


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def build(
    jobs: Sequence[Job],
    cache: EngineCache,
    workers: int,
    done: Callable[[str, bool], object],
) -> dict[str, Lowered]:
    """Return the graph of every job by name, from the cache or built into it.

    Args:
        jobs: what to build; jobs of one key are built once.
        cache: where graphs are found, and kept as soon as they are built.
        workers: processes at once; 1 builds in this one.
        done: told each job's name, and whether it was built rather than found.

    Raises:
        DitcError: as a job does.
        LoweringError: if a process ends without a result, as for want of memory.
    """
    found: dict[str, Lowered] = {}
    missing: dict[str, Job] = {}
    for job in jobs:
        known = None if job.key in missing else cache.get(job.key)
        if known is None:
            missing.setdefault(job.key, job)
            continue
        found[job.name] = known
        done(job.name, False)
    made = dict(_made(list(missing.values()), cache, workers, done))
    return {job.name: found.get(job.name) or made[job.key] for job in jobs}


def _made(
    jobs: Sequence[Job],
    cache: EngineCache,
    workers: int,
    done: Callable[[str, bool], object],
) -> Iterator[tuple[str, Lowered]]:
    parallel = workers > 1 and len(jobs) > 1 and "fork" in multiprocessing.get_all_start_methods()
    if parallel:
        for job in _in_processes(jobs, cache, workers):
            done(job.name, True)
            yield job.key, _built(job, cache)
        return
    for job in jobs:
        lowered = job.make()
        cache.put(job.key, lowered)
        done(job.name, True)
        yield job.key, lowered


def _built(job: Job, cache: EngineCache) -> Lowered:
    lowered = cache.get(job.key)
    if lowered is None:  # removed since: another build's sweep, or a person
        lowered = job.make()
        cache.put(job.key, lowered)
    return lowered


def _in_processes(jobs: Sequence[Job], cache: EngineCache, workers: int) -> Iterator[Job]:
    """Yield jobs as their processes end well."""
    waiting = list(reversed(jobs))
    running: dict[Connection, tuple[Job, ForkProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop()
                connection, process = _start(job, cache)
                running[connection] = (job, process)
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                job, process = running.pop(ready)
                _check(job, ready, process)
                yield job
    finally:
        for _, process in running.values():
            process.kill()
            process.join()


def _start(job: Job, cache: EngineCache) -> tuple[Connection, ForkProcess]:
    ours, theirs = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_work, args=(job, cache, theirs, os.getpid()), daemon=True)
    sys.stdout.flush()
    sys.stderr.flush()
    with _uncollected(), warnings.catch_warnings():
        # Python warns of forks beside threads. Those of torch and engines hold no lock here: all
        # of them sleep between operators, and the child computes on one thread of its own.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    theirs.close()
    return ours, process


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Leave garbage where it is while a process forks."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _work(job: Job, cache: EngineCache, result: Connection, parent: int) -> None:
    gc.freeze()  # an engine among the parent's garbage would wait for threads that aren't here
    gc.enable()
    _die_with(parent)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it and ends its children
    torch.set_num_threads(1)
    try:
        cache.put(job.key, job.make())
    except DitcError as error:
        result.send((type(error).__name__, str(error)))
        return
    except MemoryError:
        result.send(("LoweringError", f"{job.name}: out of memory"))
        return
    result.send(None)


def _die_with(parent: int) -> None:
    """End this process when its parent does, however that ends."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PARENT_DIED, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _check(job: Job, connection: Connection, process: ForkProcess) -> None:
    """Raise what a process failed with."""
    try:
        told = connection.recv()
    except EOFError:
        told = None
        process.join()
        if process.exitcode:
            raise LoweringError(
                f"{job.name}: the process that built it ended with {process.exitcode}: if memory "
                "ran out, build fewer at once"
            ) from None
    process.join()
    connection.close()
    if told is not None:
        _raise(*told)


def _raise(kind: str, message: str) -> None:
    known: Mapping[str, object] = vars(errors)
    found = known.get(kind)
    if isinstance(found, type) and issubclass(found, DitcError):
        raise found(message)
    raise LoweringError(message)
