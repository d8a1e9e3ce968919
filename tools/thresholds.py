"""How much loss a search allows at each site."""

__all__ = ["threshold_of"]


def threshold_of(threshold: float, number: int, count: int) -> float:
    """Return the threshold of site `number` (from 0) of `count`: it rises with depth.

    Source: δ · i / M (DiTFastAttn, arXiv 2406.08552, section 3.4).
    """
    return threshold * (number + 1) / count
