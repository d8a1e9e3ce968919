"""Put engines into a bundle: one a bucket, built from its graph, in the place of the graph."""

import hashlib
import lzma
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from ditc.runtime.engine_info import COMPRESSION, EngineInfo
from ditc.runtime.files import SOURCES_FILE, WEIGHTS_FILE

from .batching import Batches
from .cache import EngineCache
from .engine_file import EngineFile
from .library import Library
from .lowered import Lowered
from .onnx import save
from .tensorrt import EngineJob, build_engines, decomposed_sites
from .weight_inputs import with_weight_inputs

__all__ = ["ENGINE", "write_engines"]

ENGINE = ".engine"
"""How the name of an engine's file ends."""

XZ_PRESET = 1
"""Quick, and as small as the slower ones make it: what repeats lies close together."""

Places = Mapping[str, tuple[int, int]]


def write_engines(
    folder: Path,
    library: Library,
    lowered: Mapping[str, Lowered],
    placed: Places,
    cache: EngineCache,
    workers: int,
    weights: str,
    log: Callable[[str], object],
    progress: Callable[[], object],
    batches: Batches | None = None,
) -> EngineInfo:
    """Build an engine of every bucket and write it into a bundle's folder.

    Where weights are baked, the store is taken out of the folder once they are; where they aren't,
    the plans are compressed.

    Args:
        folder: holds the weight store.
        library: what builds them.
        lowered: the graph of each bucket, by its name.
        placed: offset and length of each weight in the store, in bytes.
        cache: keeps engines.
        workers: builds at once.
        weights: `inputs` or `baked`.
        log: told, a line each, what was built, and which sites have no dedicated kernel.
        progress: called after each engine.
        batches: the sizes that engines serve; one size if None.

    Raises:
        LoweringError: naming the bucket, if an engine can't be built.
    """
    baked = weights == "baked"

    def done(name: str, engine: EngineFile, built: bool) -> None:
        how = f"built in {engine.seconds:.1f} s" if built else "found in the cache"
        log(
            f"{name}: engine {how}, {len(engine.plan)} bytes, "
            f"{engine.peak_bytes / 1e6:.0f} MB at the peak"
        )
        progress()

    make = _maker(library, baked)
    made = [make(folder, name, graph, placed) for name, graph in lowered.items()]
    jobs = [
        job if batches is None else replace(job, shapes=batches.shapes(job.graph)) for job in made
    ]
    engines = build_engines(library, jobs, cache, workers, done)
    for job in jobs:
        if job.file is not None:
            for file in folder.glob(f"{job.name}*.onnx"):
                file.unlink()
        plan = engines[job.name].plan
        written = plan if baked else lzma.compress(plan, preset=XZ_PRESET)
        (folder / f"{job.name}{ENGINE}").write_bytes(written)
    if baked:
        (folder / WEIGHTS_FILE).unlink()
    if baked and not library.refit:
        (folder / SOURCES_FILE).unlink()
    decomposed = decomposed_sites(engines)
    for site, reason in decomposed.items():
        log(f"warning: {site}: its attention is written out in the engine: {reason}")
    return EngineInfo(
        library=library.module,
        version=library.version,
        capabilities=library.capabilities,
        weights=weights,
        compression=None if baked else COMPRESSION,
        decomposed=decomposed,
        refittable=library.refit,
    )


def _maker(library: Library, baked: bool) -> Callable[[Path, str, Lowered, Places], EngineJob]:
    if library.torch:
        return _torch_baking if baked else _torch_taking
    return _baking if baked else _taking


def _torch_taking(folder: Path, name: str, lowered: Lowered, placed: Places) -> EngineJob:
    """Return the job of an engine of a program of torch.export, whose weights are inputs."""
    del folder, placed
    return EngineJob(name, lowered.graph)


def _torch_baking(folder: Path, name: str, lowered: Lowered, placed: Places) -> EngineJob:
    """Return the job of one that holds its weights."""
    store = folder / WEIGHTS_FILE
    return EngineJob(name, lowered.graph, _digest(store, lowered, placed), store=store)


def _taking(folder: Path, name: str, lowered: Lowered, placed: Places) -> EngineJob:
    """Return the job of an engine that takes its weights as inputs."""
    del folder, placed
    return EngineJob(name, with_weight_inputs(lowered.graph))


def _baking(folder: Path, name: str, lowered: Lowered, placed: Places) -> EngineJob:
    """Return the job of an engine that holds its weights."""
    file = folder / f"{name}.onnx"
    save(lowered, file, WEIGHTS_FILE, placed)
    digest = _digest(folder / WEIGHTS_FILE, lowered, placed)
    return EngineJob(name, lowered.graph, digest, file)


def _digest(path: Path, lowered: Lowered, placed: Places) -> str:
    """Return a digest of the weights that a graph refers to."""
    digest = hashlib.sha256()
    with path.open("rb") as store:
        for weight in lowered.names:
            offset, length = placed[weight]
            store.seek(offset)
            digest.update(f"{weight} {length}\n".encode() + store.read(length))
    return digest.hexdigest()
