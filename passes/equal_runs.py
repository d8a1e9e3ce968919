"""Find the runs that share a graph: those of equal methods that keep the same residuals."""

from dataclasses import dataclass

from .calls import Call, Run
from .method import Method

__all__ = ["Groups", "Row", "Shared", "rows_of"]

Groups = tuple[tuple[int, ...], ...]
"""Steps that run one graph, or one for each of their calls."""


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


def rows_of(runs: tuple[Run, ...], groups: Groups) -> dict[Row, Shared]:
    """Return the distinct graphs, and what runs each; the steps of a group run one graph a call."""
    rows: dict[Row, Shared] = {}
    group_of = {step: number for number, group in enumerate(groups) for step in group}
    together: dict[tuple[int, Call], list[int]] = {}
    for index, run in enumerate(runs):
        together.setdefault((group_of[run.step], run.call), []).append(index)
    for numbers in together.values():
        members = [runs[index] for index in numbers]
        row = Row(
            tuple(sorted(members[0].methods.items())),
            frozenset[str]().union(*(run.keep_residuals for run in members)),
        )
        known = rows.get(row, Shared())
        outputs = known.keep_outputs.union(*(run.keep_outputs for run in members))
        rows[row] = Shared((*known.runs, *numbers), outputs)
    return rows
