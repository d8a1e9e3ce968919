"""How many samples a pipeline makes at once: ask it for so many, and check that it does."""

import inspect
from collections.abc import Mapping

from ditc.passes import Program
from ditc.runtime.errors import DitcError

__all__ = ["check_samples", "with_samples"]

REPEATS = ("num_images_per_prompt", "num_videos_per_prompt")


def with_samples(pipe: object, call: Mapping[str, object], samples: int) -> dict[str, object]:
    """Return a pipeline's arguments that make so many samples.

    What the call is conditioned by is repeated by the pipeline itself where it can; the rest of
    the call is left as it is.

    Args:
        pipe: a diffusers pipeline.
        call: its arguments.
        samples: how many to make at once.
    """
    known = inspect.signature(type(pipe).__call__).parameters
    name = next((name for name in REPEATS if name in known), None)
    given = _conditioned(call)
    if name is None or name in call or samples % given:
        return dict(call)
    return {**call, name: samples // given}


def _conditioned(call: Mapping[str, object]) -> int:
    """Return how many prompts a call has; one where they aren't in a list."""
    prompts = call.get("prompt")
    return max(1, len(prompts)) if isinstance(prompts, list) else 1


def check_samples(model: str, program: Program, samples: int | None) -> None:
    """Refuse a program that makes another number of samples at once; None takes any.

    Raises:
        DitcError: that says how many there are and how to have as many as asked.
    """
    if samples not in (None, program.samples):
        raise DitcError(
            f"model {model}: the call makes {program.samples} at once, {samples} were asked for: "
            "give as many prompts or class labels with --call"
        )
