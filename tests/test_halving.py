"""Following the batch axis through layouts, and halving the sizes written into them."""

import pytest
import torch
from torch import nn

from ditc.passes import Plan, TorchSession, capture, schedule
from ditc.runtime.errors import PassError

from . import models
from .reference import Eager

HEADS = 2


def by_view(x: torch.Tensor) -> torch.Tensor:
    return x.view(4, 25, HEADS, 8).transpose(1, 2)


def by_unflatten(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def by_permute(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, 25, HEADS, 8).permute(0, -2, 1, 3)


def by_split(x: torch.Tensor) -> torch.Tensor:
    return torch.stack(x.split(8, dim=-1)).permute(1, 0, 2, 3)


def by_chunks(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([part.unsqueeze(1) for part in x.chunk(HEADS, dim=2)], dim=1)


def by_select(x: torch.Tensor) -> torch.Tensor:
    parts = x.unsqueeze(0).unflatten(3, (HEADS, 8))
    return parts.select(0, 0).transpose(-3, -2)


def by_squeeze(x: torch.Tensor) -> torch.Tensor:
    x = x.unsqueeze(1).expand(4, 1, 25, 16).squeeze(1)
    return by_unflatten(x)


def by_flatten(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(0, 1).reshape(4, 25, HEADS, 8).transpose(1, 2)


def by_repeat(x: torch.Tensor) -> torch.Tensor:
    return by_view(x)[:, :, None].repeat(1, 1, 2, 1, 1).select(2, 1)


def by_samples(x: torch.Tensor) -> torch.Tensor:
    return by_view(x.unflatten(0, (4, 1)).flatten(0, 1))


def scaled(x: torch.Tensor) -> torch.Tensor:
    return by_view(nn.functional.normalize(x, dim=-1) * torch.linspace(0.5, 1.5, 16))


def rms_normed(x: torch.Tensor) -> torch.Tensor:
    heads = by_view(x)
    return heads * torch.rsqrt(
        heads.pow(2).mean(-1, keepdim=True) + heads.sum((1, 3))[:, None, :, None] ** 2
    )


def rotated(x: torch.Tensor) -> torch.Tensor:
    """Rotary positions: pairs of channels turned by an angle that grows with the token."""
    heads = by_view(x)
    real, imaginary = heads.reshape(4, HEADS, 25, -1, 2).unbind(-1)
    turned = torch.stack([-imaginary, real], dim=-1).flatten(3)
    angle = torch.arange(25.0)[:, None] * torch.linspace(0, 1, 8)
    return heads * angle.cos() + turned * angle.sin()


def mean_of_batch(x: torch.Tensor) -> torch.Tensor:
    return by_view(x - x.mean(0, keepdim=True))


def batch_inside(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(0, 1).flatten(0, 1).reshape(25, 4, HEADS, 8).permute(1, 2, 0, 3)


def by_halves(x: torch.Tensor) -> torch.Tensor:
    return by_view(x.unflatten(0, (2, 2)).flatten(0, 1))


def halves_inside(x: torch.Tensor) -> torch.Tensor:
    return by_view(x.unflatten(0, (2, 2)).transpose(0, 1).flatten(0, 1))


class Attention(nn.Module):
    heads = HEADS

    def __init__(self, split) -> None:
        super().__init__()
        self.split = split
        self.to_q, self.to_k = nn.Linear(16, 16), nn.Linear(16, 16)
        self.to_v, self.to_out = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key = self.split(self.to_q(x)), self.split(self.to_k(x))
        out = nn.functional.scaled_dot_product_attention(query, key, by_view(self.to_v(x)))
        return self.to_out(out.transpose(1, 2).flatten(2))


class Model(nn.Module):
    def __init__(self, split) -> None:
        super().__init__()
        self.attention = Attention(split)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.attention(x)


def run(split, method: str) -> tuple[nn.Module, torch.Tensor]:
    module = models.randomised(Model(split))
    kwargs = {"x": models.noise(4, 25, 16)}
    program = capture(module, kwargs, cfg="uncond-first")
    session = TorchSession(schedule(program, Plan.uniform(program, 2, method)))
    session(0, **kwargs)
    out = session(1, x=models.noise(4, 25, 16, seed=1))
    assert isinstance(out, torch.Tensor)
    return module, out


@pytest.mark.parametrize(
    "split",
    [
        by_view,
        by_unflatten,
        by_permute,
        by_chunks,
        by_squeeze,
        by_flatten,
        by_repeat,
        by_samples,
        by_halves,
    ],
    ids=lambda split: split.__name__,
)
def test_layouts_of_heads(split) -> None:
    module, found = run(split, "wa-rs+asc")
    cells = [{"attention": "full"}, {"attention": "wa-rs+asc"}]
    eager = Eager(module, {"attention": "attention"}, cells, {"attention": (3, 1)}, "uncond-first")
    eager(0, x=models.noise(4, 25, 16))
    (expected,) = eager(1, x=models.noise(4, 25, 16, seed=1))
    assert (found - expected).abs().max() / expected.abs().max() <= 1e-5


@pytest.mark.parametrize(
    "split", [by_split, by_select, scaled, rms_normed, rotated], ids=lambda split: split.__name__
)
def test_more_layouts_and_norms(split) -> None:
    """Sharing at step 1 gives what the conditional half gives on its own."""
    module, found = run(split, "asc")
    x = models.noise(4, 25, 16, seed=1)
    with torch.no_grad():
        expected = x + module.attention(x)[2:].repeat(2, 1, 1)
    assert (found - expected).abs().max() / expected.abs().max() <= 1e-5


def test_means_over_the_batch_are_refused() -> None:
    with pytest.raises(PassError, match=r"node mean: aten.mean.dim reduces the batch"):
        run(mean_of_batch, "asc")


@pytest.mark.parametrize("split", [batch_inside, halves_inside], ids=lambda split: split.__name__)
def test_layouts_in_which_halves_are_no_halves_of_an_axis(split) -> None:
    with pytest.raises(PassError, match=r"pass share-cfg: node (un)?flatten"):
        run(split, "asc")


class _Weighted(nn.Module):
    """What an attention takes is weighted by ones, of which there are as many as samples."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = models.SdpaAttention(16, HEADS)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        first, *_ = x.new_ones(models.BATCH).unbind(0)
        return (
            x
            + self.attention(torch.cat([x * first + t[:, None, None], x.new_zeros(4, 2, 16)], 1))[
                :, :25
            ]
        )


def test_values_that_are_the_same_everywhere_hold_no_batch() -> None:
    module = models.randomised(_Weighted())
    program = capture(module, models.plain_kwargs(), cfg="uncond-first")
    plan = Plan.uniform(program, 3, "asc")
    session = TorchSession(schedule(program, plan))
    cells = [{"attention": str(row["attention"])} for row in plan.cells]
    eager = Eager(module, {"attention": "attention"}, cells, {"attention": (3, 1)}, "uncond-first")
    for step in range(3):
        kwargs = models.plain_kwargs(step)
        (expected,) = eager(step, **kwargs)
        assert (session(step, **kwargs) - expected).abs().max() <= 1e-5 * expected.abs().max()
