"""Small half-precision programs with heads that engines have kernels for, and their graphs."""

from functools import lru_cache

import torch

from ditc.export.library import Library, find_library
from ditc.export.lowered import Lowered
from ditc.export.onnx import lower
from ditc.passes import Program, Schedule, Window, capture, schedule
from ditc.runtime.targets import parse_target

from .compiled import planned
from .models import PlainDenoiser, SdpaAttention, noise, randomised

HEADS, HEAD_DIM, TOKENS, BATCH = 2, 64, 200, 4
METHODS = {
    (torch.float16, 1): ("full", "wa-rs", "asc", "full", "wa-rs+asc", "ast"),
    (torch.float16, 20): ("full", "wa-rs"),
    (torch.float32, 20): ("full", "wa-rs", "ast"),
}
"""Of each step, by precision and the window's block: a band, or blocks of tokens."""


@lru_cache
def program(dtype: torch.dtype, head_dim: int = HEAD_DIM) -> Program:
    """Return a denoiser of one attention, captured in a precision."""
    module = randomised(PlainDenoiser(SdpaAttention, layers=1, width=HEADS * head_dim), std=0.05)
    kwargs = {
        "x": noise(BATCH, TOKENS, HEADS * head_dim).to(dtype),
        "t": torch.full((BATCH,), 0.5, dtype=dtype),
    }
    return capture(module.to(dtype), kwargs, cfg="cond-first")


@lru_cache
def planned_schedule(
    dtype: torch.dtype, block: int, computed: torch.dtype | None = None
) -> Schedule:
    """Return the schedule of a precision's methods, to be computed in another if that is given."""
    found = program(computed or dtype)
    return schedule(found, planned(found, *METHODS[dtype, block], window=Window(40, block)))


@lru_cache
def lowered(dtype: torch.dtype, block: int) -> dict[str, Lowered]:
    """Return the graph of each bucket, by its name."""
    return {bucket.name: lower(bucket) for bucket in planned_schedule(dtype, block).buckets}


def tensors(graph: Lowered, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return what a graph refers to, by name."""
    weights = {name: source.tensor(program(dtype)) for name, source in graph.weights.items()}
    return {**weights, **graph.constants}


def rtx(*capabilities: str) -> Library:
    """Return TensorRT-RTX for GPUs of some compute capabilities."""
    return find_library(parse_target(f"tensorrt-rtx:{','.join(capabilities or ('sm89',))}"))
