"""Models larger than the memory a build takes; the full-size model that is measured, made small."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel

from ditc.export import compile  # noqa: A004 (the public name)
from ditc.export.checkpoint import Checkpoint
from ditc.passes import schedule
from ditc.tools.bench_big_model import three_graphs
from ditc.tools.big_models import flux_recording, make_flux_weights
from ditc.tools.peak_memory import peak_memory


def small_flux() -> torch.nn.Module:
    return FluxTransformer2DModel(
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=20,
        in_channels=8,
        axes_dims_rope=(4, 6, 6),
        guidance_embeds=True,
    )


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """A model of 300 MB, of whose weights the largest has 19 MB: as read and as it is stored.

    The rest is what building a graph leaves in the allocator, 30 to 60 MB of it.
    """
    width = 1536
    done = subprocess.run(
        [sys.executable, "-m", "tests.big_compile", str(width), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    size, above = (int(number) for number in done.stdout.split())
    assert size >= 300e6
    assert above <= size / 2


def test_the_model_that_is_measured(tmp_path: Path) -> None:
    """FLUX's transformer at a tiny size: made-up shards, captured unseen, compiled in bf16."""
    written = make_flux_weights(tmp_path / "model", small_flux)
    recording = flux_recording(tmp_path / "model", side=4, make=small_flux)
    assert isinstance(recording.weights, Checkpoint)
    assert recording.weights.nbytes == written
    program = recording.capture()
    assert {site.text for site in program.sites} == {(0, 512)}
    sched = schedule(program, three_graphs(program))
    assert len(sched.buckets) == 3
    place = compile(sched, tmp_path / "bundle", precision="bf16", jobs=1)
    stored = Checkpoint(place / "weights.safetensors")
    name = "single_transformer_blocks.0.proj_mlp.weight"
    read = recording.weights.tensor(name)
    assert torch.equal(stored.tensor(f"{name}_bfloat16_transposed"), read.t())


def test_peak_memory_is_that_of_a_moment() -> None:
    with peak_memory() as peak:
        held = bytearray(200_000_000)
        for page in range(0, len(held), 4096):
            held[page] = 1
        list(range(20_000_000))
    assert peak.largest >= 200_000_000
    assert peak.together >= 200_000_000
