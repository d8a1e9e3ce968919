"""Little modules as programs, for passes that look at a few nodes only."""

import torch
from torch import nn

from ditc.passes import Program, capture

from .models import noise


class _Denoiser(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.body(x, t)


def traced(body: nn.Module) -> Program:
    """Return a module of latents [2, 5, 4] and a timestep [2] as a program without sites."""
    return capture(_Denoiser(body), {"x": noise(2, 5, 4), "t": torch.ones(2)}, cfg=None)
