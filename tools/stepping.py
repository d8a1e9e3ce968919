"""Decide one step of a greedy search, computing nothing twice.

A candidate at site i differs from what is already known only from site i on. So a step is run once
with every site full: that is the reference, and the first base. A candidate starts from the base's
values in front of its site; the run of one that is accepted is the next base; the last base is the
step itself. Of a half of the batch that another run has had, what that one made is taken.
"""

from collections.abc import Mapping

import torch

from ditc.passes import Losses, Method
from ditc.passes.half_pieces import Halves

from .decisions import Decided, check_loss, relative_loss, threshold_of
from .site_forms import Forms, SiteStates, Values
from .space import Space

__all__ = ["GreedySteps"]

TWINS = {Method.ASC: Method.FULL, Method.WA_RS: Method.WA_RS_ASC}
"""Methods under which the conditional half is as under another that was tried before."""


class GreedySteps(SiteStates):
    """The state of a greedy search: candidates are judged by the whole model's output."""

    def __init__(self, space: Space, threshold: float) -> None:
        super().__init__(space)
        self._threshold = threshold
        self._sites = tuple(part.in_turn for part in self.pieces.sites)

    def decide(self, step: int, inputs: Mapping[str, torch.Tensor]) -> tuple[Decided, torch.Tensor]:
        """Decide every site of a step, and return its output too."""
        name = self.pieces.outputs[0]
        base = self._run_behind(-1, dict(inputs))
        reference = base[name]
        decided: dict[str, Method] = {}
        tried: dict[str, Losses] = {}
        self._count_plain(decided)
        for number, part in enumerate(self.pieces.sites):
            forms = Forms(self, part, base)
            limit = threshold_of(self._threshold, number, len(self.pieces.sites))
            method, losses = Method.FULL, {}
            runs = {Method.FULL: base}
            for candidate in self.space.candidates[part.site.name] if step else ():
                run = self._try(number, candidate, {**base, **forms.exits(candidate)}, runs)
                if candidate in TWINS.values():
                    runs[candidate] = run
                losses[candidate] = relative_loss(reference, run[name])
                check_loss(step, part.site.name, losses[candidate])
                self._count_plain({**decided, part.site.name: candidate})
                if losses[candidate] < limit:
                    method, base = candidate, run
                    break
            forms.keep(method)
            decided[part.site.name] = method
            tried[part.site.name] = losses
        self._count_plain(decided)
        new = Decided(decided, tried, self.multiply_adds, self.plain_multiply_adds)
        return new, base[name]

    def _try(
        self, number: int, candidate: Method, values: Values, runs: Mapping[Method, Values]
    ) -> Values:
        """Run all behind a site; of a half that another run has had, take what that one made."""
        twin = TWINS.get(candidate)
        if self.pieces.halves is None or twin is None or twin not in runs:
            return self._run_behind(number, values)
        axes = self.pieces.halves.axes
        last = self.space.program.cfg == "cond-first"
        half = {name: _half(value, axes.get(name), last) for name, value in values.items()}
        half = self._run_behind(number, half, self.pieces.halves)
        known = runs[twin]
        return {
            name: _join(known[name], value, axes.get(name), last)
            for name, value in half.items()
            if name in known
        }

    def _run_behind(self, number: int, values: Values, halves: Halves | None = None) -> Values:
        """Run all that comes behind a site with every site there full.

        Returns:
            The values that are still needed behind the site, and the program's outputs: of one
            half of the batch if `halves` are given, and `values` are that half's.
        """
        glue = self.pieces.glue[number + 1 :] if halves is None else halves.glue[number:]
        sites = self._sites if halves is None else halves.sites
        values = {**values, **self.run(glue[0], values)}
        for site, behind in zip(sites[number + 1 :], glue[1:], strict=True):
            for piece in (*site, behind):
                values.update(self.run(piece, values))
            for name in (*site[0].outputs, *site[1].outputs):
                if name not in self.needs[number + 1]:
                    del values[name]
        return self.needed(number + 1, values)

    def _count_plain(self, methods: Mapping[str, Method]) -> None:
        """Count a whole run of the model, as a search that keeps nothing would make."""
        costs = self.space.cost.sites
        whole = self.space.cost.full
        self.plain_multiply_adds += whole - sum(
            costs[name].full - costs[name].of(method, self.space.windows[name])
            for name, method in methods.items()
        )


def _half(value: torch.Tensor, axis: int | None, last: bool) -> torch.Tensor:
    """Return one half of a value's batch, the whole of a value without a batch."""
    return value if axis is None else value.chunk(2, dim=axis)[last]


def _join(known: torch.Tensor, half: torch.Tensor, axis: int | None, last: bool) -> torch.Tensor:
    """Put a half in the place of the same half of a known value."""
    if axis is None:
        return half
    other = _half(known, axis, not last)
    return torch.cat([other, half] if last else [half, other], dim=axis)
