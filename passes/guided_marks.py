"""Marks that a denoiser's stand-in returns, and what guidance made of them."""

import torch

__all__ = ["apart", "first_weight", "is_unmixed", "marks_like", "unscaled"]


def marks_like(like: torch.Tensor, call: int) -> torch.Tensor:
    """Return ones in the first half of the batch, in the second zeros and ones by turns.

    Args:
        like: the denoiser's output.
        call: number of the call in the step; the second has one more where zeros and ones turn.
    """
    marks = torch.zeros(like.shape[0], like[0].numel(), dtype=like.dtype, device=like.device)
    marks[: like.shape[0] // 2] = 1
    marks += call
    marks[:, 1::2] = 1
    return marks.reshape(like.shape)


def first_weight(guided: torch.Tensor, separate: bool) -> float | None:
    """Return the weight of the first half in what guidance made of the marks, None if it isn't one.

    Both halves are one at every second place; at the others the first is one and the second zero
    in a batch, and in two calls the second is one above the first.
    """
    if not separate:
        return _other_than_one(guided)
    middle = guided.shape[0] // 2
    found = []
    for rows, first in ((guided[:middle], 1.0), (guided[middle:], 0.0)):
        value = _other_than_one(rows) if len(rows) else None
        found.append(None if value is None else first + 1 - value)
    known = [weight for weight in found if weight is not None]
    if len(known) < (2 if middle else 1) or max(known) - min(known) > 1e-4:
        return None
    return known[0]


def _other_than_one(guided: torch.Tensor) -> float | None:
    """Return the one value that is there beside ones, None if there are several, or no ones."""
    ones = (guided - 1).abs() <= 1e-6
    others = guided[~ones]
    value = others.mean().item() if others.numel() else 1.0
    if not ones.any() and guided[0].numel() > 1:
        return None
    even = ((others - value).abs() <= 1e-6 * max(1.0, abs(value))).all()
    return value if bool(even) else None


def unscaled(guided: torch.Tensor) -> torch.Tensor:
    """Return guided marks divided, along the last axis, by what became of the ones."""
    if guided.shape[-1] < 2:
        return guided
    ones = guided[..., 1::2].mean(-1, keepdim=True)
    return torch.where(ones > 0, guided / ones, guided)


def apart(output: torch.Tensor, sample: object) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return copies of what a scheduler is given: the mean, and the variance if there is one."""
    given = output.detach().clone()
    if isinstance(sample, torch.Tensor) and given.shape[1:2] == (2 * sample.shape[1],):
        mean, variance = given.chunk(2, dim=1)
        return mean, variance
    return given, None


def is_unmixed(guided: torch.Tensor) -> bool:
    """Whether marks are as they were made, but for their order."""
    half = guided.shape[0] // 2
    binary = ((guided == 0) | (guided == 1)).all()
    return bool(binary and (guided[:half] == 1).all() and (guided[half:] == 0).any())
