"""Count a schedule's multiply-adds, against the same steps uncompressed."""

from collections.abc import Mapping
from dataclasses import dataclass

from .costs import SiteCost
from .counting import multiply_adds, site_cost
from .scheduling import Bucket, Schedule

__all__ = ["ScheduleCost", "schedule_cost"]


@dataclass(frozen=True)
class ScheduleCost:
    """Multiply-adds of a schedule over all steps, against the same steps uncompressed.

    Attributes:
        attention: of the eligible sites, projections and residuals among it.
        attention_full: the same, uncompressed.
        model: of the whole model.
        model_full: the same, uncompressed.
        steps: of the whole model, step by step.
    """

    attention: int
    attention_full: int
    model: int
    model_full: int
    steps: tuple[int, ...]

    @property
    def attention_left(self) -> float:
        """Share of the attention sites' multiply-adds that is left."""
        return self.attention / self.attention_full if self.attention_full else 1.0

    @property
    def model_left(self) -> float:
        """Share of the whole model's multiply-adds that is left."""
        return self.model / self.model_full


def schedule_cost(schedule: Schedule) -> ScheduleCost:
    """Return what a schedule costs; nothing is rewritten for it."""
    program, plan = schedule.program, schedule.plan
    costs = {
        site.name: site_cost(program, site) for site in program.sites if site.name in plan.windows
    }
    attention_full = sum(cost.full for cost in costs.values())
    model_full = multiply_adds(program.graph_module.graph)
    attention = [0] * schedule.steps
    for run in schedule.runs:
        attention[run.step] += _attention(schedule.bucket_of(run.step, run.call), costs)
    calls = len(schedule.runs) // schedule.steps
    rest = calls * (model_full - attention_full)
    steps = tuple(rest + left for left in attention)
    return ScheduleCost(
        attention=sum(attention),
        attention_full=calls * attention_full * schedule.steps,
        model=sum(steps),
        model_full=calls * model_full * schedule.steps,
        steps=steps,
    )


def _attention(bucket: Bucket, costs: Mapping[str, SiteCost]) -> int:
    """Return the multiply-adds of a bucket's sites in one run."""
    return sum(
        cost.of(
            bucket.methods[name],
            bucket.plan.windows[name],
            keeps_residual=name in bucket.keep_residuals,
        )
        for name, cost in costs.items()
    )
