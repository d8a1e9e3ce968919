"""How a plan was found, and what else was tried."""

from collections.abc import Mapping
from dataclasses import dataclass

from .method import Method

__all__ = ["Gate", "Goal", "Origin", "Tried"]


@dataclass(frozen=True)
class Gate:
    """Methods that a search never tried, since they aren't faster on the target.

    Attributes:
        target: where that was measured, such as `onnx, CPUExecutionProvider`.
        refused: methods by site; sites where none was refused are left out.
    """

    target: str
    refused: Mapping[str, tuple[Method, ...]]


@dataclass(frozen=True)
class Goal:
    """What a search for a budget had to reach, as far as it was predicted: one of the two.

    Attributes:
        speedup: how many times as fast as uncompressed.
        budget_ms: milliseconds of a generation.
    """

    speedup: float | None = None
    budget_ms: float | None = None

    def __str__(self) -> str:
        """Return it in words."""
        if self.budget_ms is None:
            return f"a speedup of {self.speedup:g}"
        return f"a budget of {self.budget_ms:.12g} ms"


@dataclass(frozen=True)
class Origin:
    """How a plan was found.

    Attributes:
        search: name of the search: `greedy`, `local` or `ilp`; behind a comma what sets the plan
            apart from what was found, such as `on other weights`.
        threshold: δ, the loss allowed at the last site, or for `ilp` in a step.
        metric: name of the loss.
        seed: of the latents that the search sampled from.
        samples: how many it calibrated on.
        ditc: version that searched.
        gate: what measured latencies ruled out, None if the search had none.
        goal: what the threshold was the least for, None if it was given.
    """

    search: str
    threshold: float
    metric: str
    seed: int
    samples: int
    ditc: str
    gate: Gate | None = None
    goal: Goal | None = None

    @property
    def algorithm(self) -> str:
        """The search alone, without what follows a comma."""
        return self.search.partition(", ")[0]

    def to_json(self) -> dict[str, object]:
        """Return what a plan file holds of it."""
        record: dict[str, object] = {
            "search": self.search,
            "threshold": self.threshold,
            "metric": self.metric,
            "seed": self.seed,
            "samples": self.samples,
            "ditc": self.ditc,
        }
        if self.gate is not None:
            record["target"] = self.gate.target
            record["gated"] = {
                site: [str(method) for method in methods]
                for site, methods in self.gate.refused.items()
            }
        if self.goal is not None:
            goal = {"speedup": self.goal.speedup, "budget_ms": self.goal.budget_ms}
            record |= {name: value for name, value in goal.items() if value is not None}
        return record


@dataclass(frozen=True)
class Tried:
    """A plan that a search for a budget came by.

    Attributes:
        threshold: δ it was searched with.
        loss: the loss of its final latents against uncompressed ones of the same seed.
        latency_ms: predicted for a generation from measured latencies; None without.
        multiply_adds_left: share of the model's multiply-adds in a generation.
    """

    threshold: float
    loss: float
    latency_ms: float | None
    multiply_adds_left: float

    def to_json(self) -> dict[str, object]:
        """Return what a plan file holds of it."""
        known = {} if self.latency_ms is None else {"latency_ms": self.latency_ms}
        return {
            "threshold": self.threshold,
            "loss": self.loss,
            **known,
            "multiply_adds_left": self.multiply_adds_left,
        }
