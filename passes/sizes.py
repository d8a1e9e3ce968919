"""Bytes of tensors that are described, not there."""

import torch

__all__ = ["nbytes"]


def nbytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Return the bytes that a tensor of a shape and dtype takes."""
    return dtype.itemsize * torch.Size(shape).numel()
