"""Tiny video models of the families of Wan and HunyuanVideo."""

import torch

from .zoo_entry import BATCH, TEXT, Arguments, Draw, Tiny, masked_video, video

__all__ = ["WAN"]

HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
WIDE = {"num_attention_heads": 2, "attention_head_dim": 12}
B = BATCH


def _hunyuan(d: Draw) -> Arguments:
    return {
        **masked_video(d),
        "pooled_projections": d.given(B, 10),
        "guidance": torch.full((B,), 6.0),
    }


def _framepack(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 4, 2, 4, 4),
        "timestep": d.time(),
        "encoder_hidden_states": d.given(B, TEXT, 12),
        "encoder_attention_mask": d.mask(B, TEXT),
        "pooled_projections": d.given(B, 10),
        "image_embeds": d.given(B, 3, 12),
        "indices_latents": torch.arange(2.0),
        "guidance": torch.full((B,), 6.0),
        "latents_clean": d.given(B, 4, 1, 4, 4),
        "indices_latents_clean": torch.zeros(1),
        "latents_history_2x": d.given(B, 4, 2, 4, 4),
        "indices_latents_history_2x": torch.arange(2.0),
        "latents_history_4x": d.given(B, 4, 4, 4, 4),
        "indices_latents_history_4x": torch.arange(4.0),
    }


def _hunyuan15(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 4, 2, 4, 4),
        "timestep": d.time(),
        "encoder_hidden_states": d.given(B, TEXT, 12),
        "encoder_attention_mask": d.mask(B, TEXT),
        "encoder_hidden_states_2": d.given(B, 4, 10),
        "encoder_attention_mask_2": d.mask(B, 4),
        "image_embeds": torch.zeros(B, 3, 8),
    }


def _anyflow(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 2, 4, 8, 8),
        "timestep": d.time(B, 2),
        "r_timestep": d.time(B, 2) / 2,
        "encoder_hidden_states": d.given(B, TEXT, 12),
    }


def _anyflow_far(d: Draw) -> Arguments:
    return {**_anyflow(d), "chunk_partition": [1, 1]}


def _helios(d: Draw) -> Arguments:
    return {
        **video(d),
        "indices_hidden_states": torch.ones(B, 2),
        "indices_latents_history_short": torch.ones(B, 1),
        "indices_latents_history_mid": torch.ones(B, 1),
        "indices_latents_history_long": torch.ones(B, 4),
        "latents_history_short": d.given(B, 4, 1, 8, 8),
        "latents_history_mid": d.given(B, 4, 1, 8, 8),
        "latents_history_long": d.given(B, 4, 4, 8, 8),
    }


def _animate(d: Draw) -> Arguments:
    return {
        **video(d, channels=12),
        "encoder_hidden_states_image": d.given(B, 3, 12),
        "pose_hidden_states": d.given(B, 4, 1, 8, 8),
        "face_pixel_values": d.given(B, 3, 1, 16, 16),
    }


def _vace(d: Draw) -> Arguments:
    return {**video(d), "control_hidden_states": d.given(B, 6, 2, 8, 8)}


_WAN = {
    **WIDE,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 12,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 16,
}
_HUNYUAN = {
    **HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "text_embed_dim": 12,
    "pooled_projection_dim": 10,
    "rope_axes_dim": (4, 2, 2),
}

WAN = (
    Tiny("WanTransformer3DModel", _WAN, video),
    Tiny(
        "WanVACETransformer3DModel", {**_WAN, "vace_layers": [0, 1], "vace_in_channels": 6}, _vace
    ),
    Tiny(
        "WanAnimateTransformer3DModel",
        {
            **_WAN,
            "in_channels": 12,
            "latent_channels": 4,
            "image_dim": 12,
            "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8},
            "motion_encoder_size": 16,
            "motion_style_dim": 8,
            "motion_dim": 4,
            "motion_encoder_dim": 8,
            "face_encoder_hidden_dim": 8,
            "face_encoder_num_heads": 2,
            "inject_face_latents_blocks": 2,
        },
        _animate,
    ),
    Tiny("ChronoEditTransformer3DModel", _WAN, video),
    Tiny("SkyReelsV2Transformer3DModel", _WAN, video),
    Tiny("AnyFlowTransformer3DModel", _WAN, _anyflow),
    Tiny("AnyFlowFARTransformer3DModel", {**_WAN, "chunk_partition": (1, 1)}, _anyflow_far),
    Tiny(
        "HeliosTransformer3DModel",
        {k: v for k, v in _WAN.items() if k != "rope_max_seq_len"} | {"rope_dim": (4, 4, 4)},
        _helios,
    ),
    Tiny("HunyuanVideoTransformer3DModel", _HUNYUAN, _hunyuan),
    Tiny(
        "HunyuanVideoFramepackTransformer3DModel",
        {**_HUNYUAN, "has_image_proj": True, "image_proj_dim": 12, "has_clean_x_embedder": True},
        _framepack,
    ),
    Tiny(
        "HunyuanVideo15Transformer3DModel",
        {
            **{
                k: v
                for k, v in _HUNYUAN.items()
                if k not in ("num_single_layers", "pooled_projection_dim")
            },
            "text_embed_2_dim": 10,
            "image_embed_dim": 8,
            "target_size": 16,
        },
        _hunyuan15,
    ),
    Tiny(
        "MotifVideoTransformer3DModel",
        {
            k: v
            for k, v in _HUNYUAN.items()
            if k not in ("num_refiner_layers", "pooled_projection_dim")
        },
        masked_video,
    ),
)
