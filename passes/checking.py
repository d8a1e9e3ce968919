"""What a program holds for: arguments that were fixed at capture, halves that are the same."""

from collections.abc import Iterable, Mapping

import torch

from ditc.runtime.errors import CaptureError

__all__ = ["check_constant", "check_equal_halves"]


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


def check_constant(path: str, value: object, constant: object) -> None:
    """Refuse an argument that isn't what it was at capture.

    Raises:
        CaptureError: naming the argument.
    """
    if isinstance(constant, torch.Tensor):
        if isinstance(value, torch.Tensor) and torch.equal(value, constant.to(value.device)):
            return
        raise CaptureError(
            f"argument {path} is unlike what was captured, and the model decides by its values "
            "what to compute: capture again with these"
        )
    if isinstance(value, torch.Tensor) or value != constant:
        found = "a tensor" if isinstance(value, torch.Tensor) else repr(value)
        raise CaptureError(
            f"argument {path} is {found}, captured as {constant!r}: capture again with this value"
        )
