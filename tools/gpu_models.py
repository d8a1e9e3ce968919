"""Denoisers with random weights in the shapes of published ones; they need torch alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

__all__ = ["SHAPES", "Attention", "Denoiser", "JointDenoiser", "ModelShape", "arguments", "seeded"]


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a denoiser, and the batch that one image takes.

    Attributes:
        layers: blocks.
        width: channels of a token.
        heads: of an attention.
        tokens: of an image, a square grid.
        text_tokens: that cross- or joint attention sees, 0 for none.
        batch: both halves of classifier-free guidance.
    """

    layers: int
    width: int
    heads: int
    tokens: int
    text_tokens: int
    batch: int


SHAPES: Mapping[str, ModelShape] = {
    "DiT-XL/2-512": ModelShape(28, 1152, 16, 1024, 0, 16),
    "PixArt-Sigma-1K": ModelShape(28, 1152, 16, 4096, 300, 2),
    "PixArt-Sigma-2K": ModelShape(28, 1152, 16, 16384, 300, 2),
}
"""Of DiTFastAttn (arXiv 2406.08552), at its batch sizes: 8 images for DiT, one for PixArt."""

CHANNELS = 16
"""Of a patch of the latents: 2 x 2 of 4 channels."""
FREQUENCIES = 64


class Attention(nn.Module):
    """Self-attention, or cross-attention where a context is given."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k = nn.Linear(width, width), nn.Linear(width, width)
        self.to_v, self.to_out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """Return `[batch, tokens, width]`, projected."""
        seen = x if context is None else context
        query, key, value = (
            _by_head(part, self.heads) for part in (self.to_q(x), self.to_k(seen), self.to_v(seen))
        )
        out = functional.scaled_dot_product_attention(query, key, value)
        projected: torch.Tensor = self.to_out(out.transpose(1, 2).flatten(2))
        return projected


def _by_head(x: torch.Tensor, heads: int) -> torch.Tensor:
    """Return `[batch, heads, tokens, head_dim]` of `[batch, tokens, width]`."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


class _Mlp(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )


class _Time(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, t: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        steps = torch.arange(FREQUENCIES, device=t.device, dtype=torch.float32)
        angles = t[:, None] * torch.exp(-math.log(1e4) * steps / FREQUENCIES)
        embedded: torch.Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype))
        return embedded


class _Block(nn.Module):
    """Self-attention, cross-attention where there is text, MLP; scaled and shifted by time."""

    def __init__(self, width: int, heads: int, *, cross: bool) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn1 = Attention(width, heads)
        self.attn2 = Attention(width, heads) if cross else None
        self.mlp = _Mlp(width)

    def forward(
        self, x: torch.Tensor, time: torch.Tensor, text: torch.Tensor | None
    ) -> torch.Tensor:
        parts = self.modulation(functional.silu(time))[:, None].chunk(6, dim=-1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
        x = x + gate * self.attn1(self.norm(x) * (1 + scale) + shift)
        if self.attn2 is not None:
            x = x + self.attn2(x, text)
        out: torch.Tensor = x + mlp_gate * self.mlp(self.norm(x) * (1 + mlp_scale) + mlp_shift)
        return out


class Denoiser(nn.Module):
    """A diffusion transformer: tokens in, tokens out, as DiT (without text) and PixArt (with)."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        width = shape.width
        self.embed = nn.Linear(CHANNELS, width)
        self.places = nn.Parameter(torch.empty(1, shape.tokens, width))
        self.time = _Time(width)
        cross = shape.text_tokens > 0
        self.blocks = nn.ModuleList(
            _Block(width, shape.heads, cross=cross) for _ in range(shape.layers)
        )
        self.unembed = nn.Linear(width, CHANNELS)

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return what is predicted for the tokens of `x`, [batch, tokens, channels]."""
        hidden = self.embed(x) + self.places
        time = self.time(t, hidden.dtype)
        for block in self.blocks:
            hidden = block(hidden, time, text)
        predicted: torch.Tensor = self.unembed(hidden)
        return predicted


class _JointBlock(nn.Module):
    """Text and image attend together, text in front, and are projected apart."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.image_qkv, self.text_qkv = nn.Linear(width, 3 * width), nn.Linear(width, 3 * width)
        self.image_out, self.text_out = nn.Linear(width, width), nn.Linear(width, width)
        self.image_mlp, self.text_mlp = _Mlp(width), _Mlp(width)

    def forward(
        self, image: torch.Tensor, text: torch.Tensor, time: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        parts = zip(
            self.text_qkv(self.norm(text)).chunk(3, dim=-1),
            self.image_qkv(self.norm(image) + time[:, None]).chunk(3, dim=-1),
            strict=True,
        )
        query, key, value = (_by_head(torch.cat(part, dim=1), self.heads) for part in parts)
        out = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        words = text.shape[1]
        text = text + self.text_out(out[:, :words])
        image = image + self.image_out(out[:, words:])
        return image + self.image_mlp(self.norm(image)), text + self.text_mlp(self.norm(text))


class JointDenoiser(nn.Module):
    """A denoiser whose attentions see text and image together, as SD3 and FLUX have them."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.embed = nn.Linear(CHANNELS, shape.width)
        self.time = _Time(shape.width)
        self.blocks = nn.ModuleList(
            _JointBlock(shape.width, shape.heads) for _ in range(shape.layers)
        )
        self.unembed = nn.Linear(shape.width, CHANNELS)

    def forward(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Return what is predicted for the tokens of `x`, [batch, tokens, channels]."""
        image = self.embed(x)
        time = self.time(t, image.dtype)
        for block in self.blocks:
            image, text = block(image, text, time)
        predicted: torch.Tensor = self.unembed(image)
        return predicted


def seeded(module: nn.Module, seed: int = 0) -> nn.Module:
    """Redraw every weight, at a scale that keeps activations near one, and return the module."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.dim() == 2 else 0.1
            parameter.normal_(0, scale, generator=generator)
    return module.eval()


def arguments(
    shape: ModelShape, step: int, dtype: torch.dtype, device: str = "cpu"
) -> dict[str, torch.Tensor]:
    """Return what a denoiser is called with at a step: other latents each time, the same text."""
    drawn = torch.Generator().manual_seed(1 + step)
    given = {
        "x": torch.randn(shape.batch, shape.tokens, CHANNELS, generator=drawn).to(dtype),
        "t": torch.full((shape.batch,), 900.0 - 37.0 * step),
    }
    if shape.text_tokens:
        fixed = torch.Generator().manual_seed(0)
        size = (shape.batch, shape.text_tokens, shape.width)
        given["text"] = torch.randn(size, generator=fixed).to(dtype)
    return {name: value.to(device) for name, value in given.items()}
