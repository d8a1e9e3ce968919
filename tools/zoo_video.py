"""Tiny video models: over all frames at once, or over space and time in turn."""

import torch

from .zoo_entry import BATCH, TEXT, Arguments, Draw, Tiny, masked_video, video

__all__ = ["VIDEO"]

HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
WIDE = {"num_attention_heads": 2, "attention_head_dim": 12}
B = BATCH


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
        **masked_video(d),
        "attention_mask": torch.ones(B, 2, 8, 8),
        "image_rotary_emb": (
            tuple((turn.cos(), turn.sin()) for turn in turns),
            tuple(axis.reshape(1, -1) for axis in places.T),
        ),
    }


def _cosmos(d: Draw) -> Arguments:
    return {**video(d), "fps": 24}


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
        video,
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
        lambda d: {**masked_video(d), "encoder_hidden_states": d.given(B, TEXT, 16)},
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
        video,
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
        "TransformerTemporalModel",
        {**HEADS, "in_channels": 8, "num_layers": 2, "norm_num_groups": 2},
        _temporal,
        latents="hidden_states",
    ),
)
