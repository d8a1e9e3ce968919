"""What a model reads from its tensors: recorded in an eager run, followed while it is traced.

A tracer has no values, so that it stops where Python asks for one: the length of a prompt behind
its mask, the tokens that a mask keeps. Where only conditioning decides, the model is run once and
every answer written down, and tracing is given the same answers in the same order. The graph then
holds for these values of the arguments that decided, and for no other.
"""

import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

from ditc.runtime.errors import CaptureError

__all__ = ["Answer", "Following", "Noting", "is_model_file"]

Function = Callable[..., object]
T = torch.Tensor

VALUES: tuple[Function, ...] = (
    T.item,
    T.numpy,
    T.__bool__,
    T.__int__,
    T.__float__,
    T.__index__,
    T.equal,
    torch.equal,
    torch.allclose,
)
"""Functions that give Python the values of a tensor."""

INDICES: tuple[Function, ...] = (T.nonzero, torch.nonzero, torch.argwhere, T.argwhere)
"""Functions whose result is as long as the values of their argument say; it is integers."""

REPEATS: tuple[Function, ...] = (torch.repeat_interleave, T.repeat_interleave)
GET, SET = T.__getitem__, T.__setitem__
SIZED: tuple[Function, ...] = (
    torch.arange,
    torch.zeros,
    torch.ones,
    torch.full,
    torch.empty,
    torch.split,
    T.split,
    T.view,
    T.reshape,
    T.expand,
    T.repeat,
    T.new_zeros,
    T.new_ones,
    T.narrow,
)
"""Functions that take sizes, which may come as tensors of one integer."""


@dataclass(frozen=True)
class Answer:
    """One value that the model read.

    Attributes:
        value: numbers, or tensors of indices.
        where: line of the model that asked.
        sources: paths of the arguments that the value comes from.
    """

    value: object
    where: str
    sources: frozenset[str]


def is_model_file(name: str) -> bool:
    """Return whether a file of code may be the model's own: it is neither torch's nor a pass."""
    here, tracer = str(Path(__file__).parent), str(Path(torch.__file__).parent)
    return not name.startswith((here, tracer, "<"))


def _model_line() -> str:
    """Return `file:line in function` of the innermost running line that is the model's own."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if is_model_file(frame.f_code.co_filename):
            return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return "a line that isn't known"


class _Reading(TorchFunctionMode):
    """Sees every torch function that the model calls, and answers those that read values."""

    def __torch_function__(
        self,
        func: Function,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        del types
        given = dict(kwargs or {})
        if func is T.tolist:
            return self._list(_tensor(args[0]))
        if func in VALUES:
            return self.answer(lambda: func(*args, **given), args)
        if func in INDICES and not given.get("as_tuple"):
            return self.answer(lambda: func(*args, **given), args)
        if func in INDICES:
            found = self.answer(lambda: torch.nonzero(_tensor(args[0])), args)
            return _tensor(found).unbind(1)
        if func in (GET, SET):
            args = (args[0], self._index(args[1]), *args[2:])
        elif func in REPEATS and len(args) > 1 and isinstance(args[1], T):
            return self._repeat(_tensor(args[0]), args[1], given.get("dim", (*args, None)[2]))
        elif func in REPEATS and len(args) == 1:
            return self.answer(lambda: func(*args, **given), args)
        elif func in SIZED:
            first = 1 if args and isinstance(args[0], T) and func is not torch.arange else 0
            args = (*args[:first], *(self._sizes(arg) for arg in args[first:]))
        return self.run(func, args, given)

    def _list(self, source: T) -> object:
        """Read element after element, as tensors without values do it."""
        if source.dim() == 0:
            return self.answer(source.item, (source,))
        if source.dim() == 1:
            return [self.answer(entry.item, (source,)) for entry in source.unbind()]
        return [self._list(source[row]) for row in range(len(source))]

    def _repeat(self, source: T, repeats: T, axis: object) -> object:
        """Repeat entries as often as a tensor says, by the indices that this comes to."""
        at = axis if isinstance(axis, int) else 0
        flat = source if isinstance(axis, int) else source.flatten()
        if repeats.numel() == 1:
            places = torch.arange(flat.shape[at], device=flat.device)
            indices = self.answer(lambda: places.repeat_interleave(repeats), (repeats,))
        else:
            indices = self.answer(lambda: torch.repeat_interleave(repeats), (repeats,))
        return self.run(torch.index_select, (flat, at, indices), {})

    def _index(self, index: object) -> object:
        """Return an index without masks, whose result has a size that only values tell."""
        if not isinstance(index, tuple):
            found = self._part(index)
            return found[0] if len(found) == 1 else found
        return tuple(part for entry in index for part in self._part(entry))

    def _part(self, part: object) -> tuple[object, ...]:
        if isinstance(part, slice):
            return (slice(*(self._sizes(edge) for edge in (part.start, part.stop, part.step))),)
        if not isinstance(part, T) or part.dtype is not torch.bool or part.dim() == 0:
            return (part,)
        return tuple(_tensor(self.answer(lambda: torch.nonzero(part), (part,))).unbind(1))

    def _sizes(self, value: object) -> object:
        if isinstance(value, T):
            single = value.dim() == 0 and not value.is_floating_point()
            return self.answer(value.item, (value,)) if single else value
        if isinstance(value, list | tuple) and any(isinstance(entry, T) for entry in value):
            return type(value)(self._sizes(entry) for entry in value)
        return value

    def answer(self, ask: Callable[[], object], asked: object) -> object:
        """Return what a function that reads values gives."""
        raise NotImplementedError

    def run(self, func: Function, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Return what any other function gives."""
        return func(*args, **kwargs)


class Noting(_Reading):
    """Writes down what an eager run reads, and which arguments it comes from.

    Args:
        inputs: tensors among the arguments, by path.
    """

    def __init__(self, inputs: Mapping[str, T]) -> None:
        super().__init__()
        self.answers: list[Answer] = []
        self._sources: MutableMapping[T, frozenset[str]] = WeakTensorKeyDictionary()
        for path, tensor in inputs.items():
            self._sources[tensor] = frozenset((path,))

    def answer(self, ask: Callable[[], object], asked: object) -> object:
        """Compute the answer and write it down, unless no argument has a part in it."""
        value = ask()
        kept = pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, T) else leaf, value)
        self.answers.append(Answer(kept, _model_line(), self._of(asked)))
        self._mark(value, self._of(asked))
        return value

    def run(self, func: Function, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Run a function; what it returns or writes comes from all that it was given."""
        value = func(*args, **kwargs)
        sources = self._of((args, kwargs))
        self._mark(value, sources)
        name = getattr(func, "__name__", "")
        if args and (func is SET or (name.endswith("_") and not name.endswith("__"))):
            self._mark(args[0], sources)
        return value

    def _of(self, values: object) -> frozenset[str]:
        tensors = [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, T)]
        return frozenset[str]().union(*(self._sources.get(t, frozenset()) for t in tensors))

    def _mark(self, values: object, sources: frozenset[str]) -> None:
        for leaf in pytree.tree_leaves(values):
            if not isinstance(leaf, T):
                continue
            for tensor in (leaf, leaf._base):
                if tensor is not None:
                    self._sources[tensor] = self._sources.get(tensor, frozenset()) | sources


class Following(_Reading):
    """Gives a run the answers that were noted, in their order.

    Args:
        answers: what an eager run read.
    """

    def __init__(self, answers: Sequence[Answer]) -> None:
        super().__init__()
        self._left = iter(answers)

    def answer(self, ask: Callable[[], object], asked: object) -> object:
        """Return the next answer.

        Raises:
            CaptureError: if it is another line of the model that asks.
        """
        del ask, asked
        where = _model_line()
        given = next(self._left, None)
        if given is None or given.where != where:
            raise CaptureError(f"{where} reads values of a tensor that it didn't read when run")
        return pytree.tree_map(_constant, given.value)


def _constant(leaf: object) -> object:
    if not isinstance(leaf, T):
        return leaf
    return torch.tensor(leaf.tolist(), dtype=leaf.dtype, device=leaf.device).reshape(leaf.shape)


def _tensor(value: object) -> T:
    assert isinstance(value, T)
    return value
