"""Precisions of programs: cast to another, and checks that attention gets what it shall."""

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, replace

import torch
from torch import fx

from ditc.runtime.errors import PassError

from .base import run
from .cast_precision import CastPrecision, cast
from .dependence import levels
from .graphs import copy_module, dtype_name, find, flat_outputs, infer
from .operators import MATMUL, SDPA
from .program import Input, Program, Site

__all__ = ["HALVES", "check_attention", "own_precision", "with_precision"]

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""Half precisions, by their names."""

aten = torch.ops.aten


def own_precision(program: Program) -> str:
    """Return the precision of a program's weights: `fp32`, or the half that one of them is in."""
    graph = program.graph_module.graph
    held = {node.meta["val"].dtype for node in graph.find_nodes(op="get_attr")}
    held |= {entry.dtype for entry in program.inputs}
    return next((name for name, dtype in HALVES.items() if dtype in held), "fp32")


def with_precision(program: Program, precision: str, keep: Set[str] = frozenset()) -> Program:
    """Return a program that computes in a precision; itself if that is fp32.

    Its inputs and outputs are float32 all the same, its slots in the precision. A program that
    was captured in that very precision stays as it is, but for inputs, outputs, and what reaches
    an attention.

    Args:
        program: without a prologue.
        precision: `fp32`, `fp16` or `bf16`.
        keep: names of nodes that stay in fp32, as those whose values fp16 can't hold.

    Raises:
        PassError: if the program was captured in another half precision, or more than float32
            would reach an attention.
    """
    own = own_precision(program)
    if own not in ("fp32", precision):
        raise PassError(
            f"the model is {dtype_name(HALVES[own])}, expected float32 for precision {precision}: "
            f"load it in float32 and capture it again, or ask for {own}"
        )
    if precision == "fp32":
        return program
    dtype = HALVES[precision]
    module = copy_module(program.graph_module)
    if own == "fp32":
        run((_pass(program, module.graph, dtype, keep),), module)
    else:
        _widen_ends(module.graph, dtype)
        _narrow_operands(module.graph, program.sites, dtype)
        run((), module)
    made = replace(
        program,
        graph_module=module,
        inputs=tuple(_wide_input(entry, dtype) for entry in program.inputs),
        example={name: _wide(value, dtype) for name, value in program.example.items()},
        unconditional={name: _wide(value, dtype) for name, value in program.unconditional.items()},
        sites=tuple(_renamed(module.graph, site, dtype) for site in program.sites),
        again=None if program.again is None else _Again(program.again, precision, keep),
    )
    check_attention(made, dtype)
    return made


@dataclass(frozen=True)
class _Again:
    """Captures with another number of samples, in the same precision."""

    again: Callable[[Program, int], Program]
    precision: str
    keep: Set[str]

    def __call__(self, program: Program, samples: int) -> Program:
        return with_precision(self.again(program, samples), self.precision, self.keep)


def check_attention(program: Program, dtype: torch.dtype) -> None:
    """Check that queries, keys and values of every attention are of a precision.

    One of float32 among them switches an engine's kernels off, or is refused by it.

    Raises:
        PassError: naming the site.
    """
    graph = program.graph_module.graph
    for site in program.sites:
        for role, name in (("query", site.query), ("key", site.key), ("value", site.value)):
            node = find(graph, name)
            if node is not None and node.meta["val"].dtype is not dtype:
                found = dtype_name(node.meta["val"].dtype)
                raise PassError(
                    f"site {site.name}: its {role} is {found}, expected {dtype_name(dtype)}: "
                    "something of full width, as a rotary table, reaches it"
                )


def _pass(program: Program, graph: fx.Graph, dtype: torch.dtype, keep: Set[str]) -> CastPrecision:
    level = {node.name: found for node, found in levels(program).items()}
    products: set[str] = set()
    inner: set[str] = set()
    for site in program.sites:
        for node in _written_out(graph, site):
            (products if node.target in (*MATMUL, aten.baddbmm.default) else inner).add(node.name)
    return CastPrecision(
        dtype=dtype,
        level=level,
        scalars={entry.name for entry in program.inputs if _is_scalar(entry)},
        operands={name for site in program.sites for name in (site.query, site.key, site.value)},
        products=products,
        inner=inner,
        keep=keep,
    )


def _is_scalar(entry: Input) -> bool:
    """Whether an input is one number a sample, as a timestep or a guidance scale."""
    return entry.role == "timestep" or (len(entry.shape) <= 1 and entry.dtype.is_floating_point)


def _written_out(graph: fx.Graph, site: Site) -> Iterable[fx.Node]:
    """Yield the nodes that an attention is written out with, behind query, key and value."""
    attention = find(graph, site.attention)
    assert attention is not None
    if attention.target is SDPA:
        return
    front, seen = [attention], {site.query, site.key, site.value}
    while front:
        node = front.pop()
        if node.name in seen or node.op != "call_function":
            continue
        seen.add(node.name)
        yield node
        front.extend(node.all_input_nodes)


def _widen_ends(graph: fx.Graph, dtype: torch.dtype) -> None:
    """Take and give float32 where a program has halves."""
    placeholders = graph.find_nodes(op="placeholder")
    for node in placeholders:
        if node.meta["val"].dtype is not dtype:
            continue
        users = list(node.users)
        node.meta["val"] = node.meta["val"].to(torch.float32)
        with graph.inserting_after(placeholders[-1]):
            narrow = cast(node, dtype)
        for user in users:
            user.replace_input_with(node, narrow)
    for node in dict.fromkeys(flat_outputs(graph)):
        if node.meta["val"].dtype is dtype:
            with graph.inserting_after(node):
                graph.output_node().replace_input_with(node, cast(node, torch.float32))


def _narrow_operands(graph: fx.Graph, sites: Iterable[Site], dtype: torch.dtype) -> None:
    """Make halves of what reaches an attention in full width, and of what it returns then."""
    for site in sites:
        for name in dict.fromkeys((site.query, site.key, site.value)):
            node = find(graph, name)
            assert node is not None
            if node.meta["val"].dtype is dtype:
                continue
            users = list(node.users)
            with graph.inserting_after(node):
                narrow = cast(node, dtype)
            for user in users:
                user.replace_input_with(node, narrow)
    infer(graph.nodes)


def _wide_input(entry: Input, dtype: torch.dtype) -> Input:
    return replace(entry, dtype=torch.float32) if entry.dtype is dtype else entry


def _wide(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return value.float() if value.dtype is dtype else value


def _renamed(graph: fx.Graph, site: Site, dtype: torch.dtype) -> Site:
    """Return a site whose query, key and value are the casts of those it had."""

    def narrow(name: str) -> str:
        node = find(graph, name)
        assert node is not None
        if node.meta["val"].dtype is dtype:
            return name
        casts = (user for user in node.users if user.target is aten.to.dtype)
        return next((user.name for user in casts if user.args[1] is dtype), name)

    return replace(site, query=narrow(site.query), key=narrow(site.key), value=narrow(site.value))
