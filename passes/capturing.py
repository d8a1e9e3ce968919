"""Capture a denoiser: module and arguments → aten graph, inputs, sites."""

from collections.abc import Callable, Mapping, Set

import torch
from torch import fx
from torch.export.graph_signature import (
    ConstantArgument,
    InputKind,
    InputSpec,
    OutputKind,
    TensorArgument,
)
from torch.utils import _pytree as pytree

from ditc.runtime.errors import CaptureError

from .base import run
from .clean_inference import CleanInference
from .program import CfgLayout, Identity, Input, Program, Role, flatten
from .remove_dead_code import RemoveDeadCode
from .sites import find_sites

__all__ = ["capture", "unlift"]

LATENTS = ("hidden_states", "sample", "latents", "x")
VIEW = torch.ops.aten.view.default
RESHAPE: Callable[..., object] = torch.ops.aten.reshape.default
"""In the place of a view, which asks for strides: passes keep values, not strides."""
TIMESTEP = ("timestep", "timesteps", "time", "t")


def capture(
    module: torch.nn.Module,
    kwargs: Mapping[str, object],
    cfg: CfgLayout | None = None,
    *,
    latents: str | None = None,
    timestep: str | None = None,
) -> Program:
    """Capture a denoiser as a program.

    Args:
        module: the denoiser; captured in eval mode, its mode is restored. Weights are shared
            with the program, not copied.
        kwargs: arguments of one call, all by name; tensors become inputs, all else is fixed.
        cfg: order of the two halves of classifier-free guidance in the batch, None without.
        latents: name of the argument that holds the latents, found by name if None.
        timestep: name of the argument that holds the timestep, found by name if None.

    Returns:
        A program that computes, to the bit, what the module computes.

    Raises:
        CaptureError: if the module can't be exported, naming operator or argument, or if the
            batch can't be split into halves.
    """
    exported = _export(module, kwargs)
    graph_module = unlift(exported)
    run((CleanInference(), RemoveDeadCode()), graph_module)
    paths = _input_paths(exported, kwargs)
    roles = _Roles(latents, timestep)
    inputs = tuple(_input(node, paths, roles) for node in _placeholders(graph_module.graph))
    _check_roles(inputs, cfg)
    _check_timestep(inputs, timestep)
    tensors = dict(flatten(kwargs))
    return Program(
        graph_module=graph_module,
        inputs=inputs,
        outputs=_output_names(exported, {entry.name for entry in inputs}),
        sites=find_sites(graph_module.graph),
        cfg=cfg,
        identity=Identity.of(module),
        constants={
            path: leaf for path, leaf in tensors.items() if not isinstance(leaf, torch.Tensor)
        },
        example={
            entry.name: _tensor(tensors[paths[entry.name]]).detach().clone() for entry in inputs
        },
        in_paths={entry.name: paths[entry.name] for entry in inputs},
        out_spec=exported.call_spec.out_spec,
    )


class _Roles:
    """Which argument is what, as far as it is stated."""

    def __init__(self, latents: str | None, timestep: str | None) -> None:
        self.latents = (latents,) if latents else LATENTS
        self.timestep = (timestep,) if timestep else TIMESTEP

    def of(self, path: str) -> Role:
        if path in self.latents:
            return "latents"
        return "timestep" if path in self.timestep else "condition"


def _export(module: torch.nn.Module, kwargs: Mapping[str, object]) -> torch.export.ExportedProgram:
    modes = {part: part.training for part in module.modules()}
    try:
        with torch.no_grad():
            exported = torch.export.export(module.eval(), (), dict(kwargs), strict=False)
            return _functional(exported)
    except Exception as error:  # torch.export raises whatever the model's code ran into
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        raise CaptureError(f"{type(module).__name__} can't be captured: {reason}") from error
    finally:
        for part, mode in modes.items():
            part.training = mode


def _functional(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Replace operators that write into their arguments, if any, by ones that don't.

    Dead code removal may then drop any node, and changes to buffers show in the signature.
    """
    targets = [node.target for node in exported.graph.nodes]
    if any(isinstance(op, torch._ops.OpOverload) and op._schema.is_mutable for op in targets):
        exported = exported.run_decompositions({})
    return exported


def unlift(exported: torch.export.ExportedProgram) -> fx.GraphModule:
    """Return an exported program as a module: weights are attributes, inputs the user's tensors.

    Raises:
        CaptureError: if the program changes buffers or arguments, or returns what is no tensor.
    """
    specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    weights: dict[str, torch.Tensor] = {}
    placeholders = [node for node in exported.graph.nodes if node.op == "placeholder"]
    for node in sorted(placeholders, key=lambda node: _is_weight(specs[node.name])):
        _copy_input(exported, graph, node, specs[node.name], mapping, weights)
    for node in exported.graph.nodes:
        if node.op == "placeholder":
            continue
        if node.op == "output":
            graph.output(_user_outputs(exported, node, mapping))
        elif node.op == "call_function":
            mapping[node] = graph.node_copy(node, mapping.__getitem__)
            if node.target is VIEW:
                mapping[node].target = RESHAPE
        else:
            raise CaptureError(f"node {node.name}: {node.op} has no counterpart at inference")
    return fx.GraphModule(weights, graph)


def _is_weight(spec: InputSpec) -> bool:
    """Inputs are copied first, so that they keep their names where a weight has the same one."""
    return spec.kind is not InputKind.USER_INPUT


def _copy_input(
    exported: torch.export.ExportedProgram,
    graph: fx.Graph,
    node: fx.Node,
    spec: InputSpec,
    mapping: dict[fx.Node, fx.Node],
    weights: dict[str, torch.Tensor],
) -> None:
    if spec.kind is InputKind.USER_INPUT:
        if isinstance(spec.arg, TensorArgument):
            mapping[node] = graph.node_copy(node)
        elif not isinstance(spec.arg, ConstantArgument) or node.users:
            raise CaptureError(f"argument {node.name} is used but is no tensor: fix its value")
        return
    target = spec.target
    assert target is not None
    source = exported.state_dict if target in exported.state_dict else exported.constants
    value = source[target]
    if not isinstance(value, torch.Tensor):
        raise CaptureError(f"constant {target} is {type(value).__name__}, expected a tensor")
    weights[target] = value
    mapping[node] = graph.get_attr(target)
    mapping[node].meta = dict(node.meta)


def _user_outputs(
    exported: torch.export.ExportedProgram, node: fx.Node, mapping: dict[fx.Node, fx.Node]
) -> tuple[fx.Node, ...]:
    (values,) = node.args
    assert isinstance(values, list | tuple)
    outputs = []
    for spec, value in zip(exported.graph_signature.output_specs, values, strict=True):
        if spec.kind is not OutputKind.USER_OUTPUT:
            raise CaptureError(
                f"the module changes {spec.target} while it runs ({spec.kind.name.lower()}): a "
                "denoiser has to leave its buffers and arguments alone"
            )
        if not isinstance(value, fx.Node):
            raise CaptureError(f"output {value!r} is no tensor: return tensors only")
        outputs.append(mapping[value])
    return tuple(outputs)


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


def _check_roles(inputs: tuple[Input, ...], cfg: CfgLayout | None) -> None:
    names = ", ".join(entry.name for entry in inputs)
    latents = [entry for entry in inputs if entry.role == "latents"]
    if len(latents) != 1:
        raise CaptureError(
            f"{len(latents)} of the inputs ({names}) are named as latents: state the one with "
            "latents='...'"
        )
    if cfg not in (None, "cond-first", "uncond-first"):
        raise CaptureError(f"cfg is {cfg!r}, expected 'cond-first', 'uncond-first' or None")
    batch = latents[0].shape[0] if latents[0].shape else 1
    if cfg is not None and batch % 2:
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
