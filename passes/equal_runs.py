"""Find the runs that share a graph: those of equal methods that keep the same residuals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .calls import Call, Run
from .method import Method

__all__ = ["Groups", "Keep", "Row", "Shared", "rows_of"]

Groups = tuple[tuple[int, ...], ...]
"""Steps that run one graph, or one for each of their calls."""


@dataclass(frozen=True)
class Keep:
    """The sites whose output, and whose residual, a graph writes to a slot."""

    outputs: frozenset[str]
    residuals: frozenset[str]

    def __or__(self, other: "Keep") -> "Keep":
        """Return what either keeps."""
        return Keep(self.outputs | other.outputs, self.residuals | other.residuals)

    def beyond(self, other: "Keep") -> frozenset[str]:
        """Return the sites of which something is kept that the other doesn't keep."""
        return (self.outputs - other.outputs) | (self.residuals - other.residuals)


@dataclass(frozen=True)
class Row:
    """What a graph computes: runs of equal rows share it."""

    methods: tuple[tuple[str, Method], ...]
    keep_residuals: frozenset[str]


@dataclass(frozen=True)
class Shared:
    """What the runs of a row need: their numbers, and the outputs that one of them has to write."""

    runs: tuple[int, ...] = ()
    keep_outputs: frozenset[str] = frozenset()


def rows_of(
    runs: tuple[Run, ...], groups: Groups, kept: Sequence[Mapping[Call, Keep]] = ()
) -> dict[Row, Shared]:
    """Return the distinct graphs, and what runs each; the steps of a group run one graph a call.

    Args:
        runs: what the calls of all steps do.
        groups: of steps.
        kept: what the graphs of each group write, whether or not it is read.
    """
    rows: dict[Row, Shared] = {}
    group_of = {step: number for number, group in enumerate(groups) for step in group}
    together: dict[tuple[int, Call], list[int]] = {}
    for index, run in enumerate(runs):
        together.setdefault((group_of[run.step], run.call), []).append(index)
    for (group, call), numbers in together.items():
        members = [runs[index] for index in numbers]
        keep = kept[group][call] if kept else Keep(frozenset(), frozenset())
        row = Row(
            tuple(sorted(members[0].methods.items())),
            keep.residuals.union(*(run.keep_residuals for run in members)),
        )
        known = rows.get(row, Shared())
        outputs = keep.outputs.union(known.keep_outputs, *(run.keep_outputs for run in members))
        rows[row] = Shared((*known.runs, *numbers), outputs)
    return rows
