"""Tiny models of audio, embeddings, molecules and several media at once."""

import torch

from .zoo_entry import BATCH, Arguments, Draw, Tiny

__all__ = ["OTHER"]

B = BATCH
TEXT = 6


def _ace_step(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 32, 4),
        "timestep": d.time(scale=1.0),
        "timestep_r": torch.zeros(B),
        "encoder_hidden_states": d.given(B, TEXT, 16),
        "context_latents": d.given(B, 32, 4),
    }


def _prior(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 12),
        "timestep": d.time(),
        "proj_embedding": d.given(B, 12),
        "encoder_hidden_states": d.given(B, 5, 12),
    }


def _stable_audio(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 4, 15),
        "timestep": d.time(scale=1.0),
        "encoder_hidden_states": d.given(B, TEXT, 12),
        "global_hidden_states": d.given(B, 1, 10),
        "rotary_embedding": (d.given(16, 8), d.given(16, 8)),
    }


def _stable_audio3(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 4, 16),
        "timestep": d.time(scale=1.0),
        "encoder_hidden_states": d.given(B, TEXT, 12),
        "global_hidden_states": d.given(B, 10),
    }


def _t5_film(d: Draw) -> Arguments:
    return {
        "encodings_and_masks": [(d.given(B, TEXT, 16), torch.ones(B, TEXT))],
        "decoder_input_tokens": d.noisy(B, 16, 4),
        "decoder_noise_time": d.time(scale=1.0),
    }


def _longcat_audio(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 16, 4),
        "encoder_hidden_states": d.given(B, TEXT, 12),
        "encoder_attention_mask": d.mask(B, TEXT),
        "timestep": d.time(scale=0.01),  # in fp32 a sine of a hundred times that is noise
        "latent_cond": d.given(B, 16, 4),
    }


def _music3(d: Draw) -> Arguments:
    return {
        "hidden_states": d.noisy(B, 4, 16),
        "timestep": d.time(scale=1.0),
        "encoder_hidden_states": d.given(B, 16, 12),
    }


def _minimax_h3(d: Draw) -> Arguments:
    kinds = torch.tensor([1] * 4 + [2] * 6 + [0] * 16)
    places = torch.zeros(26, 3)
    places[:, 0] = torch.arange(26)
    return {
        "hidden_states": d.noisy(B, 16, 16),
        "audio_hidden_states": d.noisy(B, 6, 6),
        "encoder_hidden_states": d.given(B, 4, 12),
        "timestep": d.time(2, scale=1.0),
        "timestep_indices": (kinds == 2).long(),
        "token_tags": kinds,
        "position_ids": places,
        "video_indices": torch.arange(10, 26),
        "audio_indices": torch.arange(4, 10),
        "text_indices": torch.arange(4),
    }


def _cosmos3(d: Draw) -> Arguments:
    image = torch.arange(6, 22)
    return {
        "input_ids": d.tokens(6, below=32),
        "text_indexes": torch.arange(6),
        "position_ids": torch.arange(22).expand(3, 22).contiguous(),
        "und_len": 6,
        "sequence_length": 22,
        "vision_tokens": [d.noisy(1, 2, 1, 4, 4)],
        "vision_token_shapes": [(1, 4, 4)],
        "vision_sequence_indexes": image,
        "vision_mse_loss_indexes": image,
        "vision_timesteps": d.time(16),
        "vision_noisy_frame_indexes": [torch.tensor([0])],
    }


def _proteina(d: Draw) -> Arguments:
    return {
        "bb_ca": d.noisy(B, 12, 3),
        "local_latents": d.noisy(B, 12, 4),
        "bb_ca_time": d.time(scale=1.0),
        "local_latents_time": d.time(scale=1.0),
        "padding_mask": torch.ones(B, 12, dtype=torch.bool),
        "conditioning": {
            "is_in_context_conditioning": torch.zeros(B, 12, dtype=torch.bool),
            "supports_local_latent": torch.ones(B, 12, dtype=torch.bool),
        },
    }


def _animate2(d: Draw) -> Arguments:
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    return {
        "hidden_states": [d.noisy(4, 2, 4, 4)],
        "timestep": d.time(1),
        "encoder_hidden_states": [d.given(TEXT, 12)],
        "condition_latents": [d.given(4, 2, 4, 4)],
        "kv_cache": WanAnimate2KVCache(1),
        "kv_cache_mode": "extract",
        "seq_len": 8,
        "offset_grid_sizes": torch.tensor([[2, 2, 2]]),
    }


OTHER = (
    Tiny(
        "AceStepTransformer1DModel",
        {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "in_channels": 8,
            "audio_acoustic_hidden_dim": 4,
            "sliding_window": 4,
            "encoder_hidden_size": 16,
        },
        _ace_step,
    ),
    Tiny(
        "PriorTransformer",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 2,
            "embedding_dim": 12,
            "num_embeddings": 5,
            "additional_embeddings": 4,
        },
        _prior,
    ),
    Tiny(
        "StableAudioDiTModel",
        {
            "sample_size": 15,
            "in_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "num_key_value_attention_heads": 2,
            "out_channels": 4,
            "cross_attention_dim": 16,
            "time_proj_dim": 8,
            "global_states_input_dim": 10,
            "cross_attention_input_dim": 12,
        },
        _stable_audio,
    ),
    Tiny(
        "StableAudio3DiTModel",
        {
            "io_channels": 4,
            "embed_dim": 16,
            "depth": 2,
            "num_heads": 2,
            "cond_token_dim": 12,
            "global_cond_dim": 10,
            "local_add_cond_dim": 5,
            "timestep_features_dim": 8,
            "num_memory_tokens": 4,
        },
        _stable_audio3,
    ),
    Tiny(
        "T5FilmDecoder",
        {
            "input_dims": 4,
            "targets_length": 16,
            "d_model": 16,
            "num_layers": 2,
            "num_heads": 2,
            "d_kv": 8,
            "d_ff": 32,
        },
        _t5_film,
        latents="decoder_input_tokens",
        timestep="decoder_noise_time",
    ),
    Tiny(
        "LongCatAudioDiTTransformer",
        {"dit_dim": 16, "dit_depth": 2, "dit_heads": 2, "dit_text_dim": 12, "latent_dim": 4},
        _longcat_audio,
    ),
    Tiny(
        "MiniMaxMusic3Transformer1DModel",
        {
            "in_channels": 4,
            "condition_dim": 12,
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "ff_inner_dim": 32,
            "rotary_dim": 4,
            "fourier_embedding_dim": 8,
        },
        _music3,
    ),
    Tiny(
        "MiniMaxH3Transformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "hidden_size": 24,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "ffn_dim": 32,
            "in_channels": 4,
            "audio_in_channels": 6,
            "text_dim": 12,
            "freq_dim": 8,
            "time_embed_hidden_dim": 24,
            "time_embed_dim": 16,
            "rope_freq_dim": 2,
        },
        _minimax_h3,
    ),
    Tiny(
        "Cosmos3OmniTransformer",
        {
            "head_dim": 6,
            "hidden_size": 12,
            "intermediate_size": 24,
            "latent_channel": 2,
            "latent_patch_size": 1,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "num_key_value_heads": 1,
            "patch_latent_dim": 2,
            "rope_axes_dim": [1, 1, 1],
            "vocab_size": 32,
        },
        _cosmos3,
        cfg=None,
        latents="vision_tokens.0",
        timestep="vision_timesteps",
    ),
    Tiny(
        "RFD4ProteinaTransformer",
        {
            "nlayers": 2,
            "token_dim": 16,
            "nheads": 2,
            "dim_cond": 8,
            "pair_repr_dim": 8,
            "latent_dim": 4,
            "t_emb_dim": 8,
            "feats_seq": ("xt_bb_ca", "xt_local_latents"),
            "feats_cond_seq": ("time_emb_bb_ca", "time_emb_local_latents"),
            "feats_pair_repr": ("xt_bb_ca_pair_dists",),
            "tri_mult_c": 8,
            "num_sequence_classes": 5,
        },
        _proteina,
        latents="local_latents",
        timestep="local_latents_time",
    ),
    Tiny(
        "WanAnimate2Transformer3DModel",
        {
            "text_len": 8,
            "in_dim": 8,
            "dim": 24,
            "ffn_dim": 32,
            "freq_dim": 16,
            "text_dim": 12,
            "out_dim": 4,
            "num_heads": 2,
            "num_layers": 1,
            "use_img_emb": False,
        },
        _animate2,
        cfg=None,
        latents="hidden_states.0",
    ),
)
