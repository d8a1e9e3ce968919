"""Tiny video models of the families of LTX, Sana and Kandinsky."""

import torch

from .zoo_entry import BATCH, TEXT, Arguments, Draw, Tiny, masked_video

__all__ = ["SANA"]

HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
B = BATCH


def _ltx(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 32, 4),
        "encoder_hidden_states": d.given(B, TEXT, 12),
        "timestep": d.time(),
        "encoder_attention_mask": d.mask(B, TEXT),
        "num_frames": 2,
        "height": 4,
        "width": 4,
    }


def _ltx2(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 32, 4),
        "audio_hidden_states": d.noisy(B, 8, 4),
        "encoder_hidden_states": d.given(B, TEXT, 16),
        "audio_encoder_hidden_states": d.given(B, TEXT, 16),
        "timestep": d.time(),
        "sigma": d.time(scale=1.0),
        "encoder_attention_mask": d.mask(B, TEXT),
        "audio_encoder_attention_mask": d.mask(B, TEXT),
        "num_frames": 2,
        "height": 4,
        "width": 4,
        "audio_num_frames": 8,
    }


def _refiner(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 32, 4),
        "encoder_hidden_states": d.given(B, TEXT, 16),
        "timestep": d.time(B, 32),
        "video_rotary_emb": (d.given(B, 32, 16).cos(), d.given(B, 32, 16).sin()),
        "encoder_attention_mask": d.mask(B, TEXT),
    }


def _kandinsky5(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 2, 8, 8, 4),
        "encoder_hidden_states": d.given(B, TEXT, 12),
        "timestep": d.time(scale=10.0),  # in fp32 a sine of a hundred times that is noise
        "pooled_projections": d.given(B, 10),
        "visual_rope_pos": [torch.arange(2), torch.arange(4), torch.arange(4)],
        "text_rope_pos": torch.arange(TEXT),
    }


def _kandinsky6(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 2, 8, 8, 4),
        "encoder_hidden_states": d.given(B, TEXT, 12),
        "pooled_projections": d.given(B, 10),
        "timestep": d.time(),
        "audio_hidden_states": d.noisy(B, 5, 4),
    }


def _kandinsky6_sr(d: Draw) -> Arguments:
    return {"hidden_states": d.noisy(B, 1, 16, 16, 9), "timestep": d.time()}


def _sana_wm(d: Draw) -> Arguments:
    pose = torch.eye(4).repeat(B, 2, 1, 1)
    pose[..., 2, 3] = torch.arange(2) * 0.1
    lens = torch.tensor([4.0, 4.0, 2.0, 2.0]).expand(B, 2, 4)
    return {
        "hidden_states": d.noisy(B, 4, 2, 4, 4),
        "timestep": d.time(B, 1, 2),
        "encoder_hidden_states": d.given(B, 1, TEXT, 12),
        "encoder_attention_mask": d.mask(B, TEXT, dtype=torch.int64),
        "camera_conditions": torch.cat([pose.flatten(-2), lens], dim=-1),
        "chunk_plucker": d.given(B, 8, 2, 4, 4),
    }


_SANA = {
    **HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 8,
    "cross_attention_dim": 16,
    "caption_channels": 12,
    "sample_size": 8,
}
_LTX = {
    **HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "cross_attention_dim": 16,
    "num_layers": 2,
    "caption_channels": 12,
}
_LTX2 = {
    **_LTX,
    "caption_channels": 16,
    "audio_in_channels": 4,
    "audio_out_channels": 4,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 4,
    "audio_cross_attention_dim": 8,
    "num_layers": 1,
}

SANA = (
    Tiny("LTXVideoTransformer3DModel", _LTX, _ltx),
    Tiny("LTX2VideoTransformer3DModel", _LTX2, _ltx2),
    Tiny("SanaWMLTX2RefinerTransformer3DModel", _LTX2, _refiner),
    Tiny(
        "Kandinsky5Transformer3DModel",
        {
            "in_text_dim": 12,
            "in_text_dim2": 10,
            "time_dim": 8,
            "model_dim": 16,
            "ff_dim": 32,
            "num_text_blocks": 1,
            "num_visual_blocks": 2,
            "axes_dims": (4, 2, 2),
        },
        _kandinsky5,
    ),
    Tiny(
        "Kandinsky6Transformer3DModel",
        {
            "in_visual_dim": 4,
            "out_visual_dim": 4,
            "in_text_dim": 12,
            "in_text_dim2": 10,
            "time_dim": 8,
            "model_dim": 16,
            "ff_dim": 32,
            "num_text_blocks": 1,
            "num_visual_blocks": 2,
            "axes_dims": (4, 2, 2),
            "visual_cond": False,
            "in_audio_dim": 4,
            "out_audio_dim": 4,
        },
        _kandinsky6,
    ),
    Tiny(
        "Kandinsky6SRTransformer3DModel",
        {
            "in_visual_dim": 4,
            "out_visual_dim": 4,
            "time_dim": 8,
            "model_dim": 16,
            "ff_dim": 32,
            "num_visual_blocks": 1,
            "axes_dims": (4, 2, 2),
        },
        _kandinsky6_sr,
    ),
    Tiny("SanaVideoTransformer3DModel", {**_SANA, "rope_max_seq_len": 16}, masked_video),
    Tiny(
        "SanaWMTransformer3DModel",
        {
            "in_channels": 4,
            "num_layers": 2,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "softmax_every_n": 2,
            "linear_head_dim": 16,
            "caption_channels": 12,
            "mlp_ratio": 2.0,
            "chunk_plucker_channels": 8,
            "chunk_plucker_post_attn_blocks": 2,
        },
        _sana_wm,
    ),
)
