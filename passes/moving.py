"""Move a program to another device: weights, devices written into the graph, and values in it."""

from dataclasses import replace

import torch
from torch import fx
from torch.fx.node import Argument, map_aggregate
from torch.utils import _pytree as pytree

from ditc.runtime.errors import EngineError, first_line

from .graphs import copy_module, fake_mode
from .program import Program
from .prologue import Part

__all__ = ["device_of", "on_device"]


def device_of(program: Program) -> torch.device:
    """Return the device that a program runs on."""
    return program.example[program.latents.name].device


def on_device(program: Program, device: str | torch.device) -> Program:
    """Return the program on another device, the one given left as it is.

    Args:
        program: what to move.
        device: as torch names it.

    Raises:
        EngineError: if there is no such device here.
    """
    target = _existing(device)
    if target == device_of(program):
        return program
    mover = _Mover(device_of(program), target)
    prologue = program.prologue
    if prologue is not None:
        prologue = replace(
            prologue, prompt=mover.part(prologue.prompt), step=mover.part(prologue.step)
        )
    return replace(
        program,
        graph_module=mover.module(program.graph_module),
        example={name: mover.tensor(value) for name, value in program.example.items()},
        unconditional={name: mover.tensor(v) for name, v in program.unconditional.items()},
        prologue=prologue,
    )


def _existing(device: str | torch.device) -> torch.device:
    try:
        return torch.empty(0, device=device).device  # "cuda" gets its number
    except (RuntimeError, AssertionError) as error:
        raise EngineError(
            f"device {device} can't be used: {first_line(error)}; torch is {torch.__version__}"
        ) from error


class _Mover:
    """Moves what lies on one device to another; a tensor met twice stays one."""

    def __init__(self, source: torch.device, target: torch.device) -> None:
        self._source = source
        self._target = target
        self._moved: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def tensor(self, value: torch.Tensor) -> torch.Tensor:
        if value.device != self._source:
            return value
        if id(value) not in self._moved:  # the first of the pair is kept for its id
            self._moved[id(value)] = value, value.detach().to(self._target)
        return self._moved[id(value)][1]

    def part(self, part: Part | None) -> Part | None:
        return part and replace(part, graph_module=self.module(part.graph_module))

    def module(self, module: fx.GraphModule) -> fx.GraphModule:
        copy = copy_module(module)
        for target in {str(node.target) for node in copy.graph.find_nodes(op="get_attr")}:
            self._move_weight(copy, target)
        for node in copy.graph.nodes:
            node.args = map_aggregate(node.args, self._device)
            node.kwargs = map_aggregate(node.kwargs, self._device)
            if "val" in node.meta:
                node.meta["val"] = pytree.tree_map_only(
                    torch.Tensor, lambda value: self._fake(copy.graph, value), node.meta["val"]
                )
        copy.recompile()
        return copy

    def _move_weight(self, module: fx.GraphModule, target: str) -> None:
        path, _, name = target.rpartition(".")
        holder = module.get_submodule(path)
        value = getattr(holder, name)
        moved = self.tensor(value)
        if isinstance(value, torch.nn.Parameter):
            moved = torch.nn.Parameter(moved, requires_grad=False)
        setattr(holder, name, moved)

    def _device(self, argument: Argument) -> Argument:
        if isinstance(argument, torch.device) and argument == self._source:
            return self._target
        return argument

    def _fake(self, graph: fx.Graph, value: torch.Tensor) -> torch.Tensor:
        if value.device.type != self._source.type:
            return value
        with fake_mode(graph):
            return torch.empty_strided(
                value.shape, value.stride(), dtype=value.dtype, device=self._target
            )
