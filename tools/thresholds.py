"""How much loss a search allows at each site."""

from ditc.passes.origin import Origin

__all__ = ["error_limit", "limits_of", "threshold_of"]


def threshold_of(threshold: float, number: int, count: int) -> float:
    """Return the threshold of site `number` (from 0) of `count`: it rises with depth.

    Source: δ · i / M (DiTFastAttn, arXiv 2406.08552, section 3.4).
    """
    return threshold * (number + 1) / count


def error_limit(threshold: float, count: int) -> float:
    """Return from where on the error of one of `count` sites is too much by itself: 1.5·δ/M.

    Source: DiTFastAttnV2 (arXiv 2503.22796), with sites in the place of heads.
    """
    return 1.5 * threshold / count


def limits_of(origin: Origin, count: int) -> tuple[float, ...] | None:
    """Return the loss that a search allowed at each of `count` sites, None if it isn't known."""
    if origin.algorithm == "ilp":
        return (error_limit(origin.threshold, count),) * count
    if origin.algorithm in ("greedy", "local"):
        return tuple(threshold_of(origin.threshold, number, count) for number in range(count))
    return None
