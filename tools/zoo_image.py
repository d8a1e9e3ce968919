"""Tiny image models whose image tokens attend among themselves, and to the text apart."""

import torch

from .zoo_entry import BATCH, Arguments, Draw, Tiny

__all__ = ["IMAGE"]

HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
B = BATCH


def _dit(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 4, 8, 8),
        "timestep": d.time(),
        "class_labels": torch.tensor([10, 3]),
    }


def _hunyuan_dit(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 4, 8, 8),
        "timestep": d.time(),
        "encoder_hidden_states": d.given(B, 5, 12),
        "text_embedding_mask": d.mask(B, 5, dtype=torch.int64),
        "encoder_hidden_states_t5": d.given(B, 6, 16),
        "text_embedding_mask_t5": d.mask(B, 6, dtype=torch.int64),
        "image_meta_size": torch.full((B, 6), 64.0),
        "style": torch.zeros(B, dtype=torch.int64),
        "image_rotary_emb": (d.given(16, 8), d.given(16, 8)),
    }


def _lumina(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 4, 8, 8),
        "timestep": d.time(scale=1.0),
        "encoder_hidden_states": d.given(B, 5, 12),
        "encoder_mask": d.mask(B, 5, dtype=torch.int64),
        "image_rotary_emb": torch.polar(torch.ones(8, 8, 4), d.given(8, 8, 4)),
        "cross_attention_kwargs": {},
    }


def _pixart(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 4, 8, 8),
        "encoder_hidden_states": d.given(B, 6, 12),
        "timestep": d.time(),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        "encoder_attention_mask": d.mask(B, 6),
    }


def _sana(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 4, 6, 6),
        "encoder_hidden_states": d.given(B, 6, 12),
        "timestep": d.time(),
        "encoder_attention_mask": d.mask(B, 6),
    }


def _transformer2d(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 8, 5, 5),
        "encoder_hidden_states": d.given(B, 6, 12),
        "timestep": d.time(),
    }


def _cogview3(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 4, 8, 8),
        "encoder_hidden_states": d.given(B, 6, 12),
        "timestep": d.time(),
        "original_size": torch.full((B, 2), 64.0),
        "target_size": torch.full((B, 2), 64.0),
        "crop_coords": torch.zeros(B, 2),
    }


def _glm(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 4, 8, 8),
        "encoder_hidden_states": d.given(B, 6, 12),
        "prior_token_id": d.tokens(B, 16, below=64),
        "prior_token_drop": torch.tensor([True, False])[:, None].expand(B, 16).contiguous(),
        "timestep": d.time(),
        "target_size": torch.full((B, 2), 64.0),
        "crop_coords": torch.zeros(B, 2),
    }


_COGVIEW = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "text_embed_dim": 12,
    "time_embed_dim": 16,
    "condition_dim": 4,
}
_PLAIN = {**HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "sample_size": 8}

IMAGE = (
    Tiny(
        "DiTTransformer2DModel",
        {**_PLAIN, "norm_num_groups": 1, "num_embeds_ada_norm": 10},
        _dit,
        cfg="cond-first",
    ),
    Tiny(
        "PixArtTransformer2DModel",
        {
            **_PLAIN,
            "out_channels": 8,
            "norm_num_groups": 1,
            "cross_attention_dim": 16,
            "caption_channels": 12,
            "use_additional_conditions": False,
        },
        _pixart,
    ),
    Tiny(
        "HunyuanDiT2DModel",
        {
            **HEADS,
            "in_channels": 4,
            "patch_size": 2,
            "sample_size": 8,
            "hidden_size": 16,
            "num_layers": 4,
            "cross_attention_dim": 12,
            "cross_attention_dim_t5": 16,
            "pooled_projection_dim": 8,
            "text_len": 5,
            "text_len_t5": 6,
        },
        _hunyuan_dit,
    ),
    Tiny(
        "LuminaNextDiT2DModel",
        {
            "sample_size": 8,
            "hidden_size": 32,
            "num_layers": 2,
            "num_attention_heads": 4,
            "num_kv_heads": 2,
            "multiple_of": 8,
            "cross_attention_dim": 12,
        },
        _lumina,
    ),
    Tiny(
        "SanaTransformer2DModel",
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 8,
            "cross_attention_dim": 16,
            "caption_channels": 12,
            "sample_size": 6,
        },
        _sana,
    ),
    Tiny(
        "Transformer2DModel",
        {
            **HEADS,
            "in_channels": 8,
            "num_layers": 2,
            "norm_num_groups": 2,
            "cross_attention_dim": 12,
        },
        _transformer2d,
        latents="hidden_states",
    ),
    Tiny(
        "DreamLiteTransformer2DModel",
        {
            **HEADS,
            "in_channels": 8,
            "num_layers": 2,
            "norm_num_groups": 2,
            "cross_attention_dim": 12,
        },
        _transformer2d,
    ),
    Tiny("CogView3PlusTransformer2DModel", {**_COGVIEW, "sample_size": 8}, _cogview3),
    Tiny(
        "CogView4Transformer2DModel",
        {**_COGVIEW, "rope_axes_dim": (8, 8), "sample_size": 8},
        _cogview3,
    ),
    Tiny("GlmImageTransformer2DModel", {**_COGVIEW, "prior_vq_quantizer_codebook_size": 64}, _glm),
)
