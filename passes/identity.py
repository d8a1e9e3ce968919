"""What a plan holds for: a model's identity, and the layout of classifier-free guidance."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

__all__ = ["CfgLayout", "Identity"]

CfgLayout = Literal["cond-first", "uncond-first"]


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
