"""Capture a denoiser: module and arguments → aten graph, inputs, sites."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace

import torch
from torch import fx
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from ditc.runtime.errors import CaptureError

from .arguments import check_named, flatten, stack
from .base import run
from .clean_inference import CleanInference
from .exporting import export
from .graphs import add_weight
from .grid import token_grid
from .identity import CFG_LAYOUTS, in_batch
from .program import CfgLayout, Identity, Input, Program, Role
from .remove_dead_code import RemoveDeadCode
from .resizing import resized
from .sites import find_sites
from .told import Told
from .unlifting import unlift
from .unloaded import Weights, standing_in

__all__ = ["capture"]

LATENTS = ("hidden_states", "sample", "latents", "x")
TIMESTEP = ("timestep", "timesteps", "time", "t")


def capture(
    module: torch.nn.Module,
    kwargs: Mapping[str, object],
    cfg: CfgLayout | None = None,
    *,
    latents: str | None = None,
    timestep: str | None = None,
    unconditional: Mapping[str, object] | None = None,
    told: Told | None = None,
    weights: Weights | None = None,
    temporal: bool = False,
) -> Program:
    """Capture a denoiser as a program.

    Args:
        module: the denoiser; captured in eval mode, its mode is restored. Weights are shared
            with the program, not copied. Those on the meta device stay there: nothing is computed
            with them.
        kwargs: arguments of one call, all by name; tensors become inputs, all else is fixed.
        cfg: order of the two halves of classifier-free guidance in the batch, None without;
            `separate` where each half has a call of its own, whose arguments are one call's then.
        latents: name of the argument that holds the latents, found by name if None.
        timestep: name of the argument that holds the timestep, found by name if None.
        unconditional: arguments of the unconditional call, where `kwargs` are the conditional's.
        told: how the timestep follows from the scheduler's; it is the scheduler's if None.
        weights: where the values of weights on the meta device lie, None if there are none.
        temporal: whether attention over time, of each place of a video on its own, may be
            compressed; it is left alone by default, as the method's authors do.

    Returns:
        A program that computes, to the bit, what the module computes.

    Raises:
        CaptureError: if the arguments aren't by name, the module can't be exported, naming
            operator or argument, or the batch can't be split into halves.
    """
    for call in (kwargs,) if unconditional is None else (kwargs, unconditional):
        check_named(call)
    roles = _Roles(latents, timestep)
    _check_layout(cfg, unconditional)
    stacked = frozenset(name for name in roles.latents if _is_samples(kwargs.get(name)))
    given = stack(kwargs, stacked)
    with standing_in(module):
        out_spec = _out_spec(module, kwargs) if stacked else None
        exported, decided = export(module, given, roles.changes, stacked)
    graph_module = unlift(exported)
    paths = _input_paths(exported, given)
    tensors = dict(flatten(given))
    _fix(graph_module, {name: _tensor(tensors[p]) for name, p in paths.items() if p in decided})
    run((CleanInference(), RemoveDeadCode()), graph_module)
    inputs = tuple(_input(node, paths, roles) for node in _placeholders(graph_module.graph))
    _check_roles(inputs, cfg)
    _check_timestep(inputs, timestep)
    example = {entry.name: _tensor(tensors[paths[entry.name]]).detach().clone() for entry in inputs}
    held = next(entry.name for entry in inputs if entry.role == "latents")
    sites = find_sites(graph_module.graph, example, held, temporal=temporal)
    program = Program(
        graph_module=graph_module,
        inputs=inputs,
        outputs=_output_names(exported, {entry.name for entry in inputs}),
        sites=sites,
        cfg=cfg,
        identity=Identity.of(module),
        constants={
            path: leaf
            for path, leaf in tensors.items()
            if path in decided or not isinstance(leaf, torch.Tensor)
        },
        example=example,
        in_paths={entry.name: paths[entry.name] for entry in inputs},
        out_spec=out_spec or exported.call_spec.out_spec,
        stacked=stacked,
        told=told or Told(),
        grid=token_grid(sites, tuple(example[held].shape), _channels(module), given),
        weights=weights,
        again=_Again(
            module, kwargs, cfg, latents, timestep, unconditional, told, weights, temporal
        ),
    )
    if unconditional is None:
        return program
    bound = zip(inputs, program.bind(unconditional), strict=True)
    return replace(program, unconditional={entry.name: value.clone() for entry, value in bound})


@dataclass(frozen=True, eq=False)
class _Again:
    """Captures a call again, with another number of samples."""

    module: torch.nn.Module
    kwargs: Mapping[str, object]
    cfg: CfgLayout | None
    latents: str | None
    timestep: str | None
    unconditional: Mapping[str, object] | None
    told: Told | None
    weights: Weights | None
    temporal: bool

    def __call__(self, program: Program, samples: int) -> Program:
        rows, halves = program.latents.shape[0], 2 if in_batch(self.cfg) else 1
        given, other = (
            None if call is None else resized(call, rows, halves, samples)
            for call in (self.kwargs, self.unconditional)
        )
        assert given is not None
        found = capture(
            self.module,
            given,
            self.cfg,
            latents=self.latents,
            timestep=self.timestep,
            unconditional=other,
            told=self.told,
            weights=self.weights,
            temporal=self.temporal,
        )
        return replace(found, again=replace(self, kwargs=given, unconditional=other))


def _channels(module: torch.nn.Module) -> int | None:
    found = getattr(getattr(module, "config", None), "in_channels", None)
    return found if isinstance(found, int) else None


def _is_samples(value: object) -> bool:
    if not isinstance(value, list | tuple) or not value:
        return False
    return all(isinstance(sample, torch.Tensor) for sample in value)


def _out_spec(module: torch.nn.Module, kwargs: Mapping[str, object]) -> pytree.TreeSpec:
    """Return the structure that a module returns, by a run of it."""
    try:
        with torch.no_grad():
            return pytree.tree_structure(module(**kwargs))
    except Exception as error:  # whatever the model's code runs into
        name = type(module).__name__
        raise CaptureError(f"{name} can't be captured: {error}") from error


def _fix(module: fx.GraphModule, values: Mapping[str, torch.Tensor]) -> None:
    """Put constants in the place of inputs."""
    for node in _placeholders(module.graph):
        if node.name not in values:
            continue
        with module.graph.inserting_after(_placeholders(module.graph)[-1]):
            constant = add_weight(module.graph, f"fixed.{node.name}", values[node.name].clone())
        node.replace_all_uses_with(constant)
        module.graph.erase_node(node)


class _Roles:
    """Which argument is what, as far as it is stated."""

    def __init__(self, latents: str | None, timestep: str | None) -> None:
        self.latents = (latents,) if latents else LATENTS
        self.timestep = (timestep,) if timestep else TIMESTEP

    def changes(self, path: str) -> bool:
        """Whether an argument is another at every step."""
        return self.of(path) != "condition"

    def of(self, path: str) -> Role:
        if path in self.latents:
            return "latents"
        return "timestep" if path in self.timestep else "condition"


def _output_names(exported: torch.export.ExportedProgram, taken: Set[str]) -> tuple[str, ...]:
    """Name outputs after the structure the module returns; one without a name is `sample`.

    Engines want other names for outputs than for inputs: where both would have one, the output's
    gets `_out` behind it.
    """
    names = _names_in(exported)
    return tuple(f"{name}_out" if name in taken else name for name in names)


def _names_in(exported: torch.export.ExportedProgram) -> tuple[str, ...]:
    spec = exported.call_spec.out_spec
    tree = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    if isinstance(tree, Mapping) and len(tree) == spec.num_leaves:
        return tuple(str(name) for name in tree)
    if spec.num_leaves == 1:
        return ("sample",)
    return tuple(f"output_{index}" for index in range(spec.num_leaves))


def _input_paths(
    exported: torch.export.ExportedProgram, kwargs: Mapping[str, object]
) -> dict[str, str]:
    """Map placeholder names to paths of keyword arguments: both come in the same order."""
    specs = [
        spec for spec in exported.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT
    ]
    leaves = [path for path, _ in flatten(kwargs)]
    return {spec.arg.name: path for spec, path in zip(specs, leaves, strict=True)}


def _placeholders(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "placeholder"]


def _input(node: fx.Node, paths: Mapping[str, str], roles: _Roles) -> Input:
    value = node.meta["val"]
    return Input(node.name, tuple(value.shape), value.dtype, roles.of(paths[node.name]))


def _check_layout(cfg: CfgLayout | None, unconditional: Mapping[str, object] | None) -> None:
    if cfg is not None and cfg not in CFG_LAYOUTS:
        listed = ", ".join(repr(layout) for layout in CFG_LAYOUTS)
        raise CaptureError(f"cfg is {cfg!r}, expected {listed} or None")
    separate = cfg is not None and not in_batch(cfg)
    if separate != (unconditional is not None):
        raise CaptureError(
            f"cfg is {cfg!r}: expected unconditional=, the arguments of the unconditional call, "
            "where each half has a call of its own, and only there"
        )


def _check_roles(inputs: tuple[Input, ...], cfg: CfgLayout | None) -> None:
    names = ", ".join(entry.name for entry in inputs)
    latents = [entry for entry in inputs if entry.role == "latents"]
    if len(latents) != 1:
        raise CaptureError(
            f"{len(latents)} of the inputs ({names}) are named as latents: state the one with "
            "latents='...'"
        )
    batch = latents[0].shape[0] if latents[0].shape else 1
    if in_batch(cfg) and batch % 2:
        raise CaptureError(
            f"cfg is {cfg}, but {latents[0].name} has a batch of {batch}: pass both halves"
        )


def _check_timestep(inputs: tuple[Input, ...], stated: str | None) -> None:
    found = sum(entry.role == "timestep" for entry in inputs)
    if found > 1 or (stated and not found):
        names = ", ".join(entry.name for entry in inputs)
        raise CaptureError(
            f"{found} of the inputs ({names}) are the timestep: state the one with timestep='...'"
        )


def _tensor(value: object) -> torch.Tensor:
    assert isinstance(value, torch.Tensor)
    return value
