"""Layers of Open-Sora's denoisers, named as in the published checkpoints."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

__all__ = [
    "Attention",
    "CaptionEmbedder",
    "CrossAttention",
    "Feedforward",
    "FinalLayer",
    "NumberEmbedder",
    "PatchEmbedder",
    "Rotary",
    "modulated",
    "plain_norm",
    "position_embedding",
    "split",
]

FREQUENCIES = 256
LONGEST_PERIOD = 10_000


class RootMeanSquare(nn.Module):
    """Normalisation to a root mean square of one, with a weight a channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x`, `[..., width]`, normalised in float32."""
        whole = x.float()
        whole = whole * torch.rsqrt(whole.square().mean(-1, keepdim=True) + 1e-6)
        return self.weight * whole.to(x.dtype)


class Rotary(nn.Module):
    """Rotary embedding of positions, each pair of neighbouring channels turned together."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        exponents = torch.arange(0, head_dim, 2).float() / head_dim
        self.freqs = nn.Parameter(LONGEST_PERIOD**-exponents, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x`, `[batch, heads, tokens, head_dim]`, turned by its tokens' positions."""
        places = torch.arange(x.shape[-2], device=x.device, dtype=self.freqs.dtype)
        angles = places[:, None] * self.freqs
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        even, odd = split(x, -1, (-1, 2)).unbind(-1)
        turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
        return turned.flatten(-2)


class Attention(nn.Module):
    """Self-attention with one projection for query, key and value.

    Args:
        width: channels.
        heads: attention heads.
        normed: whether queries and keys are normalised, head by head.
        turned_first: whether they are turned before they are normalised, as in 1.1.
    """

    def __init__(self, width: int, heads: int, normed: bool, turned_first: bool = False) -> None:
        super().__init__()
        self.heads, self.turned_first = heads, turned_first
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = RootMeanSquare(width // heads) if normed else nn.Identity()
        self.k_norm = RootMeanSquare(width // heads) if normed else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, rotary: Rotary | None = None) -> torch.Tensor:
        """Attend among the tokens of `x`, `[batch, tokens, width]`."""
        parts = split(self.qkv(x), -1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        turn = rotary if rotary is not None else nn.Identity()
        if self.turned_first:
            query, key = self.q_norm(turn(query)), self.k_norm(turn(key))
        else:
            query, key = turn(self.q_norm(query)), turn(self.k_norm(key))
        attended = functional.scaled_dot_product_attention(query, key, value)
        projected: torch.Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return projected


class CrossAttention(nn.Module):
    """Attention to the caption."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(width, width)
        self.kv_linear = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: torch.Tensor, caption: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Attend from `x` `[batch, tokens, width]` to `caption` where `mask` `[batch, words]`."""
        query = split(self.q_linear(x), -1, (self.heads, -1)).transpose(1, 2)
        parts = split(self.kv_linear(caption), -1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        key, value = parts.unbind(0)
        seen = None if mask is None else mask.bool()[:, None, None]
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        projected: torch.Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return projected


class Feedforward(nn.Module):
    """Two layers with a GELU between."""

    def __init__(self, width: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, out or width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `[..., out]`."""
        output: torch.Tensor = self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))
        return output


class NumberEmbedder(nn.Module):
    """Embeds numbers, such as timesteps, sizes and frame rates, by their cosines and sines."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return `[batch, count · width]` of numbers `[batch, count]`."""
        half = FREQUENCIES // 2
        steps = torch.arange(half, device=numbers.device, dtype=torch.float32)
        angles = numbers.float()[..., None] * torch.exp(-math.log(LONGEST_PERIOD) / half * steps)
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        embedded: torch.Tensor = self.mlp(waves.to(next(self.parameters()).dtype))
        return embedded.flatten(1)


class CaptionEmbedder(nn.Module):
    """Projects words; holds the words of no caption, for the unconditional half."""

    y_embedding: torch.Tensor

    def __init__(self, channels: int, width: int, words: int) -> None:
        super().__init__()
        self.y_proj = Feedforward(channels, width, width)
        self.register_buffer("y_embedding", torch.zeros(words, channels))

    def forward(self, caption: torch.Tensor) -> torch.Tensor:
        """Return `[batch, words, width]`."""
        projected: torch.Tensor = self.y_proj(caption)
        return projected


class PatchEmbedder(nn.Module):
    """Cuts a video into patches and embeds each."""

    def __init__(self, patch: tuple[int, int, int], channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `[batch, frames, tokens a frame, width]` of `[batch, channels, F, H, W]`."""
        patches: torch.Tensor = self.proj(x)
        return patches.flatten(3).permute(0, 2, 3, 1)


class FinalLayer(nn.Module):
    """Modulated projection to the patches' values."""

    def __init__(self, width: int, values: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, values)
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Return `[batch, tokens, values]` of `x`, `[batch, tokens, width]`."""
        shift, scale = (self.scale_shift_table + time[:, None]).chunk(2, dim=1)
        output: torch.Tensor = self.linear(modulated(plain_norm(x), shift, scale))
        return output


def split(x: torch.Tensor, axis: int, sizes: Sequence[int]) -> torch.Tensor:
    """Return `x` with one axis as several."""
    parts: torch.Tensor = x.unflatten(axis, sizes)  # type: ignore[no-untyped-call]
    return parts


def plain_norm(x: torch.Tensor) -> torch.Tensor:
    """Return the layer normalisation without weights."""
    return functional.layer_norm(x, x.shape[-1:], eps=1e-6)


def modulated(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return `x` scaled and shifted."""
    return x * (1 + scale) + shift


def position_embedding(
    rows: int, columns: int, width: int, scale: torch.Tensor, base: int
) -> torch.Tensor:
    """Return sines and cosines of the places of a frame's tokens, `[batch, tokens, width]`.

    Args:
        rows: of tokens.
        columns: of tokens.
        width: channels, a multiple of four: half of them for the column, half for the row.
        scale: of each video's resolution to that of training, float32 `[batch]`.
        base: tokens of a side of a square of as many tokens.
    """
    half = width // 2
    steps = torch.arange(0, half, 2, device=scale.device, dtype=torch.float32) / half

    def waves(count: int) -> torch.Tensor:
        places = torch.arange(count, device=scale.device, dtype=torch.float32) / scale[:, None]
        angles = (places * (base / count))[..., None] * (1.0 / LONGEST_PERIOD**steps)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    across = waves(columns)[:, None].expand(-1, rows, -1, -1)
    down = waves(rows)[:, :, None].expand(-1, -1, columns, -1)
    return torch.cat([across, down], dim=-1).flatten(1, 2)
