"""What no grouping of steps into so many buckets can exceed."""

from itertools import combinations
from math import comb

import numpy as np
import numpy.typing as npt

from ditc.passes import Plan
from ditc.passes.merging import LEAVES_OUT, Merging, site_costs

__all__ = ["MergingBound"]

Table = npt.NDArray[np.float64]
Bits = npt.NDArray[np.int64]

LARGEST = 4
"""Steps of the groups that are looked at one by one."""
HALVINGS = 60


class MergingBound:
    """Bounds from above on the share of a plan's saving that a limit on buckets can keep.

    Merged steps use at a site a method that is no more aggressive than that of any of them. Let
    s(G) be what the sites of one step save under the methods common to a group G; residuals, which
    only cost, are left out. The larger the group the less: s(G) ≤ s(S) for every S ⊆ G.

    - A step t in a group G of n steps: the C(n−1, m−1) subsets of G of m steps that hold t each
      save s(G) or more. So s(G) is at most the C(n−1, m−1)-th largest s(S) among all S of m steps
      with t; b(n, t) is the least of these over m ≤ 4.
    - Groups G of at most K buckets: Σ_t 1/|G(t)| is how many groups there are, so that for each
      price λ ≥ 0 of a group the saving Σ_t s(G(t)) ≤ λK + Σ_t max_n (b(n, t) − λ/n). The bound is
      the least of these over λ; the right side is convex in it.

    Args:
        plan: methods per step and site, and what the sites cost.
    """

    def __init__(self, plan: Plan) -> None:
        bits = np.array(
            [
                [LEAVES_OUT[plan.method(step, site)] for site in plan.sites]
                for step in range(plan.steps)
            ]
        )
        table = site_costs(plan)[:, :, 0]
        self._best = _best(bits, table[:, :1] - table)
        merging = Merging(plan)
        unlimited = merging.cost(np.arange(merging.units)[None])[0]
        self._saving = merging.full() - float(unlimited)

    def kept(self, limit: int) -> float:
        """Return a share of the unlimited schedule's saving that no `limit` buckets exceed."""
        low, high = 0.0, float(self._best.sum())
        for _ in range(HALVINGS):
            first, second = low + (high - low) / 3, high - (high - low) / 3
            if self._at(first, limit) < self._at(second, limit):
                high = second
            else:
                low = first
        return min(1.0, self._at(low, limit) / self._saving) if self._saving else 1.0

    def least(self, share: float) -> int:
        """Return the least number of buckets that isn't proved to keep less than a share."""
        steps = self._best.shape[1]
        return next(limit for limit in range(1, steps + 1) if self.kept(limit) >= share)

    def _at(self, price: float, limit: int) -> float:
        sizes = np.arange(1, len(self._best) + 1)[:, None]
        return price * limit + float((self._best - price / sizes).max(axis=0).sum())


def _best(bits: Bits, saved: Table) -> Table:
    """Return `[n − 1, t]`: what step t saves at most in a group of n.

    Args:
        bits: `[steps, sites]`, what a step leaves out.
        saved: `[sites, bits]`, what that saves.
    """
    steps = len(bits)
    found = np.full((steps, steps), np.inf)
    for step in range(steps):
        others = np.delete(bits, step, axis=0)
        for size in range(1, min(LARGEST, steps) + 1):
            chosen = np.array(list(combinations(range(steps - 1), size - 1)), dtype=np.int64)
            met = bits[step] & np.bitwise_and.reduce(others[chosen], axis=1, initial=-1)
            savings = np.sort(_savings(met, saved))[::-1]
            for count in range(size, steps + 1):
                least = savings[comb(count - 1, size - 1) - 1]
                found[count - 1, step] = min(found[count - 1, step], least)
    return found


def _savings(met: Bits, saved: Table) -> Table:
    """Return `[groups]`: what a step of each saves."""
    found = np.zeros(len(met))
    for site, row in enumerate(saved):
        found += row[met[:, site]]
    return found
