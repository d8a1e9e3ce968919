"""A tiny stand-in of a diffusers transformer: its configuration, and arguments to call it."""

import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from diffusers.models import transformers
from diffusers.models.modeling_utils import ModelMixin

from ditc.passes.program import CfgLayout

__all__ = [
    "BATCH",
    "TEXT",
    "Arguments",
    "Draw",
    "Tiny",
    "masked_video",
    "transformer_classes",
    "video",
]

BATCH = 2
"""Both halves of classifier-free guidance, of one sample each."""

TEXT = 6
"""Tokens of the text of video models."""

Arguments = dict[str, object]


class Draw:
    """Random arguments: what is noisy changes from step to step, all else stays as it is.

    Args:
        step: denoising step, 0 to 19.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        self._noise = torch.Generator().manual_seed(1000 + step)
        self._given = torch.Generator().manual_seed(7)

    def noisy(self, *shape: int) -> torch.Tensor:
        """Return latents, new at every step."""
        return torch.randn(shape, generator=self._noise)

    def time(self, *shape: int, scale: float = 1000.0) -> torch.Tensor:
        """Return a timestep, falling from `scale`; one a sample if no shape is given."""
        return torch.full(shape or (BATCH,), scale * (0.95 - self.step / 20))

    def given(self, *shape: int) -> torch.Tensor:
        """Return conditioning, the same at every step."""
        return torch.randn(shape, generator=self._given)

    def tokens(self, *shape: int, below: int) -> torch.Tensor:
        """Return integers from 0 up, the same at every step."""
        return torch.randint(0, below, shape, generator=self._given)

    def mask(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return a mask over padded tokens: of the first sample the last two are padding."""
        visible = torch.ones(shape)
        visible[0, ..., -2:] = 0
        return visible.to(dtype)


def video(d: Draw, channels: int = 4) -> Arguments:
    """Return latents of two frames of 8 x 8, a timestep and text."""
    return {
        "hidden_states": d.noisy(BATCH, channels, 2, 8, 8),
        "timestep": d.time(),
        "encoder_hidden_states": d.given(BATCH, TEXT, 12),
    }


def masked_video(d: Draw) -> Arguments:
    """Return the same, some of the text masked."""
    return {**video(d), "encoder_attention_mask": d.mask(BATCH, TEXT)}


@dataclass(frozen=True)
class Tiny:
    """A diffusers transformer at a tiny size.

    Attributes:
        name: class in `diffusers`.
        config: its arguments.
        call: makes the arguments of one call.
        variant: which of several models of that class, if there are several.
        cfg: order of the halves in the batch, None where the batch is no batch of halves.
        latents: argument that holds the latents, where its name doesn't say so.
        timestep: argument that holds the timestep, where its name doesn't say so.
        fused: whether a module of attention does more, as projecting what an MLP makes.
    """

    name: str
    config: Mapping[str, object] = field(repr=False)
    call: Callable[[Draw], Arguments] = field(repr=False)
    variant: str = ""
    cfg: CfgLayout | None = "uncond-first"
    latents: str | None = None
    timestep: str | None = None
    fused: bool = False

    @property
    def title(self) -> str:
        """Name and variant."""
        return f"{self.name} ({self.variant})" if self.variant else self.name

    def kwargs(self, step: int = 0) -> Arguments:
        """Return the arguments of a step."""
        return self.call(Draw(step))

    def module(self, seed: int = 0) -> torch.nn.Module:
        """Return the model with random weights of a size that keeps values moderate."""
        made = transformer_classes()[self.name](**self.config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for path, parameter in made.named_parameters():
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(_scaled(path, drawn).to(parameter.dtype))
        module: torch.nn.Module = made.float().eval()
        return module


def _scaled(path: str, drawn: torch.Tensor) -> torch.Tensor:
    """Norms' weights lie around one, biases and tables around zero, the rest keeps variance."""
    if drawn.dim() < 2:
        return 1 + 0.2 * drawn if path.endswith("weight") else 0.3 * drawn
    return drawn / math.sqrt(math.prod(drawn.shape[1:]))


def transformer_classes() -> dict[str, type[ModelMixin]]:
    """Return every model of `diffusers.models.transformers`, by name."""
    found: dict[str, type[ModelMixin]] = {}
    for entry in sorted(pkgutil.iter_modules(transformers.__path__), key=lambda entry: entry.name):
        module = importlib.import_module(f"{transformers.__name__}.{entry.name}")
        for name, value in vars(module).items():
            if not isinstance(value, type) or value.__module__ != module.__name__:
                continue
            if issubclass(value, ModelMixin):
                found[name] = value
    return found
