"""Try one tiny model: capture, methods against the intercepted model, engines against it."""

import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils import _pytree as pytree

from ditc.export import compile as compile_bundle
from ditc.passes import Plan, Program, TorchSession, Window, capture, schedule
from ditc.passes.arguments import flatten, stack
from ditc.runtime import Bundle
from ditc.runtime.errors import DitcError, first_line

from .zoo_entry import Tiny
from .zoo_reference import Intercepted

__all__ = [
    "METHODS",
    "Trial",
    "captured",
    "error",
    "lowered_error",
    "method_error",
    "mixed_plan",
    "trial",
]

METHODS = ("asc", "wa-rs", "wa-rs+asc", "ast")
STEPS = 4


@dataclass
class Trial:
    """What came of a model.

    Attributes:
        tiny: the model.
        program: None where it wasn't captured.
        failure: why something failed, empty if nothing did.
        errors: largest error over largest value, by method, `mixed` or `onnx`.
        refused: why a method can't be applied, by method.
    """

    tiny: Tiny
    program: Program | None = None
    failure: str = ""
    errors: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def captured(tiny: Tiny) -> tuple[torch.nn.Module, Program]:
    """Return a model and its program.

    Raises:
        CaptureError: if it can't be captured.
        ValueError: if the program isn't equal to the module to the bit.
    """
    module = tiny.module()
    program = capture(
        module, tiny.kwargs(), cfg=tiny.cfg, latents=tiny.latents, timestep=tiny.timestep
    )
    for step in (0, 3):
        kwargs = tiny.kwargs(step)
        with torch.no_grad():
            expected = _tensors(module(**kwargs))
        found = _tensors(program(**kwargs))
        if not all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)):
            raise ValueError("the program isn't equal to the module")
    return module, program


def error(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """Return the largest error over the largest value."""
    pairs = list(zip(found, expected, strict=True))
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def mixed_plan(program: Program, steps: int = STEPS, *, asc: bool = True) -> Plan:
    """Return a plan of methods drawn for every step behind the first and every site."""
    draw = random.Random(steps)
    allowed = [m for m in ("full", *METHODS) if (asc and program.cfg) or "asc" not in m]
    plan = windowed(program, steps, "full")
    for step in range(1, steps):
        for site in plan.sites:
            plan = plan.replace(step, site, draw.choice(allowed))
    return plan


def windowed(program: Program, steps: int, method: str) -> Plan:
    """Return a uniform plan whose windows fit the shortest sequence."""
    shortest = min(
        site.tokens - (site.text[1] - site.text[0]) for site in program.sites if site.eligible
    )
    return Plan.uniform(program, steps, method, window=Window(min(3, shortest - 1)))


def reference(tiny: Tiny, module: torch.nn.Module, program: Program, plan: Plan) -> Intercepted:
    """Return the intercepted model under a plan."""
    return Intercepted(
        module,
        [(site.name, site.tokens, site.context_tokens) for site in program.sites],
        [{site: str(method) for site, method in row.items()} for row in plan.cells],
        {
            site: (window.radius, window.block)
            for site, window in plan.windows.items()
            if isinstance(window, Window)
        },
        {site.name: site.text for site in program.sites},
        tiny.cfg,
        fused=tiny.fused,
    )


def method_error(tiny: Tiny, module: torch.nn.Module, program: Program, plan: Plan) -> float:
    """Return the largest error of a plan's steps in torch.

    Raises:
        PassError: if a method can't be applied.
    """
    session = TorchSession(schedule(program, plan))
    eager = reference(tiny, module, program, plan)
    errors = []
    for step in range(plan.steps):
        kwargs = tiny.kwargs(step)
        errors.append(error(_tensors(session(step, **kwargs)), eager.run(step, kwargs)))
    return max(errors)


def lowered_error(
    tiny: Tiny, module: torch.nn.Module, program: Program, plan: Plan, place: Path
) -> float:
    """Return the largest error of a plan's steps run by ONNX Runtime.

    Raises:
        LoweringError: if the plan can't be lowered.
    """
    bundle = Bundle.open(compile_bundle(schedule(program, plan), place, jobs=1), threads=1)
    eager = reference(tiny, module, program, plan)
    errors = []
    for step in range(plan.steps):
        kwargs = tiny.kwargs(step)
        given = dict(flatten(stack(kwargs, program.stacked)))
        arrays = {
            entry.name: _tensor(given[program.in_paths[entry.name]]) for entry in program.inputs
        }
        result = bundle.step(step, **{name: value.numpy() for name, value in arrays.items()})
        values = result.values() if isinstance(result, dict) else (result,)
        outputs = [torch.from_numpy(value) for value in values]
        expected = eager.run(step, kwargs)
        errors.append(error(outputs, [torch.stack(expected)] if program.stacked else expected))
    return max(errors)


def trial(tiny: Tiny, place: Path | None = None) -> Trial:
    """Try a model: capture, every method, a mixed plan, and with a place for bundles ONNX.

    Args:
        tiny: the model.
        place: folder to compile into, None to leave that out.
    """
    result = Trial(tiny)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module, result.program = captured(tiny)
            if any(site.eligible for site in result.program.sites):
                _methods(result, module, result.program, place)
    except (DitcError, ValueError, RuntimeError) as fault:
        result.failure = first_line(fault)
    return result


def _methods(result: Trial, module: torch.nn.Module, program: Program, place: Path | None) -> None:
    for method in METHODS:
        if "asc" in method and program.cfg is None:
            result.refused[method] = "its example isn't a batch of both halves"
            continue
        try:
            plan = windowed(program, STEPS, method)
            result.errors[method] = method_error(result.tiny, module, program, plan)
        except DitcError as fault:
            result.refused[method] = str(fault)
    asc = not any("asc" in method for method in result.refused)
    plan = mixed_plan(program, asc=asc)
    result.errors["mixed"] = method_error(result.tiny, module, program, plan)
    if place is not None:
        folder = place / result.tiny.title.replace(" ", "-")
        result.errors["onnx"] = lowered_error(result.tiny, module, program, plan, folder)


def _tensors(value: object) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _tensor(value: object) -> torch.Tensor:
    assert isinstance(value, torch.Tensor)
    return value
