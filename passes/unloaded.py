"""Weights that aren't loaded: parameters on the meta device, whose values lie somewhere else.

A model of which nothing but shapes is held is captured as any other: while it runs, its weights
are fake tensors. What touches a weight becomes fake itself, all else is computed, so that tables a
model makes of positions are real, and what it decides by its conditioning can be read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

__all__ = ["Weights", "has_unloaded", "is_stood_in", "standing_in", "unloaded_like"]


class Weights(Protocol):
    """Where the values of a program's weights lie that aren't loaded."""

    def tensor(self, name: str) -> torch.Tensor:
        """Return the values of a weight, in a tensor of the caller's own.

        Args:
            name: as the module names its parameter.

        Raises:
            DitcError: if there is no such weight, or it can't be read.
        """
        ...

    def check(self) -> None:
        """Check that the values are those that were there at capture.

        Raises:
            DitcError: if they changed since.
        """
        ...


def has_unloaded(module: torch.nn.Module) -> bool:
    """Whether a module has parameters or buffers on the meta device."""
    return any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))


def is_stood_in(module: torch.nn.Module) -> bool:
    """Whether fake tensors are in the place of a module's weights."""
    return any(
        isinstance(tensor, FakeTensor) for tensor in (*module.parameters(), *module.buffers())
    )


def unloaded_like(value: torch.Tensor) -> torch.Tensor:
    """Return a weight of a tensor's shape and dtype that isn't loaded."""
    made = torch.empty(value.shape, dtype=value.dtype, device="meta")
    if isinstance(value, torch.nn.Parameter):
        return torch.nn.Parameter(made, requires_grad=False)
    return made


@contextmanager
def standing_in(module: torch.nn.Module) -> Iterator[None]:
    """Put fake tensors of the CPU in the place of weights that aren't loaded."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made: dict[int, torch.Tensor] = {}
    replaced = [
        (held, name, tensor)
        for part in module.modules()
        for held in (part._parameters, part._buffers)
        for name, tensor in held.items()
        if tensor is not None and tensor.is_meta
    ]
    for held, name, tensor in replaced:
        if id(tensor) not in made:
            made[id(tensor)] = _fake(tensor, mode)
        held[name] = made[id(tensor)]  # type: ignore[assignment]
    try:
        yield
    finally:
        for held, name, tensor in replaced:
            held[name] = tensor  # type: ignore[assignment]


def _fake(tensor: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    with mode:
        made = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    assert isinstance(made, FakeTensor)
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(made, requires_grad=False)
    return made
