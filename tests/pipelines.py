"""Tiny diffusers pipelines with random weights, and arguments to call them with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    DDIMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    LattePipeline,
    PixArtSigmaPipeline,
    StableDiffusion3Pipeline,
    UniPCMultistepScheduler,
    WanPipeline,
)

from ditc.tools.zoo import ZOO

from . import models

STEPS = 4
Call = dict[str, object]


@dataclass(frozen=True)
class Piped:
    """A pipeline to make.

    Attributes:
        make: makes it.
        call: arguments of a call.
        cfg: the layout that guidance has in it.
    """

    make: Callable[[], DiffusionPipeline] = field(repr=False)
    call: Mapping[str, object] = field(repr=False)
    cfg: str | None


def autoencoder(channels: int, downs: int = 3, **more: object) -> AutoencoderKL:
    """Return an image decoder that makes `2 ** (downs - 1)` pixels a side of each latent."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * downs,
        up_block_types=("UpDecoderBlock2D",) * downs,
        block_out_channels=(4,) * downs,
        norm_num_groups=1,
        latent_channels=channels,
        **more,
    )


def transformer(title: str, **changes: object) -> torch.nn.Module:
    """Return a model of the zoo, its configuration changed."""
    tiny = next(tiny for tiny in ZOO if tiny.title == title)
    return replace(tiny, config={**tiny.config, **changes}).module()


def quiet(pipe: DiffusionPipeline) -> DiffusionPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def embeds(*shape: int, pooled: int = 0) -> Call:
    """Return prompt embeddings, positive and negative, as pipelines take them."""
    found: Call = {}
    for seed, sign in enumerate(("", "negative_")):
        found[f"{sign}prompt_embeds"] = models.noise(1, *shape, seed=seed)
        if pooled:
            found[f"{sign}pooled_prompt_embeds"] = models.noise(1, pooled, seed=seed + 5)
    return found


def dit() -> DiffusionPipeline:
    config = {"num_attention_heads": 2, "attention_head_dim": 8, "num_embeds_ada_norm": 1000}
    model = DiTTransformer2DModel(
        in_channels=3, out_channels=6, num_layers=2, norm_num_groups=1, sample_size=10, **config
    )
    return quiet(DiTPipeline(models.randomised(model), autoencoder(3), DDIMScheduler()))


def pixart() -> DiffusionPipeline:
    parts = {"tokenizer": None, "text_encoder": None, "vae": autoencoder(3)}
    scheduler = DPMSolverMultistepScheduler()
    model = models.randomised(models.pixart(), std=0.25)
    return quiet(PixArtSigmaPipeline(**parts, transformer=model, scheduler=scheduler))


def sd3() -> DiffusionPipeline:
    names = ("text_encoder", "text_encoder_2", "text_encoder_3")
    parts = dict.fromkeys((*names, "tokenizer", "tokenizer_2", "tokenizer_3"))
    return quiet(
        StableDiffusion3Pipeline(
            transformer=transformer("SD3Transformer2DModel"),
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=autoencoder(4, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
            **parts,
        )
    )


def flux() -> DiffusionPipeline:
    names = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    return quiet(
        FluxPipeline(
            transformer=transformer("FluxTransformer2DModel (dev)"),
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=autoencoder(1, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
            **dict.fromkeys(names),
        )
    )


def latte() -> DiffusionPipeline:
    return quiet(
        LattePipeline(
            tokenizer=None,
            text_encoder=None,
            vae=autoencoder(4),
            transformer=transformer("LatteTransformer3DModel", out_channels=8),
            scheduler=DDIMScheduler(),
        )
    )


def cogvideox() -> DiffusionPipeline:
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    return quiet(
        CogVideoXPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=vae,
            transformer=transformer("CogVideoXTransformer3DModel", attention_head_dim=16),
            scheduler=CogVideoXDDIMScheduler(),
        )
    )


def wan() -> DiffusionPipeline:
    vae = AutoencoderKLWan(
        base_dim=3,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return quiet(
        WanPipeline(
            tokenizer=None,
            text_encoder=None,
            vae=vae,
            transformer=transformer("WanTransformer3DModel"),
            scheduler=UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
        )
    )


NO_PROMPT: Call = {"prompt": None, "negative_prompt": None}
MASKS = {f"{sign}prompt_attention_mask": torch.ones(1, 7) for sign in ("", "negative_")}
PIPELINES: Mapping[str, Piped] = {
    "DiT": Piped(dit, {"class_labels": [3, 4]}, "cond-first"),
    "PixArt-Sigma": Piped(
        pixart,
        {
            **NO_PROMPT,
            **embeds(7, 12),
            **MASKS,
            "height": 40,
            "width": 40,
            "use_resolution_binning": False,
        },
        "uncond-first",
    ),
    "SD3": Piped(sd3, {**embeds(6, 12, pooled=10), "height": 32, "width": 32}, "uncond-first"),
    "FLUX": Piped(
        flux,
        {
            "prompt_embeds": models.noise(1, 6, 12),
            "pooled_prompt_embeds": models.noise(1, 10),
            "height": 32,
            "width": 32,
        },
        None,
    ),
    "Latte": Piped(
        latte,
        {
            **embeds(6, 12),
            "negative_prompt": None,
            "height": 32,
            "width": 32,
            "video_length": 2,
            "mask_feature": False,
            "clean_caption": False,
        },
        "uncond-first",
    ),
    "CogVideoX": Piped(
        cogvideox,
        {**embeds(6, 12), "height": 64, "width": 64, "num_frames": 5, "max_sequence_length": 6},
        "uncond-first",
    ),
    "Wan": Piped(wan, {**embeds(6, 12), "height": 64, "width": 64, "num_frames": 5}, "separate"),
}


def images(pipe: DiffusionPipeline, call: Mapping[str, object], **more: object) -> torch.Tensor:
    """Return what a pipeline makes of a seed, as floats."""
    seeded = torch.Generator().manual_seed(11)
    given = {"num_inference_steps": STEPS, "output_type": "np", "generator": seeded}
    with torch.no_grad():
        made = pipe(**{**given, **call, **more})
    return torch.as_tensor(made[0] if not hasattr(made, "images") else made.images)
