"""What a program with folded halves takes: latents and timesteps that are the same in both."""

from collections.abc import Iterable, Mapping

import torch

from ditc.runtime.errors import CaptureError

__all__ = ["check_equal_halves"]


def check_equal_halves(given: Mapping[str, object], paths: Iterable[str]) -> None:
    """Refuse arguments that differ between the halves of guidance.

    Args:
        given: arguments by path.
        paths: of those that have to be the same in both halves.

    Raises:
        CaptureError: naming the argument.
    """
    for path in paths:
        value = given.get(path)
        if not isinstance(value, torch.Tensor) or value.dim() == 0 or value.shape[0] % 2:
            continue
        if not torch.equal(*value.chunk(2)):
            raise CaptureError(
                f"argument {path} differs between the halves of guidance, which the program takes "
                "as equal: give both the same, or don't fold halves"
            )
