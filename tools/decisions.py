"""What searches decide by, and what they record."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from ditc.passes import Losses, Method, Plan
from ditc.runtime.errors import PlanError

__all__ = [
    "CANDIDATES",
    "LARGEST_ERROR",
    "METRICS",
    "Checkpoint",
    "Decided",
    "Found",
    "check_finite",
    "check_loss",
    "relative_loss",
    "spread_of",
    "squared_error",
]

CANDIDATES = (Method.AST, Method.WA_RS_ASC, Method.WA_RS, Method.ASC)
"""Methods in the order in which the paper tries them; `full` where none is good enough."""
METRICS = {
    "greedy": "relative, symmetric, clipped at 10",
    "local": "relative squared error at the site's own output",
    "ilp": "relative squared error at the site's own output",
}
"""What each search calls the loss it decides by."""
LARGEST_ERROR = 1e6
"""A relative squared error is cut off here: that of an output that doesn't vary has no bound."""


@dataclass(frozen=True)
class Decided:
    """A step that a search has decided.

    Attributes:
        methods: method of each site.
        losses: loss of every candidate that was tried, by site.
        multiply_adds: computed by the search up to and with this step.
        plain_multiply_adds: the same of a search that runs the whole model each time: for the
            reference, every candidate and the step as decided if it is greedy, once a step if it
            isn't.
    """

    methods: Mapping[str, Method]
    losses: Mapping[str, Losses]
    multiply_adds: int
    plain_multiply_adds: int


@dataclass(frozen=True)
class Checkpoint:
    """Where a search is between two steps.

    Attributes:
        steps: those that are decided.
        slots: tensors that the slots hold.
        trajectory: tensors that sampling goes on from.
    """

    steps: tuple[Decided, ...]
    slots: Mapping[str, torch.Tensor] = field(repr=False)
    trajectory: Mapping[str, torch.Tensor] = field(repr=False)


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        plan: the plan, with the loss of every candidate that was tried.
        multiply_adds: what the search computed.
        plain_multiply_adds: what it would have been with whole runs of the model, as in `Decided`.
        latents: where its sampling ended, `[samples, …]`.
    """

    plan: Plan
    multiply_adds: int
    plain_multiply_adds: int
    latents: npt.NDArray[np.float32] = field(repr=False)


def relative_loss(reference: torch.Tensor, output: torch.Tensor) -> float:
    """Return `mean(clip(|O − O'| / (max(|O|, |O'|) + 1e-6), 0, 10))`.

    Source: DiTFastAttn (arXiv 2406.08552), equation 6; symmetric in its arguments.
    """
    larger = torch.maximum(reference.abs(), output.abs())
    return ((reference - output).abs() / (larger + 1e-6)).clamp(0, 10).mean().item()


def spread_of(reference: torch.Tensor) -> float:
    """Return `Σ(y_o − mean y_o)²`, which squared errors are relative to."""
    exact = reference.double()
    return (exact - exact.mean()).square().sum().item()


def squared_error(reference: torch.Tensor, output: torch.Tensor, spread: float) -> float:
    """Return `Σ(y_m − y_o)² / Σ(y_o − mean y_o)²`, 10⁶ at most.

    Source: DiTFastAttnV2 (arXiv 2503.22796), the relative squared error of a head, here of a site.

    Args:
        reference: y_o, of any shape.
        output: y_m, of the same.
        spread: `spread_of(reference)`.
    """
    error: float = torch.linalg.vector_norm(output - reference, dtype=torch.float64).item() ** 2
    if not math.isfinite(error) or not error:
        return error
    return error / spread if error < LARGEST_ERROR * spread else LARGEST_ERROR


def check_loss(step: int, site: str, loss: float) -> None:
    """Refuse a loss that isn't finite: it means that the model's numbers aren't."""
    check_finite(f"step {step}, site {site}", math.isfinite(loss))


def check_finite(where: str, finite: bool) -> None:
    """Refuse a model whose numbers aren't finite.

    Raises:
        PlanError: if they aren't.
    """
    if not finite:
        raise PlanError(
            f"{where}: the model returns numbers that aren't finite: search with a smaller "
            "guidance scale, or a sampler that suits the model"
        )
