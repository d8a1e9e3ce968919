"""Specialise a program: what all buckets share is changed before any of them is rewritten."""

from dataclasses import dataclass

from ditc.passes.folding import fold_halves
from ditc.passes.guiding import fuse_guidance
from ditc.passes.program import Program
from ditc.passes.splitting import split_prologue

__all__ = ["Specialisation"]


@dataclass(frozen=True)
class Specialisation:
    """What is done to a program, in this order; `ditc.export.compile` says what each does.

    Attributes:
        steps: of the schedule.
        folds: whether equal halves are folded.
        guides: whether guidance is fused.
        splits: whether a prologue is split off.
        holds: whether a graph that runs one step holds its timestep; `prepared` sees to that, as
            it is of a bucket, not of the program.
    """

    steps: int
    folds: bool
    guides: bool
    splits: bool
    holds: bool = False

    def of(self, program: Program, like: Program | None = None) -> Program:
        """Return a program as it is compiled.

        Args:
            program: as it was captured.
            like: the same module at another batch size, for which it is decided what leaves.

        Raises:
            PassError: if the program has no halves in one batch to fold or to guide.
        """
        changed = self._changed(program)
        if not self.splits:
            return changed
        return split_prologue(changed, self.steps, None if like is None else self._changed(like))

    def _changed(self, program: Program) -> Program:
        if self.folds:
            program = fold_halves(program)
        if self.guides:
            program = fuse_guidance(program)
        return program
