"""Groupings: all of them where they are few, and no worse than their neighbours where many."""

import numpy as np
import pytest

from ditc.passes.clustering import Labels, partitions, refined, smallest

BELL = {1: 1, 2: 2, 3: 5, 4: 15, 5: 52, 6: 203}


@pytest.mark.parametrize("count", BELL)
def test_every_partition_once(count: int) -> None:
    found = list(partitions(count, count))
    assert len(found) == len(set(found)) == BELL[count]
    assert len(list(partitions(count, 2))) == 2 ** (count - 1)


def spread(points: np.ndarray, labels: Labels) -> np.ndarray:
    """Return the sum over groups of squared distances from their means, for many groupings."""
    totals = []
    for row in labels:
        groups = [points[row == label] for label in set(row.tolist())]
        totals.append(sum(((group - group.mean()) ** 2).sum() for group in groups))
    return np.array(totals)


def test_clusters_that_are_plain_to_see() -> None:
    points = np.array([0.0, 9.0, 0.1, 5.0, 9.1, 5.2, 0.2])

    def cost(labels: Labels) -> np.ndarray:
        return spread(points, labels)

    expected = {(0, 2, 6), (1, 4), (3, 5)}
    for found in (
        smallest(cost, len(points), 3),
        refined(cost, np.zeros(len(points), dtype=np.int64), 3),
    ):
        groups = {tuple(np.flatnonzero(found == label).tolist()) for label in set(found.tolist())}
        assert groups == expected
