"""A decoder of full size in a bundle, against torch: `python -m ditc.tools.bench_decoder`.

The autoencoder is of Stable Diffusion's size, as DiT, PixArt and Open-Sora 1.1 use it, with random
weights; the denoiser around it is nothing but the latents themselves. For another target than
`onnx` the decoder is only built.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import nn

from ditc.export import compile as compile_bundle
from ditc.passes import Plan, capture, schedule
from ditc.runtime import Bundle

from .argument_types import positive

__all__ = ["full_size_autoencoder", "main"]

PIXELS = 8
"""Pixels of a latent, along each side."""


class _Latents(nn.Module):
    def forward(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return latents + timestep[:, None, None, None]


def full_size_autoencoder() -> AutoencoderKL:
    """Return an autoencoder of Stable Diffusion's size, its weights as they are drawn."""
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
    ).eval()


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, decode and compare."""
    parser = argparse.ArgumentParser(
        prog="python -m ditc.tools.bench_decoder",
        description="Decode with a bundle and with torch.",
    )
    parser.add_argument("--size", type=positive, default=512, help="pixels along each side (512)")
    parser.add_argument("--target", default="onnx", help="onnx, or tensorrt-rtx:sm89 (onnx)")
    options = parser.parse_args(arguments)
    side = options.size // PIXELS
    vae, latents = full_size_autoencoder(), torch.randn(1, 4, side, side)
    program = capture(_Latents(), {"latents": latents, "timestep": torch.zeros(1)})
    sched = schedule(program, Plan.uniform(program, 1, "full"))
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        place = compile_bundle(
            sched,
            Path(folder) / "bundle",
            options.target,
            decoder=vae,
            cache=folder,
            jobs=1,
            log=lambda line: print(f"  {line}", flush=True),
        )
        compiled_s = time.perf_counter() - start
        total = sum(file.stat().st_size for file in place.iterdir())
        if options.target != "onnx":
            engines = ", ".join(
                f"{file.name} {file.stat().st_size / 1e6:.1f} MB"
                for file in sorted(place.glob("*engine*"))
            )
            print(f"built for {options.target} in {compiled_s:.0f} s: {engines}")
            return 0
        bundle = Bundle.open(place)
        bundle.decode(latents.numpy())
        start = time.perf_counter()
        found = bundle.decode(latents.numpy())
        decoded_s = time.perf_counter() - start
    start = time.perf_counter()
    with torch.no_grad():
        image = vae.decode(latents / vae.config.scaling_factor).sample
    torch_s = time.perf_counter() - start
    expected = ((image / 2 + 0.5).clamp(0, 1) * 255).round().byte()[0].permute(1, 2, 0).numpy()
    off = np.abs(found[0].astype(int) - expected.astype(int))
    info = bundle.manifest.decoder
    assert info is not None
    sys.stdout.write(
        f"{options.size} x {options.size}: compiled in {compiled_s:.0f} s to {total / 1e6:.0f} MB, "
        f"{info.multiply_adds / 1e9:.0f} G multiply-adds\n"
        f"decoded in {decoded_s:.2f} s, by torch in {torch_s:.2f} s, on the CPU\n"
        f"off by at most {off.max()} of 255, at {(off > 0).mean():.3%} of the values\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
