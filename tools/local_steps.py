"""Decide one step of a local search: each site by its own output, in one run of the model.

A site's reference is full attention on what the sites in front of it, as decided, hand to it. What
later layers make of an error is not seen. The error is DiTFastAttnV2's relative squared one: the
paper's loss, a mean of relative differences, is made for outputs of a whole model, and at a single
site is an order of magnitude above any δ that one would ask for.
"""

from collections.abc import Mapping

import torch

from ditc.passes import Losses, Method
from ditc.passes.piece import Values

from .decisions import Decided, check_loss, spread_of, squared_error
from .site_forms import Forms, SiteStates
from .space import Space
from .thresholds import threshold_of

__all__ = ["LocalSteps", "joined"]


class LocalSteps(SiteStates):
    """The state of a local search: candidates are judged by the output of their own site."""

    def __init__(self, space: Space, threshold: float) -> None:
        super().__init__(space)
        self._threshold = threshold

    def decide(self, step: int, inputs: Mapping[str, torch.Tensor]) -> tuple[Decided, torch.Tensor]:
        """Decide every site of a step, and return its output too."""
        decided: dict[str, Method] = {}
        tried: dict[str, Losses] = {}

        def pick(number: int, forms: Forms) -> Method:
            name = forms.part.site.name
            decided[name], tried[name] = self._choose(step, number, forms)
            forms.keep(decided[name])
            return decided[name]

        output = self.walk(self.entered(inputs), pick)
        self.plain_multiply_adds += self.space.cost.full
        new = Decided(decided, tried, self.multiply_adds, self.plain_multiply_adds)
        return new, output

    def _choose(self, step: int, number: int, forms: Forms) -> tuple[Method, Losses]:
        name = forms.part.site.name
        limit = threshold_of(self._threshold, number, len(self.pieces.sites))
        losses: dict[Method, float] = {}
        candidates = self.candidates(name) if step else ()
        if not candidates:
            return Method.FULL, losses
        reference = joined(forms.exits(Method.FULL))
        spread = spread_of(reference)
        for candidate in candidates:
            losses[candidate] = squared_error(reference, joined(forms.exits(candidate)), spread)
            check_loss(step, name, losses[candidate])
            if losses[candidate] < limit:
                return candidate, losses
        return Method.FULL, losses


def joined(exits: Values) -> torch.Tensor:
    """Return the values of all exits of a site in a row, in the order of their names."""
    values = [exits[name].flatten() for name in sorted(exits)]
    return values[0] if len(values) == 1 else torch.cat(values)
