"""What programs, schedules, bundles and checkpoints say of themselves: a line, no tensor."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from ditc.export import Checkpoint
from ditc.passes import Plan, schedule
from ditc.passes.showing import ranges
from ditc.runtime import Bundle, NullBackend

from .bundles import write_bundle
from .samples import sample


def test_ranges() -> None:
    assert ranges((0, 2, 3, 4, 7)) == "0, 2-4, 7"
    assert ranges(()) == ""


def test_a_program() -> None:
    shown = repr(sample("pixart", "uncond-first").program)
    assert shown == (
        "Program(diffusers.models.transformers.pixart_transformer_2d.PixArtTransformer2DModel: "
        "hidden_states [4, 3, 10, 10], encoder_hidden_states [4, 7, 12], timestep [4], "
        "encoder_attention_mask [4, 7]; 2 of 4 sites eligible, grid (5, 5), cfg 'uncond-first')"
    )


def test_a_schedule() -> None:
    program = sample("fused-qkv", "cond-first").program
    sched = schedule(program, Plan.uniform(program, 4, "ast"))
    assert repr(sched).endswith(
        f": b00 steps 0; b01 steps 1-3; {len(sched.slots)} slots of {sched.peak_slot_bytes} bytes)"
    )
    assert sched.peak_slot_bytes > 0


def test_a_bundle(tmp_path: Path) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "bundle", "cond-first"), backend=NullBackend())
    held = bundle.manifest
    shown = repr(bundle)
    assert shown.startswith(f"Bundle({held.model.class_name}: {held.inputs[0].name} ")
    assert shown.endswith(
        f"{held.steps} steps in {len(held.buckets)} buckets, onnx fp32, cfg 'cond-first')"
    )


def test_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    save_file({"a": torch.zeros(3), "b": torch.zeros(2, 2)}, path)
    assert repr(Checkpoint(path)) == f"Checkpoint('{path}': 2 tensors, 28 bytes)"
