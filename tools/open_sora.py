"""Open-Sora's denoisers, STDiT of 1.1 and of 1.2, with their published checkpoints' names.

    latents → patches → blocks of attention within a frame, over frames, to the caption → latents

For text to video: frames that are given (`x_mask` in the published code) aren't supported.
"""

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.nn import functional

from .open_sora_layers import (
    Attention,
    CaptionEmbedder,
    CrossAttention,
    Feedforward,
    FinalLayer,
    NumberEmbedder,
    PatchEmbedder,
    Rotary,
    modulated,
    plain_norm,
    position_embedding,
    split,
)

__all__ = ["STDiT2", "STDiT3"]

Grid = tuple[int, int, int]


class _Denoiser(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """What both versions share: patches in, patches out, the caption, the place of a token."""

    patch_size: Grid
    hidden_size: int
    input_sq_size: int
    x_embedder: PatchEmbedder
    y_embedder: CaptionEmbedder
    final_layer: FinalLayer

    def _embedded(
        self, latents: torch.Tensor, height: torch.Tensor, width: torch.Tensor
    ) -> torch.Tensor:
        """Return the tokens, `[batch, frames, tokens a frame, channels]`, with their places."""
        sizes = zip(latents.shape[2:], self.patch_size, strict=True)
        missing = [-size % patch for size, patch in sizes]
        padding = [number for size in reversed(missing) for number in (0, size)]
        padded = functional.pad(latents, padding)
        _, rows, columns = (
            size // patch for size, patch in zip(padded.shape[2:], self.patch_size, strict=True)
        )
        scale = (height.float() * width.float()).sqrt() / self.input_sq_size
        base = round((rows * columns) ** 0.5)
        places = position_embedding(rows, columns, self.hidden_size, scale, base)
        tokens: torch.Tensor = self.x_embedder(padded)
        return tokens + places.to(tokens.dtype)[:, None]

    def _video(
        self, tokens: torch.Tensor, time: torch.Tensor, latents: torch.Tensor
    ) -> torch.Tensor:
        """Return the video of `tokens`, `[batch, frames, tokens a frame, channels]`."""
        patches = self.final_layer(tokens.flatten(1, 2), time)
        counts = [
            -(-size // patch)
            for size, patch in zip(latents.shape[2:], self.patch_size, strict=True)
        ]
        parts = split(split(patches, 1, counts), -1, (*self.patch_size, -1))
        video = parts.permute(0, 7, 1, 4, 2, 5, 3, 6)
        sizes = [count * patch for count, patch in zip(counts, self.patch_size, strict=True)]
        video = video.reshape(latents.shape[0], -1, *sizes)
        frames, rows, columns = latents.shape[2:]
        cut: torch.Tensor = video[:, :, :frames, :rows, :columns]
        return cut


def _final_layer(width: int, patch: Grid, channels: int, pred_sigma: bool) -> FinalLayer:
    """Return the projection to patches of the noise, and of its variance if that is predicted."""
    return FinalLayer(width, math.prod(patch) * channels * (2 if pred_sigma else 1))


def _returned(video: torch.Tensor, return_dict: bool) -> Transformer2DModelOutput | tuple[object]:
    return Transformer2DModelOutput(sample=video) if return_dict else (video,)


def _within_frames(attention: Attention, x: torch.Tensor) -> torch.Tensor:
    """Attend among the tokens of each frame of `[batch, frames, tokens, channels]`."""
    attended: torch.Tensor = attention(x.flatten(0, 1))
    return attended.reshape(x.shape)


def _over_frames(attention: Attention, x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Attend among the frames of each place of `[batch, frames, tokens, channels]`."""
    turned = x.transpose(1, 2)
    attended: torch.Tensor = attention(turned.flatten(0, 1), rotary)
    return attended.reshape(turned.shape).transpose(1, 2)


def _gates(table: torch.Tensor, time: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the modulations of a block, each `[batch, 1, 1, channels]`."""
    whole = table + split(time, 1, table.shape)
    return tuple(part[:, None, None] for part in whole.unbind(1))


class STDiT2Block(nn.Module):
    """A block of 1.1: within frames, over frames, to the caption, feedforward."""

    def __init__(self, width: int, heads: int, ratio: float, normed: bool, legacy: bool) -> None:
        super().__init__()
        self.attn = Attention(width, heads, normed, legacy)
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)
        self.cross_attn = CrossAttention(width, heads)
        self.mlp = Feedforward(width, int(width * ratio))
        self.attn_temp = Attention(width, heads, normed, legacy)
        self.scale_shift_table_temporal = nn.Parameter(torch.randn(3, width) / width**0.5)

    def forward(
        self,
        x: torch.Tensor,
        caption: torch.Tensor,
        mask: torch.Tensor | None,
        space: torch.Tensor,
        time: torch.Tensor,
        rotary: Rotary,
    ) -> torch.Tensor:
        """Return `x`, `[batch, frames, tokens, channels]`, after the block."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = _gates(self.scale_shift_table, space)
        shift_t, scale_t, gate_t = _gates(self.scale_shift_table_temporal, time)
        x = x + gate * _within_frames(self.attn, modulated(plain_norm(x), shift, scale))
        told = modulated(plain_norm(x), shift_t, scale_t)
        x = x + gate_t * _over_frames(self.attn_temp, told, rotary)
        x = x + self.cross_attn(x.flatten(1, 2), caption, mask).reshape(x.shape)
        made: torch.Tensor = self.mlp(modulated(plain_norm(x), shift_mlp, scale_mlp))
        return x + gate_mlp * made


class STDiT2(_Denoiser):
    """The denoiser of Open-Sora 1.1; its defaults are those of `OpenSora-STDiT-v2-stage3`."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        input_sq_size: int = 512,
        in_channels: int = 4,
        patch_size: Grid = (1, 2, 2),
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        pred_sigma: bool = True,
        caption_channels: int = 4096,
        model_max_length: int = 200,
        qk_norm: bool = True,
        qk_norm_legacy: bool = True,
    ) -> None:
        super().__init__()
        width = hidden_size
        self.patch_size, self.hidden_size, self.input_sq_size = patch_size, width, input_sq_size
        self.x_embedder = PatchEmbedder(patch_size, in_channels, width)
        self.t_embedder = NumberEmbedder(width)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.t_block_temp = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))
        self.y_embedder = CaptionEmbedder(caption_channels, width, model_max_length)
        self.rope = Rotary(width // num_heads)
        self.blocks = nn.ModuleList(
            STDiT2Block(width, num_heads, mlp_ratio, qk_norm, qk_norm_legacy) for _ in range(depth)
        )
        self.final_layer = _final_layer(width, patch_size, in_channels, pred_sigma)
        self.csize_embedder = NumberEmbedder(width // 3)
        self.ar_embedder = NumberEmbedder(width // 3)
        self.fl_embedder = NumberEmbedder(width)
        self.fps_embedder = NumberEmbedder(width)

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None,
        num_frames: torch.Tensor,
        height: torch.Tensor,
        width: torch.Tensor,
        ar: torch.Tensor,
        fps: torch.Tensor,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[object]:
        """Predict noise, and its variance in the second half of the channels.

        Args:
            hidden_states: latents, `[batch, channels, frames, height, width]`.
            timestep: `[batch]`.
            encoder_hidden_states: words of T5, `[batch, words, caption_channels]`.
            encoder_attention_mask: which words count, `[batch, words]`; all if None.
            num_frames: of the video, `[batch]`.
            height: of the video in pixels, `[batch]`.
            width: of the video in pixels, `[batch]`.
            ar: height over width, `[batch]`.
            fps: frames a second, `[batch]`.
            return_dict: whether to return an output object; else a tuple.
        """
        sizes = self.csize_embedder(torch.stack([height, width], dim=1))
        shape = torch.cat([sizes, self.ar_embedder(ar[:, None])], dim=1)
        length = self.fl_embedder(num_frames[:, None]) + self.fps_embedder(fps[:, None])
        time = self.t_embedder(timestep[:, None])
        space, frames = self.t_block(time + shape), self.t_block_temp(time + length)
        caption = self.y_embedder(encoder_hidden_states)
        x = self._embedded(hidden_states, height, width)
        for block in self.blocks:
            x = block(x, caption, encoder_attention_mask, space, frames, self.rope)
        return _returned(self._video(x, time, hidden_states), return_dict)


class STDiT3Block(nn.Module):
    """A block of 1.2: attention within frames or over frames, to the caption, feedforward."""

    def __init__(self, width: int, heads: int, ratio: float, normed: bool) -> None:
        super().__init__()
        self.attn = Attention(width, heads, normed)
        self.cross_attn = CrossAttention(width, heads)
        self.mlp = Feedforward(width, int(width * ratio))
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)

    def forward(
        self,
        x: torch.Tensor,
        caption: torch.Tensor,
        mask: torch.Tensor | None,
        time: torch.Tensor,
        rotary: Rotary | None,
    ) -> torch.Tensor:
        """Return `x`, `[batch, frames, tokens, channels]`; over frames if `rotary` is given."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = _gates(self.scale_shift_table, time)
        told = modulated(plain_norm(x), shift, scale)
        if rotary is None:
            x = x + gate * _within_frames(self.attn, told)
        else:
            x = x + gate * _over_frames(self.attn, told, rotary)
        x = x + self.cross_attn(x.flatten(1, 2), caption, mask).reshape(x.shape)
        made: torch.Tensor = self.mlp(modulated(plain_norm(x), shift_mlp, scale_mlp))
        return x + gate_mlp * made


class STDiT3(_Denoiser):
    """The denoiser of Open-Sora 1.2; its defaults are those of `OpenSora-STDiT-v3`."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        input_sq_size: int = 512,
        in_channels: int = 4,
        patch_size: Grid = (1, 2, 2),
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        pred_sigma: bool = True,
        caption_channels: int = 4096,
        model_max_length: int = 300,
        qk_norm: bool = True,
    ) -> None:
        super().__init__()
        width = hidden_size
        self.patch_size, self.hidden_size, self.input_sq_size = patch_size, width, input_sq_size
        self.rope = Rotary(width // num_heads)
        self.x_embedder = PatchEmbedder(patch_size, in_channels, width)
        self.t_embedder = NumberEmbedder(width)
        self.fps_embedder = NumberEmbedder(width)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.y_embedder = CaptionEmbedder(caption_channels, width, model_max_length)
        self.spatial_blocks, self.temporal_blocks = (
            nn.ModuleList(STDiT3Block(width, num_heads, mlp_ratio, qk_norm) for _ in range(depth))
            for _ in range(2)
        )
        self.final_layer = _final_layer(width, patch_size, in_channels, pred_sigma)

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None,
        height: torch.Tensor,
        width: torch.Tensor,
        fps: torch.Tensor,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[object]:
        """Predict the velocity, in the first half of the channels; arguments as of `STDiT2`."""
        time = self.t_embedder(timestep[:, None]) + self.fps_embedder(fps[:, None])
        told = self.t_block(time)
        caption = self.y_embedder(encoder_hidden_states)
        x = self._embedded(hidden_states, height, width)
        for spatial, temporal in zip(self.spatial_blocks, self.temporal_blocks, strict=True):
            x = spatial(x, caption, encoder_attention_mask, told, None)
            x = temporal(x, caption, encoder_attention_mask, told, self.rope)
        return _returned(self._video(x, time, hidden_states), return_dict)
