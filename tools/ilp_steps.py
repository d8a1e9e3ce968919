"""Decide one step of a search by a 0/1 program over all (site, method) at once.

The step is run with every site full; each candidate's error is measured at its own site in that
run, before anything is decided, since the program decides all sites together. Then it maximises
what is saved while the errors of a step add up to δ at most, and the step is run as decided.

Source: DiTFastAttnV2 (arXiv 2503.22796) does so for the heads of a layer; here sites take the place
of heads, and a step that of a layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.optimize
import torch

from ditc.passes import Losses, Method
from ditc.passes.piece import Values
from ditc.runtime.errors import PlanError

from .decisions import Decided, check_loss, spread_of, squared_error
from .local_steps import joined
from .site_forms import Forms, SiteStates
from .space import Space
from .thresholds import error_limit

__all__ = ["Choice", "IlpSteps", "choose"]

Vector = npt.NDArray[np.float64]
MARGIN = 1e-5
"""Share of the budget that is left, so that the solver's tolerances can't exceed it."""
TIE = 1e-9
"""Share of the best saving within which another choice saves as much."""


@dataclass(frozen=True)
class Choice:
    """A method that a site may have.

    Attributes:
        site: which.
        method: not `full`.
        saved: what it saves, in any unit.
        error: what it errs.
    """

    site: str
    method: Method
    saved: float
    error: float


class IlpSteps(SiteStates):
    """The state of a search that decides all sites of a step at once."""

    def __init__(self, space: Space, threshold: float) -> None:
        super().__init__(space)
        self._threshold = threshold

    def decide(self, step: int, inputs: Mapping[str, torch.Tensor]) -> tuple[Decided, torch.Tensor]:
        """Decide every site of a step, and return its output too."""
        names = [part.site.name for part in self.pieces.sites]
        entered = self.entered(inputs)
        errors = self._errors(step, entered) if step else {name: {} for name in names}
        choices = [
            Choice(name, method, self.gain(name, method), error)
            for name, tried in errors.items()
            for method, error in tried.items()
        ]
        chosen = choose(choices, self._threshold, len(names))
        decided = {name: chosen.get(name, Method.FULL) for name in names}

        def pick(number: int, forms: Forms) -> Method:
            method = decided[names[number]]
            forms.keep(method)
            return method

        output = self.walk(entered, pick)
        self.plain_multiply_adds += self.space.cost.full
        return Decided(decided, errors, self.multiply_adds, self.plain_multiply_adds), output

    def _errors(self, step: int, entered: Values) -> dict[str, Losses]:
        """Return the error of every candidate at its own site, all sites full."""
        errors: dict[str, Losses] = {}

        def measure(_: int, forms: Forms) -> Method:
            name = forms.part.site.name
            reference = joined(forms.exits(Method.FULL))
            spread = spread_of(reference)
            errors[name] = {
                candidate: squared_error(reference, joined(forms.exits(candidate)), spread)
                for candidate in self.candidates(name)
            }
            for error in errors[name].values():
                check_loss(step, name, error)
            return Method.FULL

        self.walk(entered, measure)
        return errors


def choose(choices: Sequence[Choice], threshold: float, sites: int) -> dict[str, Method]:
    """Return the methods that save most while their errors add up to the threshold at most.

    At most one method a site; sites that aren't named stay full. Of choices that save as much, the
    one that errs least.

    Args:
        choices: what there is.
        threshold: δ; a choice that errs 1.5·δ/M or more by itself is ruled out.
        sites: M, how many sites a step has.

    Raises:
        PlanError: if the solver gives up.
    """
    limit = error_limit(threshold, sites)
    open_to = [choice for choice in choices if choice.error < limit and choice.saved > 0]
    if not open_to:
        return {}
    names = list(dict.fromkeys(choice.site for choice in open_to))
    saved = np.array([choice.saved for choice in open_to])
    saved = saved / saved.max()
    errors = np.array([choice.error for choice in open_to]) / threshold
    one_a_site = np.array([[choice.site == name for choice in open_to] for name in names], float)
    within = [
        scipy.optimize.LinearConstraint(one_a_site, ub=1),
        scipy.optimize.LinearConstraint(errors[None, :], ub=1 - MARGIN),
    ]
    taken = _solve(-saved, within)
    if taken is None:
        raise PlanError("the 0/1 program of a step has no solution")
    most = saved @ taken * (1 - TIE)
    as_much = scipy.optimize.LinearConstraint(saved[None, :], lb=most)
    milder = _solve(errors, [*within, as_much])
    if milder is not None and saved @ milder >= most:  # the solver's tolerances are wider
        taken = milder
    return {open_to[index].site: open_to[index].method for index in np.flatnonzero(taken)}


def _solve(
    weights: Vector, constraints: Sequence[scipy.optimize.LinearConstraint]
) -> Vector | None:
    """Return the 0/1 vector that makes `weights · x` least, None if the solver finds none."""
    found = scipy.optimize.milp(
        weights,
        integrality=np.ones_like(weights),
        bounds=scipy.optimize.Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": 0.0},
    )
    return None if found.x is None else np.rint(np.asarray(found.x, np.float64))
