"""What the prologue spares: `python -m ditc.tools.bench_prologue [ROUNDS]`.

Of PixArt-Σ at 1024 x 1024 the arithmetic: multiply-adds a step and the weights that every bucket
needs, with and without a prologue; nothing of the model but its shapes enters. Of the demo model a
measurement: the same plan compiled both ways, generations in turn in one process, and how far the
images differ.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import PixArtTransformer2DModel

from ditc.export import compile as compile_bundle
from ditc.passes import Plan, Program, capture, fold_halves, multiply_adds, schedule, split_prologue
from ditc.passes.memory import weight_bytes
from ditc.runtime import Bundle
from ditc.runtime.guidance import Latents

from .argument_types import positive
from .glyphs import NULL_CLASS
from .models import DEMO_PLAN, demo_recording
from .timing import in_turn

__all__ = ["arithmetic", "measured", "pixart_sigma"]

STEPS = 20
LAYERS = 28
TEXT, TEXT_WIDTH = 300, 4096
"""Tokens of the text, and their width."""


def pixart_sigma(layers: int = LAYERS) -> Program:
    """Return PixArt-Σ at 1024 x 1024, a CFG batch of two; its weights are never there."""
    with torch.device("meta"):
        module = PixArtTransformer2DModel(
            num_layers=layers,
            sample_size=128,
            caption_channels=TEXT_WIDTH,
            interpolation_scale=2,
            use_additional_conditions=False,
        )
    for owner in module.modules():
        for name, buffer in list(owner.named_buffers(recurse=False)):
            setattr(owner, name, torch.zeros(buffer.shape, dtype=buffer.dtype))
    kwargs: dict[str, object] = {
        "hidden_states": torch.zeros(2, 4, 128, 128),
        "encoder_hidden_states": torch.zeros(2, TEXT, TEXT_WIDTH),
        "timestep": torch.zeros(2, dtype=torch.int64),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        "encoder_attention_mask": torch.ones(2, TEXT),
    }
    return capture(module.eval(), kwargs, cfg="uncond-first")


def arithmetic(program: Program, steps: int = STEPS) -> dict[str, object]:
    """Return what a step computes and reads, before and behind the split."""
    split = split_prologue(program, steps)
    prologue = split.prologue
    assert prologue is not None
    before = multiply_adds(program.graph_module.graph)
    folded = multiply_adds(fold_halves(program).graph_module.graph)
    return {
        "multiply_adds_a_step": before,
        "multiply_adds_a_step_with_prologue": before - prologue.multiply_adds,
        "multiply_adds_spared": prologue.multiply_adds / before,
        "multiply_adds_spared_by_folding_halves": 1 - folded / before,
        "weight_bytes": weight_bytes(program),
        "weight_bytes_of_buckets_with_prologue": weight_bytes(program) - prologue.weight_bytes,
        "weights_spared": prologue.weight_bytes / weight_bytes(program),
        "kept_bytes": prologue.stored_bytes,
        "steps": steps,
    }


def measured(rounds: int) -> dict[str, object]:
    """Compile the demo model both ways, generate in turn, and compare."""
    recording = demo_recording()
    program = recording.capture()
    found: dict[str, object] = {}
    for name, plan in (
        ("uncompressed", Plan.uniform(program, STEPS, "full")),
        ("compressed", Plan.load(DEMO_PLAN)),
    ):
        sched = schedule(program, plan, "knee")
        with tempfile.TemporaryDirectory() as folder:
            bundles = {
                way: Bundle.open(
                    compile_bundle(
                        sched, Path(folder) / way, sampler=recording.scheduler, prologue=prologue
                    ),
                    threads=1,
                )
                for way, prologue in (("without", False), ("with", True))
            }
            found[name] = _compared(bundles, rounds)
    return found


def _compared(bundles: dict[str, Bundle], rounds: int) -> dict[str, object]:
    def generate(way: str, label: int) -> Latents:
        labels = np.array([label, NULL_CLASS])
        return bundles[way].generate(seed=label, class_labels=labels)

    images = {way: np.stack([generate(way, label) for label in range(4)]) for way in bundles}
    difference = float(np.abs(images["with"] - images["without"]).max())
    numbers = iter(range(10**6))

    def timed(way: str) -> Callable[[], object]:  # another prompt each time, as people ask for
        return lambda: generate(way, next(numbers) % NULL_CLASS)

    taken = in_turn({way: timed(way) for way in bundles}, rounds)
    prologue = bundles["with"].manifest.prologue
    assert prologue is not None
    return {
        "median_ms_without": round(taken["without"].median_ms, 2),
        "median_ms_with": round(taken["with"].median_ms, 2),
        "speedup": round(taken["with"].ratio_to(taken["without"]), 3),
        "largest_difference": difference,
        "of_largest_value": difference / float(np.abs(images["without"]).max()),
        "weight_bytes_spared": prologue.weight_bytes,
        "kept_bytes": prologue.stored_bytes,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m ditc.tools.bench_prologue", description=__doc__
    )
    parser.add_argument(
        "rounds", nargs="?", type=positive, default=15, help="of generations in turn (15)"
    )
    options = parser.parse_args(arguments)
    known = {"pixart_sigma_1k": arithmetic(pixart_sigma())}
    sys.stdout.write(json.dumps(known, indent=1) + "\n")
    sys.stdout.flush()
    sys.stdout.write(json.dumps({"demo": measured(options.rounds)}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
