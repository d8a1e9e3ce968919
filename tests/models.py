"""Tiny denoisers with random weights, and arguments to call them with."""

import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel
from torch import nn

BATCH = 4
CHANNELS = 3
SIZE = 10
TOKENS = 25
"""A latent of 10 x 10 in patches of 2 x 2: 25 tokens, which no window divides evenly."""

Kwargs = dict[str, object]


def randomised(module: nn.Module, seed: int = 0, std: float = 0.2) -> nn.Module:
    """Redraw every weight, so that no zero-initialised gate hides an attention."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return module.eval()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def dit(layers: int = 3, seed: int = 0) -> nn.Module:
    return randomised(
        DiTTransformer2DModel(
            num_attention_heads=3,
            attention_head_dim=8,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_layers=layers,
            norm_num_groups=1,
            sample_size=SIZE,
            num_embeds_ada_norm=10,
        ),
        seed,
    )


def dit_kwargs(seed: int = 0, batch: int = BATCH) -> Kwargs:
    half = torch.arange(batch // 2) % 10
    return {
        "hidden_states": noise(batch, CHANNELS, SIZE, SIZE, seed=seed),
        "timestep": torch.full((batch,), 900 - 40 * (seed % 20)),
        "class_labels": torch.cat([half, torch.full((batch - batch // 2,), 10)]),
    }


def pixart(layers: int = 2, seed: int = 0) -> nn.Module:
    return randomised(
        PixArtTransformer2DModel(
            num_attention_heads=3,
            attention_head_dim=8,
            in_channels=CHANNELS,
            out_channels=2 * CHANNELS,
            num_layers=layers,
            norm_num_groups=1,
            cross_attention_dim=24,
            caption_channels=12,
            sample_size=SIZE,
            use_additional_conditions=False,
        ),
        seed,
        std=0.1,
    )


def pixart_kwargs(seed: int = 0) -> Kwargs:
    mask = torch.ones(BATCH, 7)
    mask[: BATCH // 2, 3:] = 0
    return {
        "hidden_states": noise(BATCH, CHANNELS, SIZE, SIZE, seed=seed),
        "encoder_hidden_states": noise(BATCH, 7, 12, seed=99),
        "timestep": torch.full((BATCH,), 900 - 40 * (seed % 20)),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        "encoder_attention_mask": mask,
    }


class FusedQkvAttention(nn.Module):
    """One projection for query, key and value; softmax written out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (query * (width // self.heads) ** -0.5 @ key.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((weights @ value).transpose(1, 2).reshape(batch, tokens, width))


class MergedHeadsAttention(nn.Module):
    """Heads merged into the batch, scores by `baddbmm`: diffusers' attention before torch 2."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        self.to_out = nn.Linear(width, width)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        x = x.reshape(batch, tokens, self.heads, width // self.heads).permute(0, 2, 1, 3)
        return x.reshape(batch * self.heads, tokens, width // self.heads)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        query, key, value = (self._split(make(x)) for make in (self.to_q, self.to_k, self.to_v))
        scores = torch.baddbmm(
            torch.empty(query.shape[0], tokens, tokens),
            query,
            key.transpose(-1, -2),
            beta=0,
            alpha=(width // self.heads) ** -0.5,
        )
        out = torch.bmm(scores.softmax(dim=-1), value)
        out = out.reshape(batch, self.heads, tokens, -1).permute(0, 2, 1, 3)
        return self.to_out(out.reshape(batch, tokens, width))


class PlainDenoiser(nn.Module):
    """A denoiser without diffusers; tokens come in, tokens go out.

    Args:
        attention: class of its attentions, made as `attention(width, heads)`.
        layers: how many blocks.
        skip: whether attention is added to what it is given.
    """

    def __init__(
        self, attention: type[nn.Module], layers: int = 2, width: int = 16, skip: bool = True
    ) -> None:
        super().__init__()
        self.skip = skip
        self.time = nn.Linear(1, width)
        self.attentions = nn.ModuleList(attention(width, 2) for _ in range(layers))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU())
            for _ in range(layers)
        )
        self.downs = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(layers))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x = x + self.time(t[:, None])[:, None]
        for attention, mlp, down in zip(self.attentions, self.mlps, self.downs, strict=True):
            x = x + attention(x) if self.skip else attention(x)
            x = x + down(mlp(x))
        return x


class SingleModule(nn.Module):
    """Functional attention, everything in one module: sites have no path of their own."""

    def __init__(self, layers: int = 2, width: int = 16) -> None:
        super().__init__()
        shapes = [(3 * width, width), (width, width)] * layers
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(shape)) for shape in shapes)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x + torch.sin(t)[:, None, None]
        batch, tokens, width = x.shape
        first = x
        for qkv, proj in zip(self.weights[::2], self.weights[1::2], strict=True):
            query, key, value = nn.functional.linear(x, qkv).chunk(3, dim=-1)
            query, key, value = (
                part.view(batch, tokens, 2, width // 2).transpose(1, 2)
                for part in (query, key, value)
            )
            out = nn.functional.scaled_dot_product_attention(query, key, value, scale=0.3)
            x = x + nn.functional.linear(out.transpose(1, 2).flatten(2), proj).tanh()
        return x, x - first


def fused_qkv(layers: int = 2, skip: bool = True) -> nn.Module:
    return randomised(PlainDenoiser(FusedQkvAttention, layers, skip=skip))


def merged_heads(layers: int = 2) -> nn.Module:
    return randomised(PlainDenoiser(MergedHeadsAttention, layers))


def single_module() -> nn.Module:
    return randomised(SingleModule())


def plain_kwargs(seed: int = 0, batch: int = BATCH, tokens: int = TOKENS) -> Kwargs:
    return {"x": noise(batch, tokens, 16, seed=seed), "t": torch.full((batch,), 1 - seed / 20)}


class SdpaAttention(nn.Module):
    """Three projections, fused attention, an output projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k = nn.Linear(width, width), nn.Linear(width, width)
        self.to_v, self.to_out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        query, key, value = (
            layer(x).view(batch, tokens, self.heads, -1).transpose(1, 2)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        out = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.to_out(out.transpose(1, 2).reshape(batch, tokens, width))


def small() -> nn.Module:
    return randomised(PlainDenoiser(SdpaAttention, layers=1))


def stacked() -> nn.Module:
    """Attention straight behind attention, the last one at the very end."""
    return randomised(Stacked())


class Stacked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = SdpaAttention(16, 2), SdpaAttention(16, 2)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x * t[:, None, None]))
