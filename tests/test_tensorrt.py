"""Engines for TensorRT-RTX, built here without a GPU: every method, both kinds of windows."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path

import onnx
import pytest
import torch

from ditc.export import compile as compile_bundle
from ditc.export.cache import EngineCache
from ditc.export.engine_file import EngineFile
from ditc.export.library import find_library
from ditc.export.tensorrt import WORKER, EngineJob, build_engines, decomposed_sites
from ditc.export.weight_inputs import with_weight_inputs
from ditc.passes import Window, schedule
from ditc.runtime.errors import LoweringError
from ditc.runtime.manifest import Manifest
from ditc.runtime.targets import parse_target

from . import engines
from .compiled import planned, small_schedule, workshop

needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None,
    reason="needs tensorrt-rtx, which this system has no wheel of",
)
SITE = "attentions.0"


def quiet(*_: object) -> None: ...


def jobs(dtype: torch.dtype, block: int) -> list[EngineJob]:
    graphs = engines.lowered(dtype, block)
    return [EngineJob(name, with_weight_inputs(graph.graph)) for name, graph in graphs.items()]


@lru_cache
def built(dtype: torch.dtype, block: int) -> dict[str, EngineFile]:
    cache = EngineCache(workshop() / "engines")
    return build_engines(engines.rtx(), jobs(dtype, block), cache, 2, quiet)


@needs_rtx
@pytest.mark.parametrize(("block", "buckets"), [(1, 5), (20, 2)])
def test_every_attention_in_half_precision_has_its_kernel(block: int, buckets: int) -> None:
    """Head dim 64: full, windows as blocks with masks, conditional halves."""
    found = built(torch.float16, block)
    assert len(found) == buckets
    assert [engine.decomposed for engine in found.values()] == [{}] * buckets
    assert all(10_000 < len(engine.plan) < 30_000_000 for engine in found.values())


@needs_rtx
def test_plans_hold_no_weight() -> None:
    lowered = engines.lowered(torch.float16, 1)["b00"]
    tensors = engines.tensors(lowered, torch.float16)
    plan = built(torch.float16, 1)["b00"].plan
    for tensor in tensors.values():
        if tensor.numel() > 64:
            raw = tensor.contiguous().view(
                torch.int16 if tensor.is_floating_point() else torch.int64
            )
            assert raw.numpy().tobytes()[:128] not in plan


@needs_rtx
def test_attention_without_a_kernel_is_written_out_and_told_of() -> None:
    found = built(torch.float32, 20)
    reasons = decomposed_sites(found)
    assert set(reasons) == {SITE}
    assert reasons[SITE].startswith("no kernel for fp32, head dim 64, ")


@needs_rtx
def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    job = [entry for entry in jobs(torch.float16, 1) if entry.name == "b01"]
    again = build_engines(engines.rtx(), job, EngineCache(tmp_path), 1, quiet)
    assert again["b01"].plan == built(torch.float16, 1)["b01"].plan


@needs_rtx
def test_engines_are_kept_by_what_they_are_made_from(tmp_path: Path) -> None:
    told: list[tuple[str, bool]] = []

    def done(name: str, _: EngineFile, fresh: bool) -> None:
        told.append((name, fresh))

    cache = EngineCache(tmp_path)
    job = next(entry for entry in jobs(torch.float16, 1) if entry.name == "b04")
    twin = replace(job, name="twin")
    first = build_engines(engines.rtx(), [job, twin], cache, 2, done)
    assert told == [("b04", True)]
    assert first["twin"].plan == first["b04"].plan
    told.clear()
    build_engines(engines.rtx(), [job], cache, 2, done)
    build_engines(engines.rtx(), [replace(job, digest="others' weights")], cache, 2, done)
    two = build_engines(engines.rtx("sm89", "sm120"), [job], cache, 2, done)
    assert told == [("b04", False), ("b04", True), ("b04", True)]
    assert len(two["b04"].plan) > len(first["b04"].plan)


@needs_rtx
def test_a_graph_that_is_refused(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    model = onnx.ModelProto.FromString(jobs(torch.float16, 1)[-1].graph)
    model.graph.node[0].op_type = "NoSuchOperator"
    build = partial(build_engines, engines.rtx(), cache=cache, workers=1, done=quiet)
    with pytest.raises(LoweringError, match=r"^b7: tensorrt_rtx 1\.\S+ refuses the graph: "):
        build([EngineJob("b7", model.SerializeToString())])
    assert not list(tmp_path.iterdir())


@needs_rtx
def test_a_worker_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text("import sys, os\nprint('a last word', flush=True)\nos.kill(os.getpid(), 9)\n")
    monkeypatch.setattr("ditc.export.tensorrt.WORKER", worker)
    job = replace(jobs(torch.float16, 1)[-1], name="b3")
    with pytest.raises(LoweringError) as caught:
        build_engines(engines.rtx(), [job, job], EngineCache(tmp_path / "cache"), 2, quiet)
    assert str(caught.value) == (
        "b3: the process that built its engine ended with -9 (a last word): if memory ran out, "
        "build fewer at once"
    )


@needs_rtx
def test_the_worker_ends_with_whoever_started_it(tmp_path: Path) -> None:
    job = tmp_path / "job.json"
    job.write_text(json.dumps({"parent": os.getpid() + 1, "library": "none"}))
    code = subprocess.run([sys.executable, "-P", str(WORKER), str(job)], check=False).returncode
    assert code == 1


@needs_rtx
def test_libraries_and_gpus_that_are_not_there() -> None:
    def refused(target: str) -> str:
        with pytest.raises(LoweringError) as caught:
            find_library(parse_target(target))
        return str(caught.value)

    message = refused("tensorrt-rtx:sm89,sm90")
    assert message.startswith("target tensorrt-rtx:sm89,sm90: tensorrt_rtx 1.")
    assert "doesn't build for sm90, only for sm75, sm80, sm86, sm89, sm120" in message
    assert "target tensorrt-rtx: name the GPUs to build for, of sm75, " in refused("tensorrt-rtx")
    if find_spec("tensorrt") is None:
        assert refused("tensorrt") == (
            "target tensorrt needs tensorrt, which can't be imported (No module named "
            "'tensorrt'): install ditc's extra [tensorrt] (in a clone: pip install '.[tensorrt]')"
        )


@needs_rtx
def test_engines_of_several_batch_sizes(tmp_path: Path) -> None:
    """Built for 1 to 4 samples, both halves of each; attention has its kernel all the same."""
    model = engines.program(torch.float16)
    sched = schedule(model, planned(model, "full", "wa-rs", "wa-rs+asc", "ast", window=Window(40)))
    place = compile_bundle(
        sched, tmp_path / "b", "tensorrt-rtx:sm89", "fp16", dynamic={"batch": (1, 4)}
    )
    manifest = Manifest.from_json((place / "manifest.json").read_text())
    assert manifest.batches == (1, 4)
    assert manifest.samples == engines.BATCH // 2
    assert manifest.engine is not None
    assert manifest.engine.decomposed == {}


@needs_rtx
@pytest.mark.parametrize("weights", ["inputs", "baked"])
def test_a_bundle_of_engines(tmp_path: Path, weights: str) -> None:
    told: list[str] = []
    place = compile_bundle(
        small_schedule(),
        tmp_path / "b",
        target="tensorrt-rtx:sm89",
        weights=weights,
        log=told.append,
    )
    manifest = Manifest.from_json((place / "manifest.json").read_text())
    names = [bucket.name for bucket in manifest.buckets]
    assert manifest.target == "tensorrt-rtx"
    assert manifest.engine is not None
    assert (manifest.engine.library, manifest.engine.weights) == ("tensorrt_rtx", weights)
    assert manifest.engine.capabilities == ("sm89",)
    assert not manifest.engine.refittable
    assert manifest.engine.decomposed.keys() == {SITE}
    assert [bucket.graph for bucket in manifest.buckets] == [f"{name}.engine" for name in names]
    store = {"weights.safetensors", "sources.json"} if weights == "inputs" else set()
    files = {path.name for path in place.iterdir()} - {"manifest.json"}
    assert files == set(manifest.files)
    assert (
        files == {*(f"{n}.engine" for n in names), "plan.json", "conditioning.safetensors"} | store
    )
    assert all(bool(bucket.weights) == (weights == "inputs") for bucket in manifest.buckets)
    assert sum(": engine built in " in line for line in told) == len(names)
    assert [line for line in told if line.startswith("warning: ")] == [
        f"warning: {SITE}: its attention is written out in the engine: "
        + manifest.engine.decomposed[SITE]
    ]


@needs_rtx
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_reaches_the_kernel(tmp_path: Path, precision: str) -> None:
    """A model in fp32, cast as it is compiled: no attention is left in fp32."""
    program = engines.program(torch.float32)
    sched = schedule(program, planned(program, "full", "wa-rs", window=Window(40, 20)))
    place = compile_bundle(sched, tmp_path / "b", "tensorrt-rtx:sm89", precision)
    manifest = Manifest.from_json((place / "manifest.json").read_text())
    assert manifest.engine is not None
    assert manifest.engine.decomposed == {}
    assert manifest.precision == precision
