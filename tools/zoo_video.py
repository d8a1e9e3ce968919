"""Tiny video models: over all frames at once, or over space and time in turn."""

import torch

from .zoo_entry import BATCH, Arguments, Draw, Tiny

__all__ = ["VIDEO"]

HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
WIDE = {"num_attention_heads": 2, "attention_head_dim": 12}
B = BATCH
TEXT = 6


def _video(d: Draw, channels: int = 4) -> Arguments:
    return {
        "hidden_states": d.noisy(B, channels, 2, 8, 8),
        "timestep": d.time(),
        "encoder_hidden_states": d.given(B, TEXT, 12),
    }


def _masked(d: Draw) -> Arguments:
    return {**_video(d), "encoder_attention_mask": d.mask(B, TEXT)}


def _cogvideo(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 2, 4, 8, 8),
        "encoder_hidden_states": d.given(B, TEXT, 12),
        "timestep": d.time(),
        "image_rotary_emb": (d.given(32, 8), d.given(32, 8)),
    }


def _consisid(d: Draw) -> Arguments:
    return {
        **_cogvideo(d),
        "id_cond": d.given(B, 4),
        "id_vit_hidden": [d.given(B, 3, 4) for _ in range(5)],
    }


def _allegro(d: Draw) -> Arguments:
    places = torch.cartesian_prod(torch.arange(2), torch.arange(4), torch.arange(4))
    turns = [d.given(size, 4) for size in (2, 4, 4)]
    return {
        **_masked(d),
        "attention_mask": torch.ones(B, 2, 8, 8),
        "image_rotary_emb": (
            tuple((turn.cos(), turn.sin()) for turn in turns),
            tuple(axis.reshape(1, -1) for axis in places.T),
        ),
    }


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


def _cosmos(d: Draw) -> Arguments:
    return {**_video(d), "fps": 24}


def _kandinsky5(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 2, 8, 8, 4),
        "encoder_hidden_states": d.given(B, TEXT, 12),
        "timestep": d.time(),
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


def _temporal(d: Draw) -> Arguments:
    return {"hidden_states": d.noisy(B * 8, 8, 3, 3), "num_frames": 8}


_COG = {
    **HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 8,
    "text_embed_dim": 12,
    "num_layers": 2,
    "sample_width": 8,
    "sample_height": 8,
    "sample_frames": 5,
    "max_text_seq_length": TEXT,
    "use_rotary_positional_embeddings": True,
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

VIDEO = (
    Tiny(
        "LatteTransformer3DModel",
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "cross_attention_dim": 16,
            "attention_bias": True,
            "sample_size": 8,
            "patch_size": 2,
            "activation_fn": "gelu-approximate",
            "num_embeds_ada_norm": 1000,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
            "caption_channels": 12,
            "video_length": 2,
        },
        _video,
    ),
    Tiny("CogVideoXTransformer3DModel", _COG, _cogvideo),
    Tiny(
        "ConsisIDTransformer3DModel",
        {
            **_COG,
            "is_train_face": True,
            "cross_attn_interval": 1,
            "cross_attn_dim_head": 8,
            "cross_attn_num_heads": 2,
            "LFE_id_dim": 4,
            "LFE_vit_dim": 4,
            "LFE_depth": 5,
            "LFE_dim_head": 8,
            "LFE_num_heads": 2,
            "LFE_num_id_token": 1,
            "LFE_num_querie": 1,
            "LFE_output_dim": 10,
            "LFE_ff_mult": 1,
            "LFE_num_scale": 1,
        },
        _consisid,
    ),
    Tiny(
        "AllegroTransformer3DModel",
        {
            **WIDE,
            "num_layers": 2,
            "cross_attention_dim": 24,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 2,
            "caption_channels": 12,
        },
        _allegro,
    ),
    Tiny("LTXVideoTransformer3DModel", _LTX, _ltx),
    Tiny("LTX2VideoTransformer3DModel", _LTX2, _ltx2),
    Tiny("SanaWMLTX2RefinerTransformer3DModel", _LTX2, _refiner),
    Tiny(
        "MochiTransformer3DModel",
        {
            **HEADS,
            "num_layers": 2,
            "pooled_projection_dim": 16,
            "in_channels": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 4,
            "max_sequence_length": TEXT,
        },
        lambda d: {**_masked(d), "encoder_hidden_states": d.given(B, TEXT, 16)},
    ),
    Tiny(
        "EasyAnimateTransformer3DModel",
        {
            **{"num_attention_heads": 2, "attention_head_dim": 16},
            "in_channels": 4,
            "out_channels": 4,
            "patch_size": 2,
            "sample_width": 8,
            "sample_height": 8,
            "num_layers": 2,
            "mmdit_layers": 2,
            "time_embed_dim": 8,
            "text_embed_dim": 12,
        },
        _video,
    ),
    Tiny(
        "CosmosTransformer3DModel",
        {
            **WIDE,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "text_embed_dim": 12,
            "adaln_lora_dim": 4,
            "max_size": (4, 16, 16),
            "concat_padding_mask": False,
        },
        _cosmos,
    ),
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
    Tiny("SanaVideoTransformer3DModel", {**_SANA, "rope_max_seq_len": 16}, _masked),
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
    Tiny(
        "TransformerTemporalModel",
        {**HEADS, "in_channels": 8, "num_layers": 2, "norm_num_groups": 2},
        _temporal,
        cfg=None,
        latents="hidden_states",
    ),
)
