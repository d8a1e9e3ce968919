"""Export a module: torch.export, what the model decides by its conditioning followed."""

import logging
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager, nullcontext, redirect_stderr
from functools import wraps
from io import StringIO

import torch
from torch.utils import _pytree as pytree

from ditc.runtime.errors import CaptureError, first_line

from .arguments import flatten
from .choices import Answer, Following, Noting, is_model_file
from .unloaded import is_stood_in

__all__ = ["export", "traced_line"]

Kwargs = Mapping[str, object]
Forward = Callable[..., object]
FRAME = re.compile(r'^\s*File "(.+)", line (\d+), in (.+)$', re.MULTILINE)
"""A line of a stack trace, as Python writes it."""


def export(
    module: torch.nn.Module,
    kwargs: Kwargs,
    changing: Callable[[str], bool],
    stacked: Set[str] = frozenset(),
) -> tuple[torch.export.ExportedProgram, frozenset[str]]:
    """Export a module for a call.

    Args:
        module: the denoiser; exported in eval mode, its mode is restored.
        kwargs: arguments of the call.
        changing: whether an argument, by its path, changes from step to step.
        stacked: arguments that are given as one tensor where the module takes a list of samples;
            its output is stacked then as well.

    Returns:
        The program, and the paths of arguments whose values the model decided by: the program
        holds for these values alone.

    Raises:
        CaptureError: naming the argument that isn't made of tensors, or the model's line that
            can't be traced.
    """
    name = type(module).__name__
    _check_arguments(name, kwargs)
    modes = {part: part.training for part in module.modules()}
    try:
        with torch.no_grad(), _quiet(), _listing(module, stacked):
            module.eval()
            _warm_up(module, kwargs)
            try:
                return _functional(_traced(module, kwargs)), frozenset()
            except Exception as error:  # torch.export raises whatever the model's code ran into
                answers = _noted(module, kwargs)
                if not answers:
                    raise CaptureError(f"{name} can't be captured: {_reason(error)}") from error
            fixed = _fixed(name, answers, changing)
            try:
                with _following(module, answers):
                    return _functional(_traced(module, kwargs)), fixed
            except Exception as error:
                raise CaptureError(f"{name} can't be captured: {_reason(error)}") from error
    finally:
        for part, mode in modes.items():
            part.training = mode


def _check_arguments(name: str, kwargs: Kwargs) -> None:
    """Refuse objects of classes that aren't trees of tensors, numbers and text."""
    for path, leaf in flatten(kwargs):
        if not isinstance(leaf, torch.Tensor | int | float | complex | str | bool | None):
            found = type(leaf).__name__
            if callable(leaf) or hasattr(leaf, "__dict__"):
                raise CaptureError(
                    f"{name} can't be captured: argument {path} is a {found}, expected tensors, "
                    "numbers, text, or lists and dicts of them"
                )


def _warm_up(module: torch.nn.Module, kwargs: Kwargs) -> None:
    """Run a module, so that what it caches is tensors of its own and not the tracer's.

    Reads of values are noted, though nobody asks for them yet: of a model that isn't loaded only
    those can be read that conditioning tells.

    Raises:
        CaptureError: if the call fails, with the model's line.
    """
    given = pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, dict(kwargs))
    try:
        with Noting({}) if is_stood_in(module) else nullcontext():
            module(**given)
    except Exception as error:  # whatever the model's code runs into
        name = type(module).__name__
        raise CaptureError(f"{name} can't be captured: {_reason(error)}") from error


def _traced(module: torch.nn.Module, kwargs: Kwargs) -> torch.export.ExportedProgram:
    exported = torch.export.export(module, (), dict(kwargs), strict=False)
    for node in exported.graph.nodes:
        for value in pytree.tree_leaves(node.meta.get("val")):
            if isinstance(value, torch.Tensor) and not all(type(n) is int for n in value.shape):
                where = traced_line(node.meta.get("stack_trace"))
                raise CaptureError(f"a size depends on values of tensors{where}")
    return exported


def _functional(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Replace operators that write into their arguments, if any, by ones that don't.

    Dead code removal may then drop any node, and changes to buffers show in the signature.
    """
    targets = [node.target for node in exported.graph.nodes]
    if any(isinstance(op, torch._ops.OpOverload) and op._schema.is_mutable for op in targets):
        exported = exported.run_decompositions({})
    return exported


def _noted(module: torch.nn.Module, kwargs: Kwargs) -> list[Answer]:
    """Return what an eager run reads from tensors; nothing if it fails."""
    inputs = {path: leaf for path, leaf in flatten(kwargs) if isinstance(leaf, torch.Tensor)}
    noting = Noting(inputs)
    try:
        with noting:
            module(**kwargs)
    except Exception:  # then what stopped the tracer is told, which is closer to the cause
        return []
    return noting.answers


def _fixed(name: str, answers: list[Answer], changing: Callable[[str], bool]) -> frozenset[str]:
    for answer in answers:
        moving = sorted(path for path in answer.sources if changing(path))
        if moving:
            raise CaptureError(
                f"{name} can't be captured: {answer.where} reads values that come from "
                f"{moving[0]}, which is another at every step, so no one graph holds for all"
            )
    return frozenset[str]().union(*(answer.sources for answer in answers))


@contextmanager
def _following(module: torch.nn.Module, answers: list[Answer]) -> Iterator[None]:
    """Have the module's forward follow the answers."""

    def followed(forward: Forward, kwargs: Kwargs) -> object:
        with Following(answers):
            return forward(**kwargs)

    with _wrapped(module, followed):
        yield


@contextmanager
def _listing(module: torch.nn.Module, stacked: Set[str]) -> Iterator[None]:
    """Have the module's forward take stacked samples, and return them stacked."""
    if not stacked:
        yield
        return

    def listed(forward: Forward, kwargs: Kwargs) -> object:
        lists = {name: list(_unbound(kwargs[name])) for name in stacked}
        leaves = pytree.tree_leaves(forward(**{**kwargs, **lists}))
        return torch.stack(leaves)

    with _wrapped(module, listed):
        yield


def _unbound(value: object) -> tuple[torch.Tensor, ...]:
    assert isinstance(value, torch.Tensor)
    return value.unbind(0)


@contextmanager
def _wrapped(
    module: torch.nn.Module, around: Callable[[Forward, Kwargs], object]
) -> Iterator[None]:
    """Put a function around the module's forward."""
    was = module.__dict__.get("forward")
    forward = module.forward

    @wraps(forward)
    def wrapped(**kwargs: object) -> object:
        return around(forward, kwargs)

    module.forward = wrapped
    try:
        yield
    finally:
        del module.forward
        if was is not None:
            module.forward = was


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tracer from logging the graph of an export that is reported as one line."""
    was = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        logging.disable(was)


def _reason(error: BaseException) -> str:
    """Return the first line of an error and the model's line that it came from."""
    if isinstance(error, CaptureError):
        return str(error)
    reason, frames = first_line(error), traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if is_model_file(frame.filename)]
    return f"{reason} ({_at(own[-1])})" if own else reason


def traced_line(stack_trace: object) -> str:
    """Return ` (file:line in function)` of the model's line that a traced node comes from."""
    if not isinstance(stack_trace, str):
        return ""
    places = FRAME.findall(stack_trace)
    own = [place for place in places if is_model_file(place[0])]
    return " ({}:{} in {})".format(*own[-1]) if own else ""


def _at(frame: traceback.FrameSummary) -> str:
    return f"{frame.filename}:{frame.lineno} in {frame.name}"
