"""Compile the window kernel ahead of time: PTX for a GPU that isn't here, with no driver.

Everything but the six pointers is a constant of the code: query, key, value, the pattern's rows and
runs, and the output, in this order.
"""

import re
from dataclasses import dataclass

import torch

from ditc.passes.pattern import Pattern
from ditc.passes.window_kernel import Blocks, Shape, constants
from ditc.runtime.errors import LoweringError, first_line, install

__all__ = ["Kernel", "compile_ptx"]

POINTERS = ("query", "key", "value", "rows", "runs", "output")
ELEMENTS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
LANES = 32
ALIGNED_BYTES = 16


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel and how it is launched.

    Attributes:
        entry: name of the function.
        ptx: its code.
        grid: blocks along x and y.
        threads: of a block.
        shared_bytes: shared memory of a block, to be allowed beyond 48 KiB where it is more.
    """

    entry: str
    ptx: bytes
    grid: tuple[int, int]
    threads: int
    shared_bytes: int


def compile_ptx(
    shape: Shape, pattern: Pattern, scale: float, heads: int, blocks: Blocks, capability: int
) -> Kernel:
    """Compile the kernel for contiguous tensors.

    Args:
        shape: of each head.
        pattern: what each query sees.
        scale: factor on query · key.
        heads: of all samples.
        blocks: how the kernel is cut up, as the pattern was.
        capability: of the GPU, as 89 for compute capability 8.9.

    Raises:
        LoweringError: if Triton isn't there, interprets its kernels, or can't compile this.
    """
    try:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
    except ImportError as error:
        raise LoweringError(f"the window kernel needs {error.name}: {install('triton')}") from error
    from ditc.passes.window_triton import window_kernel

    if not isinstance(window_kernel, triton.JITFunction):
        raise LoweringError("Triton interprets its kernels: unset TRITON_INTERPRET to compile them")
    names = window_kernel.arg_names
    values = {**_layout(shape, heads, pattern), **constants(shape, pattern, scale, blocks)}
    element = ELEMENTS[shape.dtype]
    types = dict.fromkeys(POINTERS, element) | dict.fromkeys(("rows", "runs"), "*i32")
    source = ASTSource(
        window_kernel,
        {name: types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in values.items()},
        attrs={(names.index(name),): [["tt.divisibility", ALIGNED_BYTES]] for name in POINTERS},
    )
    options = {"num_warps": blocks.warps, "num_stages": blocks.stages}
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.disable_line_info = True  # paths of this machine
        try:
            made = triton.compile(source, GPUTarget("cuda", capability, LANES), options)
        except Exception as error:  # whatever the compiler and its assembler run into
            raise LoweringError(f"window kernel for sm{capability}: {first_line(error)}") from error
    return Kernel(
        entry=made.metadata.name,
        ptx=_without_scratch(made.asm["ptx"], made.metadata.name).encode(),
        grid=(len(pattern.rows), heads),
        threads=LANES * made.metadata.num_warps,
        shared_bytes=made.metadata.shared,
    )


def _layout(shape: Shape, heads: int, pattern: Pattern) -> dict[str, int]:
    """Return the kernel's numbers for contiguous tensors, all heads as those of one sample."""
    layout = {"heads": heads, "tokens": shape.tokens, "origin": pattern.origin}
    channels = {"query": shape.head_dim, "key": shape.head_dim, "value": shape.value_dim}
    for name, size in channels.items():
        layout |= {
            f"{name}_batch": 0,
            f"{name}_head": shape.tokens * size,
            f"{name}_token": size,
        }
    return layout


def _without_scratch(ptx: str, entry: str) -> str:
    """Drop the parameters behind the six pointers, which Triton adds for its own use.

    Raises:
        LoweringError: if the code reads one of them, so that it can't be launched without.
    """
    parameters = re.findall(rf"\.param [^\n]*\b({entry}_param_\d+)", ptx)
    for name in parameters[len(POINTERS) :]:
        if len(re.findall(rf"\b{name}\b", ptx)) > 1:
            raise LoweringError(f"window kernel: its code needs {name}, scratch memory of Triton's")
        ptx = re.sub(rf",\s*\.param [^\n,]*\b{name}\b", "", ptx)
    return ptx
