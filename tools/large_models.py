"""Denoisers at the sizes people ship, without a weight: shapes alone, to build engines of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import diffusers
import torch

from ditc.passes import Program, capture
from ditc.passes.program import CfgLayout

__all__ = ["LARGE", "Large"]

Arguments = dict[str, object]


@dataclass(frozen=True)
class Large:
    """A diffusers transformer in full size.

    Attributes:
        title: what people call it.
        name: class in `diffusers`.
        config: its arguments.
        call: makes the arguments of one call, fp32.
        radius: of the window, in tokens.
        cfg: order of the halves in the batch, None where there are none.
        dtype: of its weights.
    """

    title: str
    name: str
    config: Mapping[str, object] = field(repr=False)
    call: Callable[[], Arguments] = field(repr=False)
    radius: int
    cfg: CfgLayout | None
    dtype: torch.dtype = torch.float16

    def program(self) -> Program:
        """Return it captured, its weights not loaded."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            with torch.device("meta"):
                module = getattr(diffusers, self.name)(**self.config)
        finally:
            torch.set_default_dtype(before)
        given = {name: _cast(value, self.dtype) for name, value in self.call().items()}
        return capture(module, given, cfg=self.cfg)


def _cast(value: object, dtype: torch.dtype) -> object:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.to(dtype)
    return value


def _dit() -> Arguments:
    return {
        "hidden_states": torch.randn(2, 4, 64, 64),
        "timestep": torch.full((2,), 900),
        "class_labels": torch.tensor([207, 1000]),
    }


def _pixart(size: int) -> Callable[[], Arguments]:
    def made() -> Arguments:
        return {
            "hidden_states": torch.randn(2, 4, size, size),
            "encoder_hidden_states": torch.randn(2, 300, 4096),
            "timestep": torch.full((2,), 900),
            "encoder_attention_mask": torch.ones(2, 300),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        }

    return made


def _sd3() -> Arguments:
    return {
        "hidden_states": torch.randn(2, 16, 128, 128),
        "encoder_hidden_states": torch.randn(2, 333, 4096),
        "pooled_projections": torch.randn(2, 2048),
        "timestep": torch.full((2,), 900.0),
    }


def _flux() -> Arguments:
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    places = torch.stack([torch.zeros(64, 64), rows, columns], dim=-1)
    return {
        "hidden_states": torch.randn(1, 4096, 64),
        "encoder_hidden_states": torch.randn(1, 512, 4096),
        "pooled_projections": torch.randn(1, 768),
        "timestep": torch.full((1,), 0.9),
        "img_ids": places.reshape(4096, 3),
        "txt_ids": torch.zeros(512, 3),
        "guidance": torch.full((1,), 3.5),
    }


_XL = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
}
_SIGMA = {
    **_XL,
    "cross_attention_dim": 1152,
    "caption_channels": 4096,
    "use_additional_conditions": False,
}

LARGE: Mapping[str, Large] = {
    "dit-512": Large(
        "DiT-XL/2 512", "DiTTransformer2DModel", {**_XL, "sample_size": 64}, _dit, 128, "cond-first"
    ),
    "pixart-1k": Large(
        "PixArt-Σ 1K",
        "PixArtTransformer2DModel",
        {**_SIGMA, "sample_size": 128, "interpolation_scale": 2},
        _pixart(128),
        512,
        "uncond-first",
    ),
    "pixart-2k": Large(
        "PixArt-Σ 2K",
        "PixArtTransformer2DModel",
        {**_SIGMA, "sample_size": 256, "interpolation_scale": 4},
        _pixart(256),
        2048,
        "uncond-first",
    ),
    "sd3-medium": Large(
        "SD3-medium 1K",
        "SD3Transformer2DModel",
        {
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "pos_embed_max_size": 192,
        },
        _sd3,
        512,
        "uncond-first",
    ),
    "flux-1k": Large(
        "FLUX.1-dev 1K",
        "FluxTransformer2DModel",
        {"guidance_embeds": True},
        _flux,
        512,
        None,
        torch.bfloat16,
    ),
}
