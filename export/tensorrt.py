"""Build TensorRT engines from lowered graphs, for TensorRT-RTX and TensorRT alike.

Each is built in processes of its own (`engine_worker.py`), several at once, and kept in the cache.
Attention stays one operator that may not be decomposed, so that a build that succeeds has the
library's dedicated kernel; where there is none, that attention alone is written out, and its site
is told of.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from ditc.runtime.errors import LoweringError

from .cache import EngineCache
from .engine_file import EngineFile
from .library import Library
from .own_keys import with_own_keys
from .plugin_windows import DOMAIN
from .write_out_attention import write_out_attention

__all__ = ["EngineJob", "Shape", "build_engines", "decomposed_sites"]

Shape: TypeAlias = tuple[int, ...]
WORKER = Path(__file__).with_name("engine_worker.py")
PARTS = (WORKER, *(WORKER.with_name(name) for name in ("engine_library.py", "torch_network.py")))
"""The code that builds engines."""
CALL = DOMAIN.encode()
"""What is in a graph that calls the window kernel."""
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class EngineJob:
    """An engine to build.

    Attributes:
        name: of its bucket.
        graph: serialised ONNX, or a program of torch.export; weights being inputs.
        digest: of everything else it is made from, as baked weights; empty if there is nothing.
        file: the same graph in ONNX as a file, beside the weights that it bakes; None to use
            `graph`.
        store: the weights that a program of torch.export bakes; None to bake none.
        shapes: least, usual and largest shape of each input that isn't of one size.
    """

    name: str
    graph: bytes
    digest: str = ""
    file: Path | None = None
    store: Path | None = None
    shapes: Mapping[str, tuple[Shape, Shape, Shape]] = field(default_factory=dict)


def build_engines(
    library: Library,
    jobs: Sequence[EngineJob],
    cache: EngineCache,
    workers: int,
    done: Callable[[str, EngineFile, bool], object],
) -> dict[str, EngineFile]:
    """Return the engine of every job by name, from the cache or built into it.

    Args:
        library: what builds them.
        jobs: what to build.
        cache: where engines are found, and kept as soon as they are built.
        workers: processes at once.
        done: told each job's name, its engine, and whether it was built rather than found.

    Raises:
        LoweringError: if the library refuses a graph, or a process ends without a result.
    """
    keys = {job.name: _key(library, job) for job in jobs}
    engines: dict[str, EngineFile] = {}
    missing: dict[str, EngineJob] = {}
    for job in jobs:
        known = None if keys[job.name] in missing else cache.get_engine(keys[job.name])
        if known is None:
            missing.setdefault(keys[job.name], job)
            continue
        engines[job.name] = known
        done(job.name, known, False)
    made: dict[str, EngineFile] = {}
    for name, engine in _built(library, list(missing.values()), workers, _timings(library, cache)):
        cache.put_engine(keys[name], engine)
        made[keys[name]] = engine
        done(name, engine, True)
    return {job.name: engines.get(job.name) or made[keys[job.name]] for job in jobs}


def decomposed_sites(engines: Mapping[str, EngineFile]) -> dict[str, str]:
    """Return the sites whose attention was written out in an engine, each with a reason."""
    found: dict[str, str] = {}
    for engine in engines.values():
        for node, reason in engine.decomposed.items():
            found.setdefault(node.partition("#")[0], reason)
    return dict(sorted(found.items()))


def _key(library: Library, job: EngineJob) -> str:
    found = hashlib.sha256(b"".join(path.read_bytes() for path in PARTS))
    for part in (library, job.digest, job.shapes, hashlib.sha256(job.graph).hexdigest()):
        found.update(f"{part}\n".encode())
    return found.hexdigest()


def _timings(library: Library, cache: EngineCache) -> str | None:
    """Return the timing cache of a library that times kernels as it builds, for one kind of GPU."""
    if library.module != "tensorrt":
        return None
    kind = hashlib.sha256(library.gpu.encode()).hexdigest()[:12]
    return str(cache.folder / f"{library.module}-{library.version}-{kind}.timings")


def _built(
    library: Library, jobs: Sequence[EngineJob], workers: int, timings: str | None
) -> Iterator[tuple[str, EngineFile]]:
    waiting = list(jobs)
    with tempfile.TemporaryDirectory(prefix="ditc-engines-") as folder, _running() as running:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop(0)
                running[job.name] = _start(library, job, Path(folder), timings)
            ended = [name for name, process in running.items() if process.poll() is not None]
            if not ended:
                time.sleep(POLL_SECONDS)
            for name in ended:
                code = running.pop(name).returncode
                yield name, _result(library, name, Path(folder) / name, code)


@contextmanager
def _running() -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Yield the processes at work, and end those that are left when the block ends."""
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        yield running
    finally:
        for process in running.values():
            process.kill()
        for process in running.values():
            process.wait()


def _start(
    library: Library, job: EngineJob, folder: Path, timings: str | None
) -> subprocess.Popen[bytes]:
    place = folder / job.name
    place.mkdir()
    graphs = _torch_graph(job, place) if library.torch else _onnx_graphs(job, place)
    record = {
        "library": library.module,
        "capabilities": () if library.gpu else library.capabilities,
        "refit": library.refit,
        "timing_cache": timings,
        **graphs,
        "plan": str(place / "plan"),
        "result": str(place / "result.json"),
        "shapes": job.shapes,
        "parent": os.getpid(),
    }
    (place / "job.json").write_text(json.dumps(record), encoding="utf-8")
    with (place / "log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-P", str(WORKER), str(place / "job.json")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def _onnx_graphs(job: EngineJob, place: Path) -> dict[str, object]:
    """Write a job's graph, and the one in which attention is written out; tell where they lie."""
    graph = place / "graph.onnx" if job.file is None else job.file
    graph.write_bytes(with_own_keys(job.graph if job.file is None else graph.read_bytes()))
    written_out = graph.with_name(f"{graph.stem}-written-out.onnx")
    written_out.write_bytes(write_out_attention(graph.read_bytes()))
    return {
        "graph": str(graph),
        "written_out": {"graph": str(written_out)},
        "window_kernel": CALL in job.graph,
    }


def _torch_graph(job: EngineJob, place: Path) -> dict[str, object]:
    """Write a job's program, in which Torch-TensorRT writes attention out itself if it is told."""
    graph = place / "graph.pt2"
    graph.write_bytes(job.graph)
    store = None if job.store is None else str(job.store)
    return {"graph": str(graph), "store": store, "written_out": {"decompose_attention": True}}


def _result(library: Library, name: str, place: Path, code: int) -> EngineFile:
    result = place / "result.json"
    if code or not result.exists():
        lines = (place / "log").read_text(encoding="utf-8", errors="replace").splitlines()
        last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
        raise LoweringError(
            f"{name}: the process that built its engine ended with {code} ({last.strip()}): if "
            "memory ran out, build fewer at once"
        )
    found = json.loads(result.read_text(encoding="utf-8"))
    if found.get("crashed"):
        raise LoweringError(f"{name}: {found['error']}: if memory ran out, build fewer at once")
    if "error" in found:
        raise LoweringError(
            f"{name}: {library.module} {library.version} refuses the graph: {found['error']}"
        )
    plan = (place / "plan").read_bytes()
    (place / "plan").unlink()
    return EngineFile(
        plan=plan,
        version=found["version"],
        decomposed=found["decomposed"],
        seconds=found["seconds"],
        peak_bytes=found["peak_bytes"],
    )
