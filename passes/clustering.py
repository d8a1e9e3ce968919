"""Group things into at most so many groups at the least cost: exactly, or well."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

__all__ = ["Labels", "hierarchy", "moves", "partitions", "refined", "smallest"]

Labels = npt.NDArray[np.int64]
"""`[things]`: the group of each."""
Cost = Callable[[Labels], npt.NDArray[np.float64]]
"""From `[groupings, things]` to `[groupings]`."""

BATCH_BYTES = 2**26
MAX_SWEEPS = 40
RESTARTS = 3


def partitions(count: int, limit: int) -> Iterator[tuple[int, ...]]:
    """Yield every way to put things into at most `limit` groups, as restricted growth strings."""

    def grow(prefix: tuple[int, ...], used: int) -> Iterator[tuple[int, ...]]:
        if len(prefix) == count:
            yield prefix
            return
        for label in range(min(used + 1, limit)):
            yield from grow((*prefix, label), max(used, label + 1))

    yield from grow((), 0)


def smallest(cost: Cost, count: int, limit: int) -> Labels:
    """Return the cheapest of all groupings into at most `limit` groups."""
    every = np.array(list(partitions(count, limit)), dtype=np.int64)
    found: Labels = every[int(np.argmin(_costs(cost, every)))]
    return found


def refined(cost: Cost, start: Labels, limit: int) -> Labels:
    """Return a grouping that no move of one thing and no swap of two makes cheaper.

    Begun from `start`, and from it with a share of the things thrown elsewhere; the best wins.
    """
    draw = np.random.default_rng(0)
    best, least = _descend(cost, start, limit)
    for _ in range(RESTARTS):
        thrown = np.where(draw.random(len(best)) < 0.25, draw.integers(0, limit, len(best)), best)
        labels, found = _descend(cost, thrown, limit)
        if found < least:
            best, least = labels, found
    return best


def _descend(cost: Cost, labels: Labels, limit: int) -> tuple[Labels, float]:
    """Take the best move, or swap where no move helps, until neither does."""
    least = float(_costs(cost, labels[None])[0])
    for neighbours in (moves, _swaps):
        for _ in range(MAX_SWEEPS):
            near = neighbours(labels, limit)
            if not len(near):
                break
            costs = _costs(cost, near)
            index = int(np.argmin(costs))
            if costs[index] >= least * (1 - 1e-12):
                break
            labels, least = near[index], float(costs[index])
    return labels, least


def moves(labels: Labels, limit: int) -> Labels:
    """Return the groupings, `[groupings, things]`, in which one thing is in another group."""
    found = [
        _with(labels, thing, label)
        for thing in range(len(labels))
        for label in range(limit)
        if label != labels[thing]
    ]
    return np.array(found, dtype=np.int64).reshape(-1, len(labels))


def _swaps(labels: Labels, limit: int) -> Labels:
    del limit
    found = []
    for first in range(len(labels)):
        for second in range(first):
            if labels[first] != labels[second]:
                swapped = _with(labels, first, labels[second])
                swapped[second] = labels[first]
                found.append(swapped)
    return np.array(found, dtype=np.int64).reshape(-1, len(labels))


def _with(labels: Labels, thing: int, label: int) -> Labels:
    found = labels.copy()
    found[thing] = label
    return found


def _costs(cost: Cost, groupings: Labels) -> npt.NDArray[np.float64]:
    """Return the cost of many groupings, some at a time."""
    size = max(1, BATCH_BYTES // (64 * groupings.shape[1] ** 2))
    return np.concatenate(
        [cost(groupings[first : first + size]) for first in range(0, len(groupings), size)]
    )


def hierarchy(
    table: npt.NDArray[np.float64],
    weights: npt.NDArray[np.int64],
    bits: npt.NDArray[np.uint8],
    keeps: npt.NDArray[np.bool_],
) -> dict[int, Labels]:
    """Merge the pair that adds the least, again and again; return the grouping at every size.

    Args:
        table: `[sites, bits, kept]`, the cost of a site.
        weights: `[things]`, how often each runs.
        bits: `[things, sites]`, what each leaves out; a group leaves out what all do.
        keeps: `[things, sites]`, whether it keeps a residual; a group does where one does.
    """
    count = len(weights)
    labels = np.arange(count)
    found = {count: labels.copy()}
    alive = list(range(count))
    weights, bits, keeps = weights.copy(), bits.copy(), keeps.copy()
    added = np.full((count, count), np.inf)
    for thing in alive:
        added[thing, :thing] = _added(table, weights, bits, keeps, thing, np.arange(thing))
    while len(alive) > 1:
        second, first = np.unravel_index(int(np.argmin(added)), added.shape)
        alive.remove(int(second))
        weights[first] += weights[second]
        bits[first] &= bits[second]
        keeps[first] = (keeps[first] | keeps[second]) & (bits[first] <= 1)
        labels[labels == second] = first
        added[second, :] = added[:, second] = np.inf
        others = np.array([thing for thing in alive if thing != first], dtype=np.int64)
        fresh = _added(table, weights, bits, keeps, int(first), others)
        added[first, others[others < first]] = fresh[others < first]
        added[others[others > first], first] = fresh[others > first]
        found[len(alive)] = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    return found


def _added(
    table: npt.NDArray[np.float64],
    weights: npt.NDArray[np.int64],
    bits: npt.NDArray[np.uint8],
    keeps: npt.NDArray[np.bool_],
    one: int,
    others: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    """Return `[others]`: what merging one thing with each adds."""

    def cost(bits: npt.NDArray[np.uint8], keeps: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        sites = np.arange(bits.shape[-1])
        return np.asarray(table[sites, bits, keeps.astype(np.int64)].sum(-1), np.float64)

    met = bits[others] & bits[one]
    joined = cost(met, (keeps[others] | keeps[one]) & (met <= 1))
    theirs = weights[others] * (joined - cost(bits[others], keeps[others]))
    return np.asarray(theirs + weights[one] * (joined - cost(bits[one], keeps[one])), np.float64)
