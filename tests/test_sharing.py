"""Ten buckets cost one model's weights, on disk and in memory."""

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from ditc.export import compile as compile_bundle
from ditc.passes import capture, schedule
from ditc.runtime.manifest import Manifest
from ditc.runtime.weights import map_tensors

from .compiled import planned, workshop
from .models import PlainDenoiser, SdpaAttention, noise, randomised

WIDTH = 1312
LAYERS = 2
METHODS = (
    *(("full", "full"), ("ast", "ast"), ("wa-rs", "ast"), ("ast", "wa-rs"), ("wa-rs+asc", "ast")),
    *(("full", "full"), ("asc", "ast"), ("full", "asc"), ("asc", "asc")),
    *(("wa-rs+asc", "wa-rs"), ("asc", "ast")),
)
"""Of each step the methods of both layers; the last runs the graph of an earlier one."""
MEASURE = """
import sys
import numpy as np
import psutil
from ditc.runtime import Bundle

bundle = Bundle.open(sys.argv[1], threads=1)
inputs = {
    entry.name: np.ones(entry.shape, entry.dtype) for entry in bundle.manifest.inputs
}
for step in range(bundle.steps):
    bundle.step(step, **inputs)
print(psutil.Process().memory_full_info().pss)
"""


@pytest.fixture(scope="module")
def places() -> Iterator[dict[str, Path]]:
    """A model of over 100 MB, in a bundle of many graphs and in one of a single graph."""
    module = randomised(PlainDenoiser(SdpaAttention, layers=LAYERS, width=WIDTH))
    kwargs = {"x": noise(2, 25, WIDTH), "t": torch.ones(2)}
    program = capture(module, kwargs, cfg="cond-first")
    one = planned(program, *("full",) * len(METHODS))
    many = one
    for step, row in enumerate(METHODS):
        for site, method in zip(one.sites, row, strict=True):
            many = many.replace(step, site, method)
    scheds = {"many": schedule(program, many), "one": schedule(program, one)}
    assert len(scheds["many"].buckets) == 10
    assert len(scheds["one"].buckets) == 1
    yield {
        name: compile_bundle(sched, workshop() / f"sharing-{name}")
        for name, sched in scheds.items()
    }
    for name in scheds:
        shutil.rmtree(workshop() / f"sharing-{name}")


def model_bytes() -> int:
    with torch.device("meta"):
        module = PlainDenoiser(SdpaAttention, layers=LAYERS, width=WIDTH)
    tensors = (*module.parameters(), *module.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_on_disk(places: dict[str, Path]) -> None:
    assert model_bytes() >= 100e6
    whole = sum(path.stat().st_size for path in places["many"].iterdir())
    assert whole <= 1.02 * model_bytes()


def test_no_tensor_is_stored_twice(places: dict[str, Path]) -> None:
    tensors = map_tensors(places["many"] / "weights.safetensors")
    contents = Counter((array.shape, hash(array.tobytes())) for array in tensors.values())
    assert set(contents.values()) == {1}
    assert not any(f"{name}_transposed" in tensors for name in tensors)
    manifest = Manifest.from_json((places["many"] / "manifest.json").read_text())
    used = [set(bucket.weights) for bucket in manifest.buckets]
    assert set.union(*used) == set(tensors)
    common = set.intersection(*used)
    assert sum(tensors[name].nbytes for name in common) > 0.4 * model_bytes()
    assert all(np.isfinite(array).all() for array in tensors.values())


@pytest.mark.skipif(not psutil.LINUX, reason="waits for a system that tells proportional memory")
def test_in_memory(places: dict[str, Path]) -> None:
    """Whole processes with all they load, after running every step."""
    pss = {
        name: int(
            subprocess.run(
                [sys.executable, "-c", MEASURE, place], check=True, capture_output=True, text=True
            ).stdout
        )
        for name, place in places.items()
    }
    assert pss["one"] > model_bytes()
    assert pss["many"] <= 1.3 * pss["one"]
