"""Fuse guidance: graph → both halves   becomes   graph, scale → u + scale · (c − u)."""

from dataclasses import replace

import torch
from torch import fx
from torch.utils import _pytree as pytree

from ditc.runtime.errors import PassError

from .base import run
from .graphs import call, copy_module, fake_mode, flat_outputs, shape_of
from .identity import in_batch
from .program import Input, Program
from .remove_dead_code import RemoveDeadCode
from .verify import verify_values

__all__ = ["GUIDANCE_SCALE", "fuse_guidance"]

aten = torch.ops.aten

GUIDANCE_SCALE = "guidance_scale"
"""Name of the input that holds the scale."""
DEFAULT = 4.0


def fuse_guidance(program: Program) -> Program:
    """Return a program whose one output is guided (Ho and Salimans 2022, arXiv 2207.12598).

    The scale becomes an input of no axes. The output has half the batch and is float32. Where it
    has twice the latents' channels, the second half predicts a variance, which isn't guided: it
    is the conditional half's.

    Args:
        program: with both halves in one batch.

    Raises:
        PassError: if there are no halves in one batch, the name of the new input is taken, or the
            output isn't like the latents.
    """
    if not in_batch(program.cfg):
        raise PassError(
            f"guidance can't be fused: the program's CFG layout is {program.cfg}, expected both "
            "halves in one batch"
        )
    if GUIDANCE_SCALE in program.in_paths.values() or GUIDANCE_SCALE in program.constants:
        raise PassError(f"guidance can't be fused: the model has an argument {GUIDANCE_SCALE}")
    module = copy_module(program.graph_module)
    graph = module.graph
    output = flat_outputs(graph)[0]
    _check_output(program, output)
    scale = _add_scale(graph)
    with graph.inserting_before(graph.output_node()):
        graph.output_node().args = ((_guided(program, graph, output, scale),),)
    run((RemoveDeadCode(),), module)
    verify_values(module)
    entry = Input(GUIDANCE_SCALE, (), torch.float32, "guidance")
    return replace(
        program,
        graph_module=module,
        inputs=(*program.inputs, entry),
        outputs=program.outputs[:1],
        example={**program.example, GUIDANCE_SCALE: torch.tensor(DEFAULT)},
        in_paths={**program.in_paths, GUIDANCE_SCALE: GUIDANCE_SCALE},
        out_spec=pytree.tree_structure(torch.empty(0)),
    )


def _check_output(program: Program, output: fx.Node) -> None:
    found, latents = shape_of(output), program.latents.shape
    alike = len(found) == len(latents) and found[0] == latents[0] and found[2:] == latents[2:]
    if not alike or found[1:2] not in (latents[1:2], tuple(2 * size for size in latents[1:2])):
        raise PassError(
            f"guidance can't be fused: the first output is {list(found)}, expected {list(latents)} "
            "like the latents, or twice the channels"
        )


def _add_scale(graph: fx.Graph) -> fx.Node:
    last = graph.find_nodes(op="placeholder")[-1]
    with graph.inserting_after(last):
        scale = graph.placeholder(GUIDANCE_SCALE)
    with fake_mode(graph):
        scale.meta["val"] = torch.empty((), dtype=torch.float32)
    return scale


def _guided(program: Program, graph: fx.Graph, output: fx.Node, scale: fx.Node) -> fx.Node:
    batch, channels = program.latents.shape[0], program.latents.shape[1:2]
    if output.meta["val"].dtype != torch.float32:
        output = call(graph, aten.to.dtype, output, torch.float32)
    halves = [
        call(graph, aten.slice.Tensor, output, 0, start, start + batch // 2)
        for start in (0, batch // 2)
    ]
    conditional, unconditional = halves if program.cfg == "cond-first" else halves[::-1]
    variance = []
    if shape_of(output)[1:2] != channels:
        width = channels[0]
        variance.append(call(graph, aten.slice.Tensor, conditional, 1, width, 2 * width))
        conditional, unconditional = (
            call(graph, aten.slice.Tensor, half, 1, 0, width)
            for half in (conditional, unconditional)
        )
    step = call(graph, aten.sub.Tensor, conditional, unconditional)
    scaled = call(graph, aten.mul.Tensor, step, scale)
    guided = call(graph, aten.add.Tensor, unconditional, scaled)
    return call(graph, aten.cat.default, [guided, *variance], 1) if variance else guided
