"""One run at a time: slots and bindings hold one generation."""

from collections.abc import Callable
from functools import wraps
from threading import Lock
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from .errors import EngineError

__all__ = ["Turns", "alone"]


class Turns(Protocol):
    """What has runs that can't overlap."""

    _turn: Lock


P = ParamSpec("P")
S = TypeVar("S", bound=Turns)
R = TypeVar("R")


def alone(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Return a method that refuses to start while another is running, and never waits."""

    @wraps(method)
    def run(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if not self._turn.acquire(blocking=False):
            raise EngineError(
                "the bundle is running already, in another thread or around this callback, and "
                "its slots hold one generation: open it once for each that runs at a time"
            )
        try:
            return method(self, *args, **kwargs)
        finally:
            self._turn.release()

    return run
