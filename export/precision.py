"""Bring a program to the precision it is compiled in; for fp16, after a look at its range."""

from collections.abc import Callable, Iterable, Mapping

import torch

from ditc.passes.precision import own_precision, with_precision
from ditc.passes.program import Program
from ditc.passes.ranges import LARGEST_HALF, overflows, unavoidable
from ditc.passes.unloaded import has_unloaded
from ditc.runtime.errors import LoweringError

__all__ = ["in_precision"]

SHOWN = 8
"""Values named one by one."""


def in_precision(
    program: Program,
    precision: str,
    calibration: Iterable[Mapping[str, torch.Tensor]] | None,
    log: Callable[[str], object],
) -> Program:
    """Return a program that computes in a precision.

    In fp16 values stay in fp32 that are, or at a twofold would be, beyond what a half can hold.

    Args:
        program: without a prologue.
        precision: `fp32`, `fp16` or `bf16`.
        calibration: inputs to run it on before it is made fp16, by input name; what it was
            captured with if None.
        log: told, a line each, which values stay in fp32.

    Raises:
        PassError: if the program was captured in another half precision.
        LoweringError: if queries, keys or values of an attention are beyond a half's range.
    """
    if precision != "fp16" or own_precision(program) != "fp32":
        return with_precision(program, precision)
    if has_unloaded(program.graph_module):
        log("fp16: the range of values isn't checked, as the model's weights aren't loaded")
        return with_precision(program, precision)
    samples = list(calibration) if calibration is not None else _captured(program)
    found = overflows(program, samples)
    beyond = [entry for entry in unavoidable(found, program.sites) if entry.largest > LARGEST_HALF]
    if beyond:
        raise LoweringError(
            f"fp16 can't hold what attention is given: {beyond[0]}, and {len(beyond) - 1} more; "
            f"the largest half is {LARGEST_HALF:.0f}: compile with precision bf16 or fp32"
        )
    for entry in found[:SHOWN]:
        log(f"fp16: {entry}, and stays in fp32")
    if len(found) > SHOWN:
        log(f"fp16: {len(found) - SHOWN} more values stay in fp32")
    return with_precision(program, precision, {entry.node for entry in found})


def _captured(program: Program) -> list[Mapping[str, torch.Tensor]]:
    return [program.example, *([program.unconditional] if program.unconditional else [])]
