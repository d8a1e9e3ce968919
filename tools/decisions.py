"""What a greedy search decides by, and what it records."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ditc.passes import Losses, Method, Plan

from .thresholds import threshold_of

__all__ = [
    "CANDIDATES",
    "METRIC",
    "Checkpoint",
    "Decided",
    "Found",
    "relative_loss",
    "threshold_of",
]

CANDIDATES = (Method.AST, Method.WA_RS_ASC, Method.WA_RS, Method.ASC)
"""Methods in the order in which the paper tries them; `full` where none is good enough."""
METRIC = "relative, symmetric, clipped at 10"


@dataclass(frozen=True)
class Decided:
    """A step that a search has decided.

    Attributes:
        methods: method of each site.
        losses: loss of every candidate that was tried, by site.
        multiply_adds: computed by the search up to and with this step.
        plain_multiply_adds: the same of a search that runs the whole model each time.
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
        plain_multiply_adds: what it would have been with a whole run of the model for the
            reference and for every candidate.
    """

    plan: Plan
    multiply_adds: int
    plain_multiply_adds: int


def relative_loss(reference: torch.Tensor, output: torch.Tensor) -> float:
    """Return `mean(clip(|O − O'| / (max(|O|, |O'|) + 1e-6), 0, 10))`.

    Source: DiTFastAttn (arXiv 2406.08552), equation 6; symmetric in its arguments.
    """
    larger = torch.maximum(reference.abs(), output.abs())
    return ((reference - output).abs() / (larger + 1e-6)).clamp(0, 10).mean().item()
