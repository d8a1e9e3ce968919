"""Compile a schedule into a bundle."""

from collections.abc import Callable, Iterable, Mapping, Set
from pathlib import Path

import torch
from safetensors.torch import save_file

from ditc.passes import Program, Schedule
from ditc.runtime.decoder import DECODER
from ditc.runtime.errors import LoweringError
from ditc.runtime.files import SOURCES_FILE
from ditc.runtime.manifest import CONDITIONING_FILE, MANIFEST_FILE, PLAN_FILE, WEIGHTS_FILE
from ditc.runtime.recorded import recorded_name
from ditc.runtime.targets import PRECISIONS, WEIGHTS_MODES, parse_target

from .building import usable_cores
from .bundle import records, staged
from .cache import EngineCache, default_cache
from .checking import check_choice, check_schedule
from .decoder import lower_decoder
from .describing import file_of, manifest_of
from .engines import write_engines
from .forms import check_serves_range, form_of
from .library import find_library, find_window_kernel
from .lowering import lowered_graphs
from .onnx import save
from .preparing import Limits, prepared
from .sources import write_sources
from .specialising import Specialisation
from .weights import entries, merge, write_store

__all__ = ["compile"]


def compile(  # noqa: A001 (the contract's name)
    sched: Schedule,
    out_dir: str | Path,
    target: str = "onnx",
    precision: str = "fp32",
    sampler: object = None,
    *,
    progress: Callable[[], object] | None = None,
    cache: str | Path | None = None,
    jobs: int | None = None,
    log: Callable[[str], object] | None = None,
    calibration: Iterable[Mapping[str, torch.Tensor]] | None = None,
    prologue: bool = True,
    weights: str = "inputs",
    dynamic: Mapping[str, tuple[int, int]] | None = None,
    fold_halves: bool = False,
    fuse_guidance: bool = False,
    fold_timesteps: bool = False,
    decoder: torch.nn.Module | Program | None = None,
    max_slot_bytes: int | None = None,
    max_memory_bytes: int | None = None,
    foretell: Callable[[Schedule], object] | None = None,
    window_kernel: bool = False,
) -> Path:
    """Lower every bucket of a schedule and write the bundle.

    Args:
        sched: what to compile.
        out_dir: the bundle's folder; a bundle that lies there is replaced once the new one is
            complete.
        target: `onnx`; `tensorrt-rtx:sm89,sm120` for engines for GPUs of these compute
            capabilities, built without one; `tensorrt` for the GPU at hand; `torch-tensorrt` for
            engines straight from the graphs of torch, with the GPUs named where what is installed
            builds with TensorRT-RTX.
        precision: `fp32`, `fp16` or `bf16`; inputs and outputs are float32 all the same. A model
            that was captured in a half precision is compiled in that.
        sampler: a diffusers scheduler whose coefficients go into the bundle, so that it can
            generate; None for a bundle that is only stepped.
        progress: called after each bucket.
        cache: folder that keeps graphs, so that only what changed is built again, and a build
            that was killed goes on where it was; `~/.cache/ditc` if None.
        jobs: graphs to build at once, each in a process; as many as there are cores if None.
        log: told, a line each, which graphs were built and which were found in the cache; of
            engines also how long they took and which sites have no dedicated kernel.
        calibration: inputs to run the model on before it is made fp16, by input name, so that
            values which that can't hold stay in fp32; those it was captured with if None.
        prologue: whether what doesn't depend on the latents leaves the steps, as far as it is
            worth what is kept for it.
        weights: `inputs` for engines that take their weights from the bundle's one store; `baked`
            for engines that hold them, a model's weights each.
        dynamic: `{"batch": (1, 8)}` for graphs that serve 1 to 8 samples at once.
        fold_halves: whether what is the same in both halves of guidance is computed once; the
            bundle then refuses latents that differ between them.
        fuse_guidance: whether graphs guide their output themselves, by a scale that is an input.
        fold_timesteps: whether a graph that runs one step holds the sampler's timestep there; the
            bundle then refuses another at that step.
        decoder: an autoencoder whose decoder goes into the bundle, so that it makes pictures, or
            what `capture_decoder` made of it; None for a bundle that makes latents.
        max_slot_bytes: as for `schedule`, counted in the precision and for the most samples that
            the bundle serves.
        max_memory_bytes: the same for all that lies in memory at once, what the prologue keeps
            among it.
        foretell: told the schedule as it is compiled, before anything is built: its `peak_bytes`
            are what the bundle is predicted to take.
        window_kernel: whether windows are computed by a kernel of their own, a plugin whose code
            lies in the engines, in place of dense attention over blocks; `tensorrt` takes it.

    Returns:
        The bundle's folder.

    Raises:
        LoweringError: if it is no schedule, target or precision are unknown, the target's library
            isn't there or doesn't build for a GPU that it names, the model isn't of that
            precision, a graph can't be expressed, the scheduler isn't linear, the decoder doesn't
            make pictures of the model's latents, or timesteps can't be folded.
        PlanError: if the plan was found with another scheduler, or a limit can't be held.
        PassError: if a method of the plan can't be applied.
        BundleError: if the bundle can't be written there. Nothing half-written is left.
    """
    check_schedule(sched)
    if jobs is not None and jobs < 1:
        raise LoweringError(f"jobs is {jobs}, expected at least 1")
    wanted = parse_target(target)
    check_choice("weights", weights, WEIGHTS_MODES)
    library = find_library(wanted, refit=weights == "baked") if wanted.libraries else None
    kernel = find_window_kernel(wanted, library) if window_kernel else None
    form = form_of(wanted, kernel)
    if dynamic is not None:
        check_serves_range(wanted, form)
    check_choice("precision", precision, PRECISIONS)
    ready = prepared(
        sched,
        sampler,
        (precision, calibration, log or _ignore),
        Specialisation(sched.steps, fold_halves, fuse_guidance, prologue, fold_timesteps),
        Limits(max_slot_bytes, max_memory_bytes),
        dynamic,
        decoder,
    )
    sched, pictures, batches = ready.sched, ready.pictures, ready.batches
    if foretell is not None:
        foretell(sched)
    place = Path(out_dir)
    kept = EngineCache(default_cache() if cache is None else Path(cache))
    workers = jobs or usable_cores()
    with staged(place) as folder:
        told = _teller(progress, log, {bucket.name for bucket in sched.buckets})
        lowered = lowered_graphs(sched, form, kept, workers, told, batches)
        owner = {bucket.name: bucket.program for bucket in sched.buckets}
        if pictures is not None:
            lowered[DECODER] = lower_decoder(pictures, kept, told, form)
            owner[DECODER] = pictures
        parts = (entries(graph, owner.get(name, sched.program)) for name, graph in lowered.items())
        store = write_store(merge(parts), folder / WEIGHTS_FILE)
        if sched.program.weights is not None:
            sched.program.weights.check()
        write_sources(folder / SOURCES_FILE, sched.program, lowered.values())
        engine = None
        if library is None:
            for name, graph in lowered.items():
                save(graph, folder / file_of(engine, name), WEIGHTS_FILE, store.places)
        else:
            engine = write_engines(
                folder,
                library,
                lowered,
                store.places,
                kept,
                workers,
                weights,
                log or _ignore,
                progress or _ignore,
                batches,
            )
        sched.plan.save(folder / PLAN_FILE)
        save_file(_conditioning(sched.program), folder / CONDITIONING_FILE)
        files = records(folder, {WEIGHTS_FILE: store.file})
        manifest = manifest_of(ready, lowered, engine, files, wanted.name, precision)
        (folder / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return place


def _teller(
    progress: Callable[[], object] | None,
    log: Callable[[str], object] | None,
    counted: Set[str],
) -> Callable[[str, bool], object]:
    def done(name: str, built: bool) -> None:
        if log is not None:
            log(f"{name}: {'built' if built else 'found in the cache'}")
        if progress is not None and name in counted:
            progress()

    return done


def _ignore(*_: object) -> None: ...


def _conditioning(program: Program) -> Mapping[str, torch.Tensor]:
    calls = {"": program.example, "uncond": program.unconditional}
    return {
        recorded_name(entry.name, call): values[entry.name].contiguous()
        for call, values in calls.items()
        for entry in program.inputs
        if entry.role == "condition" and entry.name in values
    }
