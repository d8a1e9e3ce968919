"""Tiny image models in which text and image are one stream of tokens."""

import torch

from .zoo_entry import BATCH, Arguments, Draw, Tiny

__all__ = ["STREAM"]

B = BATCH


def _lumina2(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 4, 8, 8),
        "timestep": d.time(scale=1.0),
        "encoder_hidden_states": d.given(B, 6, 12),
        "encoder_attention_mask": torch.ones(B, 6, dtype=torch.bool),
    }


def _ernie(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 4, 5, 5),
        "timestep": d.time(),
        "text_bth": d.given(B, 6, 12),
        "text_lens": torch.tensor([4, 6]),
    }


def _ideogram4(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 22, 4),
        "timestep": d.time(scale=1.0),
        "encoder_hidden_states": d.given(B, 22, 12),
        "position_ids": d.tokens(B, 22, 3, below=8),
        "segment_ids": torch.zeros(B, 22, dtype=torch.int64),
        "indicator": torch.tensor([3] * 6 + [2] * 16).expand(B, 22).contiguous(),
    }


def _krea2(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 16, 4),
        "encoder_hidden_states": d.given(B, 6, 3, 16),
        "timestep": d.time(scale=1.0),
        "position_ids": d.tokens(22, 3, below=6).float(),
    }


def _omnigen(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 4, 8, 8),
        "timestep": d.time(scale=1.0),
        "input_ids": d.tokens(B, 6, below=30),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": torch.ones(B, 23, 23, dtype=torch.int64),
        "position_ids": torch.arange(23).expand(B, 23).contiguous(),
    }


def _prx(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 4, 8, 8),
        "timestep": d.time(scale=1.0),
        "encoder_hidden_states": d.given(B, 6, 12),
    }


def _nucleus(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 16, 16),
        "img_shapes": [(1, 4, 4)] * B,
        "encoder_hidden_states": d.given(B, 6, 12),
        "timestep": d.time(scale=1.0),
    }


def _fibo2(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 4, 8, 8),
        "timestep": d.time(scale=1.0),
        "encoder_hidden_states": d.given(B, 2, 6, 12),
    }


def _z_image(d: Draw) -> Arguments:
    return {
        "x": [d.noisy(4, 1, 8, 8) for _ in range(B)],
        "t": d.time(scale=1.0),
        "cap_feats": [d.given(7, 12), d.given(5, 12)],
    }


def _qwen21(d: Draw) -> Arguments:
    slots = torch.zeros(B, 10, dtype=torch.bool)
    slots[:, 6:] = True
    return {
        "hidden_states": d.noisy(B, 16, 4),
        "encoder_hidden_states": d.given(B, 6, 12),
        "timestep": d.time(B, scale=1.0),
        "img_shapes": [[(1, 4, 4)]] * B,
        "img_mask": slots,
    }


STREAM = (
    Tiny(
        "Lumina2Transformer2DModel",
        {
            "sample_size": 8,
            "in_channels": 4,
            "hidden_size": 32,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 4,
            "num_kv_heads": 2,
            "multiple_of": 8,
            "axes_dim_rope": (4, 2, 2),
            "axes_lens": (32, 16, 16),
            "cap_feat_dim": 12,
        },
        _lumina2,
    ),
    Tiny(
        "ErnieImageTransformer2DModel",
        {
            "hidden_size": 16,
            "num_attention_heads": 2,
            "num_layers": 2,
            "ffn_hidden_size": 32,
            "in_channels": 4,
            "out_channels": 4,
            "text_in_dim": 12,
            "rope_axes_dim": (4, 2, 2),
        },
        _ernie,
    ),
    Tiny(
        "Ideogram4Transformer2DModel",
        {
            "in_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "adaln_dim": 8,
            "llm_features_dim": 12,
            "mrope_section": (2, 1, 1),
        },
        _ideogram4,
    ),
    Tiny(
        "Krea2Transformer2DModel",
        {
            "in_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 32,
            "timestep_embed_dim": 8,
            "text_hidden_dim": 16,
            "num_text_layers": 3,
            "text_num_attention_heads": 2,
            "text_num_key_value_heads": 2,
            "text_intermediate_size": 32,
            "num_layerwise_text_blocks": 1,
            "num_refiner_text_blocks": 1,
            "axes_dims_rope": (4, 2, 2),
        },
        _krea2,
    ),
    Tiny(
        "OmniGenTransformer2DModel",
        {
            "hidden_size": 16,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 32,
            "num_layers": 2,
            "pad_token_id": 0,
            "vocab_size": 32,
            "max_position_embeddings": 64,
            "original_max_position_embeddings": 64,
            "rope_scaling": {
                "type": "su",
                "long_factor": [1.0] * 4,
                "short_factor": [1.0] * 4,
            },
            "pos_embed_max_size": 8,
            "time_step_dim": 8,
        },
        _omnigen,
    ),
    Tiny(
        "PRXTransformer2DModel",
        {
            "in_channels": 4,
            "context_in_dim": 12,
            "hidden_size": 16,
            "num_heads": 2,
            "depth": 2,
            "axes_dim": [4, 4],
        },
        _prx,
    ),
    Tiny(
        "NucleusMoEImageTransformer2DModel",
        {
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "joint_attention_dim": 12,
            "axes_dims_rope": (4, 2, 2),
            "moe_enabled": False,
        },
        _nucleus,
    ),
    Tiny(
        "BriaFibo2Transformer2DModel",
        {
            "in_channels": 4,
            "dim": 32,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 4,
            "cap_feat_dim": 12,
            "injection_layer_ids": (1,),
            "perceiver_num_layers": 1,
            "min_num_gist_tokens": 4,
            "max_num_gist_tokens": 8,
            "gist_step": 2,
            "gist_min_text_len": 4,
            "gist_max_text_len": 16,
            "axes_dims": (4, 2, 2),
            "axes_lens": (64, 32, 32),
        },
        _fibo2,
    ),
    Tiny(
        "ZImageTransformer2DModel",
        {
            "in_channels": 4,
            "dim": 16,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 12,
            "axes_dims": [4, 2, 2],
            "axes_lens": [128, 32, 32],
        },
        _z_image,
        cfg="cond-first",
        latents="x",
        timestep="t",
    ),
    Tiny(
        "QwenImage21Transformer2DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "context_in_dim": 12,
            "axes_dims_rope": (4, 2, 2),
        },
        _qwen21,
    ),
)
