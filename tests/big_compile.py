"""Compile a model of a given width from a checkpoint on disk; print the peak memory on top.

python -m tests.big_compile WIDTH FOLDER
"""

import resource
import sys
from pathlib import Path

import torch
from torch import nn

from ditc.export import Checkpoint, compile, empty_model  # noqa: A004 (the public name)
from ditc.export.weights import Entry, write_store
from ditc.passes import Plan, capture, schedule

from .models import PlainDenoiser, SdpaAttention

TOKENS = 16


def make(width: int) -> nn.Module:
    return PlainDenoiser(SdpaAttention, layers=4, width=width)


def write(width: int, path: Path) -> int:
    """Write weights of that model, one by one; return their bytes."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in make(width).named_parameters()}
    entries = {
        name: Entry(tuple(shape), torch.float32, lambda shape=shape: torch.full(shape, 0.01))
        for name, shape in shapes.items()
    }
    write_store(entries, path)
    return sum(entry.nbytes for entry in entries.values())


def compiled(width: int, folder: Path) -> None:
    checkpoint = Checkpoint(folder / "model.safetensors")
    module = empty_model(lambda: make(width), checkpoint)
    kwargs = {"x": torch.zeros(2, TOKENS, width), "t": torch.ones(2)}
    program = capture(module, kwargs, "cond-first", weights=checkpoint)
    plan = Plan.uniform(program, steps=3, method="ast")
    compile(schedule(program, plan), folder / "bundle", cache=folder / "cache", jobs=1)


def peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    width, folder = int(sys.argv[1]), Path(sys.argv[2])
    write(64, folder / "model.safetensors")
    compiled(64, folder)  # whatever a first build imports
    before = peak()
    size = write(width, folder / "model.safetensors")
    compiled(width, folder)
    print(size, peak() - before)
