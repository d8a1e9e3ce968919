"""What a plan holds for: a model's identity, and the layout of classifier-free guidance."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import torch

__all__ = ["CFG_LAYOUTS", "CfgLayout", "Identity", "compatible", "in_batch"]

CfgLayout = Literal["cond-first", "uncond-first", "separate", "separate-uncond-first"]
"""Where the halves of classifier-free guidance are: both in one batch, the conditional or the
unconditional one first; or in two calls a step, the conditional or the unconditional one first."""

CFG_LAYOUTS: tuple[CfgLayout, ...] = get_args(CfgLayout)


SCRIPT = "__main__."
"""What the name of a class begins with in the script that defines it."""


def in_batch(cfg: CfgLayout | None) -> bool:
    """Whether one batch holds both halves."""
    return cfg in ("cond-first", "uncond-first")


def compatible(first: str | None, second: str | None) -> bool:
    """Whether a plan for one layout means the same under another.

    A site computes the same from two halves in one batch as from two calls, as long as the
    conditional half comes first, from which the other takes what is shared.
    """
    shared = ("cond-first", "separate")
    return first == second or (first in shared and second in shared)


@dataclass(frozen=True)
class Identity:
    """What a model is, as far as a plan cares: its class and what its weights look like.

    Attributes:
        model: qualified class name.
        config_sha256: digest over the configuration (diffusers' where there is one) and the
            names, shapes and dtypes of parameters; not over their values.
    """

    model: str
    config_sha256: str

    def same_class(self, other: "Identity") -> bool:
        """Whether two models are of one class.

        A script's own classes lie in `__main__` while it runs and in its module elsewhere: there
        the class's name alone is compared.
        """
        ours, theirs = self.model, other.model
        if theirs.startswith(SCRIPT):
            ours, theirs = theirs, ours
        if not ours.startswith(SCRIPT):
            return ours == theirs
        name = ours.removeprefix(SCRIPT)
        return theirs.endswith(f".{name}")

    def matches(self, other: "Identity") -> bool:
        """Whether what holds for one model holds for the other: one class, one configuration."""
        return self.same_class(other) and self.config_sha256 == other.config_sha256

    @classmethod
    def of(cls, module: "torch.nn.Module") -> "Identity":
        """Return the identity of a module."""
        config = getattr(module, "config", None)
        known = dict(config) if isinstance(config, Mapping) else {}
        stated = {key: repr(known[key]) for key in sorted(known) if not key.startswith("_")}
        weights = [[name, list(p.shape), str(p.dtype)] for name, p in module.named_parameters()]
        text = json.dumps([stated, sorted(weights)], sort_keys=True)
        qualified = f"{type(module).__module__}.{type(module).__qualname__}"
        return cls(qualified, hashlib.sha256(text.encode()).hexdigest())
