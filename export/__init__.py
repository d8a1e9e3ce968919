"""Lowering: graphs to engines, weights to one store, all of it to a bundle.

>>> path = compile(schedule(program, plan), "bundle", sampler=pipe.scheduler)
"""

from .blocks import blocked_window_attention
from .checkpoint import Checkpoint, empty_model
from .compiling import compile  # noqa: A004 (the public name)
from .decoder import capture_decoder
from .joining import compile_variants
from .sampler import sampler_table

__all__ = [
    "Checkpoint",
    "blocked_window_attention",
    "capture_decoder",
    "compile",
    "compile_variants",
    "empty_model",
    "sampler_table",
]
