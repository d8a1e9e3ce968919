"""A call's keyword arguments: nested ones by dotted path, lists of samples as one tensor each."""

from collections.abc import Iterator, Mapping, Set

import torch
from torch.utils import _pytree as pytree

from ditc.runtime.errors import CaptureError

__all__ = ["check_named", "flatten", "stack"]


def check_named(kwargs: object) -> None:
    """Refuse arguments that aren't by name.

    Raises:
        CaptureError: saying what was found in the place of a dict.
    """
    if not isinstance(kwargs, Mapping):
        raise CaptureError(f"arguments must be a dict by name, found a {type(kwargs).__name__}")
    for name in kwargs:
        if not isinstance(name, str):
            raise CaptureError(f"arguments must be a dict by name, found {name!r} for a name")


def stack(kwargs: Mapping[str, object], names: Set[str]) -> Mapping[str, object]:
    """Return keyword arguments with lists of samples of those names made one tensor each.

    Raises:
        CaptureError: if the samples differ in shape.
    """
    made = dict(kwargs)
    for name in names & kwargs.keys():
        value = kwargs[name]
        if not isinstance(value, list | tuple):
            continue
        shapes = {tuple(sample.shape) for sample in value}
        if len(shapes) != 1:
            raise CaptureError(f"samples of argument {name} differ in shape: {sorted(shapes)}")
        made[name] = torch.stack(list(value))
    return made


def flatten(kwargs: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Yield the leaves of nested keyword arguments with dotted paths."""
    leaves, _ = pytree.tree_flatten_with_path(dict(kwargs))
    for keys, leaf in leaves:
        yield ".".join(_key_text(key) for key in keys), leaf


def _key_text(key: object) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)
