"""Whole pipelines at full size with random weights: `python -m ditc.tools.bench_pipelines`.

Records, captures, compiles and attaches DiT-XL/2 at 512 pixels and PixArt-Σ at 1024, and samples
a few steps with the bundle in the pipeline. Says how long each part took and how much memory.
With `--pictures` the autoencoder's decoder is in the bundle too, and `ditc run`, in a process that
can import neither torch nor diffusers, makes a picture of it.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)
from PIL import Image

from ditc.export import compile as compile_bundle
from ditc.passes import Plan, record, schedule
from ditc.runtime import Bundle
from ditc.runtime.diffusers import attach, detach

from .argument_types import positive
from .bench_decoder import full_size_autoencoder

__all__ = ["FULL_SIZE", "FullSize", "main", "sampled"]

STD = 0.02
"""Of random weights; those of trained models are about as large."""


@dataclass(frozen=True)
class FullSize:
    """A pipeline with random weights.

    Attributes:
        make: makes it.
        call: arguments of a call.
    """

    make: Callable[[], DiffusionPipeline]
    call: Mapping[str, object]


def sampled(pipe: DiffusionPipeline, call: Mapping[str, object], steps: int) -> torch.Tensor:
    """Return the latents that a pipeline samples, always from the same noise."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        made = pipe(**call, num_inference_steps=steps, generator=generator)
    latents: torch.Tensor = torch.as_tensor(made.images)
    return latents


def _random(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, STD, generator=generator)
    return module.eval()


def _decoder() -> AutoencoderKL:
    """Return the decoder's stand-in: it tells the scale of pixels and isn't run."""
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (4,) * 4,
    }
    return AutoencoderKL(latent_channels=4, norm_num_groups=1, **blocks)


HEADS = {"num_attention_heads": 16, "attention_head_dim": 72, "num_layers": 28, "in_channels": 4}


def _dit() -> DiffusionPipeline:
    model = DiTTransformer2DModel(out_channels=8, sample_size=64, num_embeds_ada_norm=1000, **HEADS)
    return DiTPipeline(_random(model), _decoder(), DDIMScheduler(clip_sample=False))


def _pixart() -> DiffusionPipeline:
    model = PixArtTransformer2DModel(
        out_channels=8,
        sample_size=128,
        interpolation_scale=2,
        cross_attention_dim=1152,
        caption_channels=4096,
        use_additional_conditions=False,
        **HEADS,
    )
    return PixArtSigmaPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=_decoder(),
        transformer=_random(model),
        scheduler=DPMSolverMultistepScheduler(),
    )


def _prompt() -> dict[str, object]:
    generator = torch.Generator().manual_seed(1)
    found: dict[str, object] = {"prompt": None, "negative_prompt": None, "output_type": "latent"}
    for sign in ("", "negative_"):
        found[f"{sign}prompt_embeds"] = torch.randn(1, 300, 4096, generator=generator)
        found[f"{sign}prompt_attention_mask"] = torch.ones(1, 300)
    return {**found, "height": 1024, "width": 1024, "use_resolution_binning": False}


FULL_SIZE: Mapping[str, FullSize] = {
    "DiT-XL-2-512": FullSize(_dit, {"class_labels": [207], "output_type": "np"}),
    "PixArt-Sigma-1024": FullSize(_pixart, _prompt()),
}


class _Clock:
    """Prints what each part takes."""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        took = time.perf_counter() - started
        sys.stdout.write(f"  {name:<34} {took:8.1f} s   {peak:6.2f} GiB at most so far\n")
        sys.stdout.flush()


RUN = """
import sys
sys.modules.update(dict.fromkeys(("torch", "diffusers"), None))
from ditc.tools.cli import main
sys.exit(main(sys.argv[1:]))
"""


def _run_alone(place: Path, picture: Path) -> None:
    """Have the command make a picture of a bundle without torch."""
    arguments = ["run", str(place), "-o", str(picture), "--seed", "1"]
    subprocess.run([sys.executable, "-c", RUN, *arguments], check=True)
    with Image.open(picture) as made:
        spread = np.asarray(made).std()
        sys.stdout.write(f"  {picture.name}: {made.size}, standard deviation {spread:.1f}\n")


def bench(
    full: FullSize, steps: int, method: str, *, compare: bool, picture: Path | None = None
) -> None:
    """Take one pipeline all the way, step 0 full and the others by a method."""
    clock, call = _Clock(), full.call
    with clock.part("make with random weights"):
        pipe = full.make()
    pipe.set_progress_bar_config(disable=True)
    decoder = None if picture is None else full_size_autoencoder()
    with clock.part("record"):
        recording = record(pipe, call={**call, "num_inference_steps": steps})
    with clock.part("capture"):
        program = recording.capture()
    eligible = sum(site.eligible for site in program.sites)
    sys.stdout.write(
        f"  CFG {recording.cfg}, {eligible} of {len(program.sites)} sites, grid {program.grid}\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        sched = schedule(program, Plan.uniform(program, steps, method))
        with clock.part(f"compile {len(sched.buckets)} graphs"):
            place = compile_bundle(
                sched,
                Path(folder) / "bundle",
                sampler=None if picture is None else recording.scheduler,
                decoder=decoder,
                cache=Path(folder) / "cache",
                jobs=1,
            )
        total = sum(file.stat().st_size for file in place.iterdir())
        with clock.part(f"open, {total / 2**30:.2f} GiB"):
            bundle = Bundle.open(place)
        attach(pipe, bundle)
        with clock.part(f"{steps} steps, bundle attached"):
            found = sampled(pipe, call, steps)
        detach(pipe)
        if compare:
            with clock.part(f"{steps} steps, as it is"):
                expected = sampled(pipe, call, steps)
            off, largest = (found - expected).abs().max().item(), expected.abs().max().item()
            sys.stdout.write(f"  largest difference {off:.2g}, of values up to {largest:.2g}\n")
        if picture is not None:
            del bundle
            with clock.part("ditc run, without torch"):
                _run_alone(place, picture)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m ditc.tools.bench_pipelines", description=__doc__
    )
    parser.add_argument(
        "names",
        nargs="*",
        choices=[*FULL_SIZE, []],
        metavar="NAME",
        help=f"of {', '.join(FULL_SIZE)} (all)",
    )
    parser.add_argument("--steps", type=positive, default=2, help="denoising steps (2)")
    parser.add_argument("--method", default="ast", help="of all steps but the first (ast)")
    parser.add_argument(
        "--compare", action="store_true", help="sample without the bundle too; equal where full"
    )
    parser.add_argument("--pictures", type=Path, help="folder for pictures that ditc run makes")
    given = parser.parse_args(arguments)
    if given.pictures is not None:
        given.pictures.mkdir(parents=True, exist_ok=True)
    for name in given.names or FULL_SIZE:
        sys.stdout.write(f"{name}\n")
        picture = None if given.pictures is None else given.pictures / f"{name}.png"
        full = FULL_SIZE[name]
        bench(full, given.steps, given.method, compare=given.compare, picture=picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
