"""A call of a denoiser with another number of samples: every batched argument, all alike."""

from collections.abc import Mapping

import torch
from torch.utils import _pytree as pytree

__all__ = ["resized"]


def resized(
    kwargs: Mapping[str, object], rows: int, halves: int, samples: int
) -> dict[str, object]:
    """Return the arguments of a call with its samples repeated in turn, or the first of them.

    Args:
        kwargs: arguments of a call. What has the batch holds it on its first axis, or is a list
            of tensors, one a sample.
        rows: size of the batch.
        halves: parts of it that are repeated each by itself: 2 with both halves of guidance.
        samples: how many each half is to hold.
    """
    half = rows // halves
    index = torch.tensor(
        [part * half + number % half for part in range(halves) for number in range(samples)]
    )

    def sized(leaf: object) -> object:
        if isinstance(leaf, torch.Tensor):
            batched = leaf.dim() > 0 and leaf.shape[0] == rows
            return leaf[index.to(leaf.device)] if batched else leaf
        if _is_samples(leaf, rows):
            assert isinstance(leaf, list | tuple)
            return type(leaf)(leaf[number] for number in index.tolist())
        return leaf

    return {
        name: pytree.tree_map(sized, value, is_leaf=lambda leaf: _is_samples(leaf, rows))
        for name, value in kwargs.items()
    }


def _is_samples(value: object, rows: int) -> bool:
    if not isinstance(value, list | tuple) or len(value) != rows:
        return False
    return all(isinstance(sample, torch.Tensor) for sample in value)
