"""Tiny image models of two streams: image and text tokens attend to both, then often in one."""

import torch

from .zoo_entry import BATCH, Arguments, Draw, Tiny

__all__ = ["JOINT"]

HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
B = BATCH
TEXT = 6
IMAGE = 16


def _grid(width: int = 3, length: int = IMAGE) -> torch.Tensor:
    """Return position ids of image tokens in rows of four."""
    ids = torch.zeros(length, width)
    ids[:, 1] = torch.arange(length) // 4
    ids[:, 2] = torch.arange(length) % 4
    return ids


def _sd3(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 4, 8, 8),
        "encoder_hidden_states": d.given(B, TEXT, 12),
        "pooled_projections": d.given(B, 10),
        "timestep": d.time(),
    }


def _aura(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 4, 8, 8),
        "encoder_hidden_states": d.given(B, TEXT, 12),
        "timestep": d.time(scale=1.0),
    }


def _flux(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, IMAGE, 4),
        "encoder_hidden_states": d.given(B, TEXT, 12),
        "pooled_projections": d.given(B, 10),
        "timestep": d.time(scale=1.0),
        "img_ids": _grid(),
        "txt_ids": torch.zeros(TEXT, 3),
        "guidance": torch.full((B,), 3.5),
    }


def _unpooled(d: Draw) -> Arguments:
    kwargs = _flux(d)
    del kwargs["pooled_projections"], kwargs["guidance"]
    return kwargs


def _guided(d: Draw) -> Arguments:
    kwargs = _flux(d)
    del kwargs["pooled_projections"]
    return kwargs


def _chroma(d: Draw) -> Arguments:
    return {**_unpooled(d), "attention_mask": d.mask(B, TEXT + IMAGE, dtype=torch.bool).flip(1)}


def _bria(d: Draw) -> Arguments:
    return {**_unpooled(d), "timestep": d.time()}


def _bria_fibo(d: Draw) -> Arguments:
    return {**_bria(d), "text_encoder_layers": [d.given(B, TEXT, 10) for _ in range(3)]}


def _flux2(d: Draw) -> Arguments:
    text = torch.zeros(TEXT, 4)
    text[:, 3] = torch.arange(TEXT)
    return {**_guided(d), "img_ids": _grid(4), "txt_ids": text}


def _flux3(d: Draw) -> Arguments:
    kwargs = _flux2(d)
    del kwargs["guidance"]
    return kwargs


def _qwen(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, IMAGE, 4),
        "encoder_hidden_states": d.given(B, TEXT, 12),
        "encoder_hidden_states_mask": torch.ones(B, TEXT, dtype=torch.int64),
        "timestep": d.time(scale=1.0),
        "img_shapes": [[(1, 4, 4)]] * B,
    }


def _hidream(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 4, 8, 8),
        "timesteps": d.time(),
        "encoder_hidden_states_t5": d.given(B, TEXT, 12),
        "encoder_hidden_states_llama3": d.given(2, B, TEXT, 10),
        "pooled_embeds": d.given(B, 8),
    }


def _hunyuan_image(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 4, 4, 4),
        "timestep": d.time(),
        "encoder_hidden_states": d.given(B, TEXT, 12),
        "encoder_attention_mask": d.mask(B, TEXT),
    }


def _joyimage(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 4, 1, 8, 8),
        "timestep": d.time(),
        "encoder_hidden_states": d.given(B, TEXT, 12),
    }


def _joyimage_plus(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, IMAGE, 4, 1, 2, 2),
        "timestep": d.time(),
        "encoder_hidden_states": d.given(B, TEXT, 12),
        "encoder_hidden_states_mask": d.mask(B, TEXT),
        "shape_list": [[(1, 4, 4)]] * B,
    }


_FLUX = {
    **HEADS,
    "in_channels": 4,
    "num_layers": 1,
    "num_single_layers": 2,
    "joint_attention_dim": 12,
    "axes_dims_rope": (4, 2, 2),
}
_SD3 = {
    **HEADS,
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "joint_attention_dim": 12,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 10,
    "pos_embed_max_size": 4,
}
_JOY = {
    "in_channels": 4,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "text_dim": 12,
    "mlp_width_ratio": 2.0,
    "num_layers": 2,
    "rope_dim_list": [4, 2, 2],
}

JOINT = (
    Tiny("SD3Transformer2DModel", _SD3, _sd3),
    Tiny(
        "SD3Transformer2DModel",
        {**_SD3, "dual_attention_layers": (0,), "qk_norm": "rms_norm"},
        _sd3,
        variant="3.5",
    ),
    Tiny(
        "FluxTransformer2DModel",
        {**_FLUX, "pooled_projection_dim": 10, "guidance_embeds": True},
        _flux,
        variant="dev",
    ),
    Tiny(
        "FluxTransformer2DModel",
        {**_FLUX, "pooled_projection_dim": 10},
        lambda d: {k: v for k, v in _flux(d).items() if k != "guidance"},
        variant="schnell",
    ),
    Tiny(
        "Flux2Transformer2DModel",
        {**_FLUX, "axes_dims_rope": (2, 2, 2, 2), "timestep_guidance_channels": 8},
        _flux2,
        fused=True,
    ),
    Tiny(
        "Flux3Transformer2DModel",
        {**_FLUX, "cond_in_channels": 4, "axes_dims_rope": (2, 2, 2, 2), "timestep_channels": 8},
        _flux3,
    ),
    Tiny(
        "ChromaTransformer2DModel",
        {
            **_FLUX,
            "approximator_num_channels": 8,
            "approximator_hidden_dim": 16,
            "approximator_layers": 1,
        },
        _chroma,
    ),
    Tiny("BriaTransformer2DModel", _FLUX, _bria),
    Tiny("BriaFiboTransformer2DModel", {**_FLUX, "text_encoder_dim": 10}, _bria_fibo),
    Tiny("LongCatImageTransformer2DModel", {**_FLUX, "pooled_projection_dim": 10}, _unpooled),
    Tiny("OvisImageTransformer2DModel", {**_FLUX, "out_channels": 4}, _unpooled),
    Tiny(
        "AuraFlowTransformer2DModel",
        {
            **HEADS,
            "sample_size": 8,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 1,
            "joint_attention_dim": 12,
            "caption_projection_dim": 16,
            "pos_embed_max_size": 16,
        },
        _aura,
    ),
    Tiny(
        "QwenImageTransformer2DModel",
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "patch_size": 1,
            "num_layers": 2,
            "joint_attention_dim": 12,
            "axes_dims_rope": (4, 2, 2),
        },
        _qwen,
    ),
    Tiny(
        "HiDreamImageTransformer2DModel",
        {
            **HEADS,
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "caption_channels": [12, 10],
            "text_emb_dim": 8,
            "num_routed_experts": 2,
            "num_activated_experts": 1,
            "axes_dims_rope": (4, 2, 2),
            "max_resolution": (8, 8),
            "llama_layers": (0, 1),
            "force_inference_output": True,
        },
        _hidream,
        timestep="timesteps",
    ),
    Tiny(
        "HunyuanImageTransformer2DModel",
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_refiner_layers": 1,
            "text_embed_dim": 12,
            "rope_axes_dim": (4, 4),
        },
        _hunyuan_image,
    ),
    Tiny("JoyImageEditTransformer3DModel", _JOY, _joyimage),
    Tiny("JoyImageEditPlusTransformer3DModel", _JOY, _joyimage_plus),
)
