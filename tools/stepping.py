"""Decide one step of a greedy search, computing nothing that is at hand.

A candidate at site i differs from what is already known only from site i on. So a step is run once
with every site full: that is the reference, and the first base. A candidate starts from the base's
values in front of its site; the run of one that is accepted is the next base; the last base is the
step itself. Of a half of the batch that another run has had, what that one made is taken. What a
base would have to hold for every later site, query, key and value, it holds for the next alone:
they are computed again where a window is tried further behind.
"""

from collections.abc import Mapping, Sequence

import torch

from ditc.passes import Losses, Method
from ditc.passes.half_pieces import HalfPieces
from ditc.passes.piece import Values

from .decisions import Decided, check_loss, relative_loss
from .site_forms import Forms, SiteStates
from .space import Space
from .thresholds import threshold_of

__all__ = ["GreedySteps"]

TWINS = {Method.ASC: Method.FULL, Method.WA_RS: Method.WA_RS_ASC}
"""Methods under which the conditional half is as under another that was tried before."""


class GreedySteps(SiteStates):
    """The state of a greedy search: candidates are judged by the whole model's output."""

    def __init__(self, space: Space, threshold: float) -> None:
        super().__init__(space)
        self._threshold = threshold
        self._output = self.pieces.outputs[0]
        self._sites = tuple(part.in_turn for part in self.pieces.sites)

    def decide(self, step: int, inputs: Mapping[str, torch.Tensor]) -> tuple[Decided, torch.Tensor]:
        """Decide every site of a step, and return its output too."""
        base = self._run_behind(-1, dict(inputs))
        reference = base[self._output]
        decided: dict[str, Method] = {}
        tried: dict[str, Losses] = {}
        if step:
            self._count_plain(decided)
        for number, part in enumerate(self.pieces.sites):
            name, forms = part.site.name, Forms(self, part, base)
            candidates = self.candidates(name) if step else ()
            method, tried[name], base = self._choose(number, candidates, forms, base, reference)
            for candidate, loss in tried[name].items():
                check_loss(step, name, loss)
                self._count_plain({**decided, name: candidate})
            forms.keep(method)
            decided[name] = method
        self._count_plain(decided)
        new = Decided(decided, tried, self.multiply_adds, self.plain_multiply_adds)
        return new, base[self._output]

    def _choose(
        self,
        number: int,
        candidates: Sequence[Method],
        forms: Forms,
        base: Values,
        reference: torch.Tensor,
    ) -> tuple[Method, Losses, Values]:
        """Return a site's method, the loss of each candidate tried, and the base behind it."""
        limit = threshold_of(self._threshold, number, len(self.pieces.sites))
        losses: dict[Method, float] = {}
        runs = {Method.FULL: base}
        for candidate in candidates:
            run = self._try(number, candidate, {**base, **forms.exits(candidate)}, runs)
            losses[candidate] = relative_loss(reference, run[self._output])
            if losses[candidate] < limit:
                return candidate, losses, run
            if candidate in TWINS.values():
                runs[candidate] = run
        return Method.FULL, losses, base

    def _try(
        self, number: int, candidate: Method, values: Values, runs: Mapping[Method, Values]
    ) -> Values:
        """Run all behind a site; of a half that another run has had, take what that one made."""
        twin, halves = TWINS.get(candidate), self.pieces.halves
        if halves is None or twin is None or twin not in runs:
            return self._run_behind(number, values)
        half = {name: halves.half(name, value) for name, value in values.items()}
        half = self._run_behind(number, half, halves)
        known = runs[twin]
        return {
            name: halves.with_half(name, known[name], value)
            for name, value in half.items()
            if name in known
        }

    def _run_behind(self, number: int, values: Values, halves: HalfPieces | None = None) -> Values:
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
            for name in {*site[0].outputs, *site[1].outputs} - self.needs[number + 1]:
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
