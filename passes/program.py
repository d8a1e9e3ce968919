"""Programs, their inputs, sites and slots: what the passes work on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import fx
from torch.utils import _pytree as pytree

from ditc.runtime.errors import CaptureError

from .arguments import flatten, stack
from .checking import check_constant, check_equal_halves
from .identity import CfgLayout, Identity, in_batch
from .prologue import Feed, Prologue
from .sizes import nbytes
from .tile_window import TileLayout
from .told import Told
from .unloaded import Weights, has_unloaded

__all__ = [
    "CfgLayout",
    "Identity",
    "Input",
    "Program",
    "Role",
    "Site",
    "SiteKind",
    "Slot",
    "SlotKind",
]

Role = Literal["latents", "timestep", "condition", "guidance"]
SlotKind = Literal["output", "residual"]
SiteKind = Literal["self", "cross", "joint"]


@dataclass(frozen=True)
class Input:
    """A tensor the program takes, named as its placeholder.

    Attributes:
        name: nested arguments are joined by underscores (`added_cond_kwargs_resolution`).
        shape: with CFG the first axis of batched inputs holds both halves.
        dtype: torch dtype.
        role: latents, timestep, conditioning that stays the same over steps, or the scale of
            guidance.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    role: Role


@dataclass(frozen=True)
class Site:
    """One attention in a program: its entry, the attention node, its exit.

    Attributes:
        name: module path of the attention, unique in the program.
        kind: `self` if queries, keys and values come from one tensor, `joint` if they come from
            the same several, else `cross`.
        tokens: queries a head.
        context_tokens: keys a head.
        heads: attention heads.
        head_dim: channels a head.
        eligible: whether a plan may compress it.
        reason: why it may not, else empty.
        attention: name of the node whose value is the attention's output, before projection.
        query: name of the node that is attended from, `[..., tokens, head_dim]`.
        key: the same of the keys, `[..., context_tokens, head_dim]`.
        value: the same of the values.
        scale: factor on query · key.
        projections: names of the nodes that make query, key and value from the entries; where a
            projection makes more than these, of the nodes that take its parts.
        exits: names of the nodes whose values leave the site: the output projections; where
            attention and something else share one, the attention's part of what it projects.
        text: half-open range of the tokens that aren't image tokens, at one end of the sequence;
            they see all tokens and are seen by all under every window.
        tiles: order of its image tokens, None if it is the model's own.
    """

    name: str
    kind: SiteKind
    tokens: int
    context_tokens: int
    heads: int
    head_dim: int
    eligible: bool
    reason: str
    attention: str
    query: str
    key: str
    value: str
    scale: float
    projections: tuple[str, ...]
    exits: tuple[str, ...]
    text: tuple[int, int] = (0, 0)
    tiles: TileLayout | None = None


@dataclass(frozen=True)
class Slot:
    """A buffer that carries a site's output or residual from one step to a later one."""

    name: str
    site: str
    kind: SlotKind
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes the buffer takes."""
        return nbytes(self.shape, self.dtype)


@dataclass(frozen=True, eq=False)
class Program:
    """A captured denoiser.

    Attributes:
        graph_module: aten graph; placeholders are `arguments` in order, outputs a flat tuple.
        inputs: tensors it takes.
        outputs: names of the tensors it returns.
        sites: attentions in the order in which they run.
        cfg: layout of the two halves of classifier-free guidance, None without; the graph is that
            of one call where a step makes two.
        identity: of the module captured.
        constants: arguments fixed at capture, by their path: those that are not tensors, and
            tensors by whose values the model decided what to compute.
        example: the tensors it was captured with, by input name.
        in_paths: path of each input in the module's keyword arguments.
        out_spec: how the module's return value is built from `outputs`.
        stacked: arguments that the module takes as lists of samples, the program as one tensor.
        unconditional: the tensors of the unconditional call where a step makes two, by input name;
            `example` are the conditional call's then.
        told: how the timestep that it is told follows from a scheduler's.
        grid: (rows, columns) or (frames, rows, columns) of the image tokens at its sites, None if
            that can't be told.
        folded: sites computed on one half, where the program holds for equal halves of latents
            and timestep alone; None where it holds for all.
        prologue: what was taken out of the graph to run before the steps, if anything was.
        weights: where the values of weights on the meta device lie, None if all are loaded.
        again: captures the module with another number of samples, given this and that number;
            None for a program that wasn't captured from a module.
    """

    graph_module: fx.GraphModule
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    sites: tuple[Site, ...]
    cfg: CfgLayout | None
    identity: Identity
    constants: Mapping[str, object]
    example: Mapping[str, torch.Tensor]
    in_paths: Mapping[str, str]
    out_spec: pytree.TreeSpec
    stacked: frozenset[str] = frozenset()
    unconditional: Mapping[str, torch.Tensor] = field(default_factory=dict)
    told: Told = field(default_factory=Told)
    grid: tuple[int, ...] | None = None
    folded: frozenset[str] | None = None
    prologue: Prologue | None = None
    weights: Weights | None = None
    again: "Callable[[Program, int], Program] | None" = field(default=None, repr=False)

    def __repr__(self) -> str:
        """Return model, inputs, sites and layout: neither the graph nor a tensor."""
        inputs = ", ".join(f"{entry.name} {list(entry.shape)}" for entry in self.inputs)
        eligible = sum(site.eligible for site in self.sites)
        return (
            f"Program({self.identity.model}: {inputs}; {eligible} of {len(self.sites)} sites "
            f"eligible, grid {self.grid}, cfg {self.cfg!r})"
        )

    def __call__(self, **kwargs: object) -> object:
        """Run the captured graph.

        Args:
            **kwargs: as the module was captured with: same shapes and dtypes.

        Returns:
            What the module returns, in its own structure.

        Raises:
            CaptureError: if an argument is missing, unknown, or unlike what was captured, or if
                the program's weights aren't loaded.
        """
        self.check_loaded()
        with torch.no_grad():
            values = self.graph_module(*self.feed()(self.bind(kwargs)))
        return self.unflatten(values)

    def check_loaded(self) -> None:
        """Refuse to run without weights.

        Raises:
            CaptureError: if the program was captured of a model that isn't loaded.
        """
        if has_unloaded(self.graph_module):
            raise CaptureError(
                f"the weights of {self.identity.model} aren't loaded: it can be compiled, but to "
                "run it in torch, load the model and capture that"
            )

    @property
    def latents(self) -> Input:
        """The input that holds the latents."""
        return next(entry for entry in self.inputs if entry.role == "latents")

    @property
    def timestep_name(self) -> str:
        """Name of the input that holds the timestep; empty where there is none."""
        return next((entry.name for entry in self.inputs if entry.role == "timestep"), "")

    @property
    def samples(self) -> int:
        """How many samples a step denoises at once."""
        batch = self.latents.shape[0]
        return batch // 2 if in_batch(self.cfg) else batch

    @property
    def arguments(self) -> tuple[str, ...]:
        """Names of what the graph takes: the inputs, or in their place values of the prologue."""
        nodes = self.graph_module.graph.find_nodes(op="placeholder")
        return tuple(node.name for node in nodes)

    def feed(self) -> Feed:
        """Return what makes the graph's arguments from what `bind` returns."""
        return Feed(self.prologue, tuple(entry.name for entry in self.inputs), self.arguments)

    def resized(self, samples: int) -> "Program":
        """Return the module captured anew with its example's samples repeated, or some of them.

        In the precision of this program; a prologue isn't split off that one.

        Raises:
            CaptureError: if the module can't be captured so.
        """
        if self.again is None:
            raise CaptureError(
                "the program doesn't know the module that it is of: capture it for the batch"
            )
        return self.again(self, samples)

    def site(self, name: str) -> Site | None:
        """Return the site of that name, None if there is none."""
        return next((site for site in self.sites if site.name == name), None)

    def bind(self, kwargs: Mapping[str, object]) -> list[torch.Tensor]:
        """Return the inputs' tensors in order, checked against what was captured."""
        given = dict(flatten(stack(kwargs, self.stacked)))
        for path, constant in self.constants.items():
            if path in given:
                check_constant(path, given[path], constant)
        known = set(self.constants) | set(self.in_paths.values())
        unknown = sorted(path for path in given if path not in known and given[path] is not None)
        if unknown:
            raise CaptureError(
                f"unknown argument {unknown[0]}: the program takes {', '.join(sorted(known))}"
            )
        if self.folded is not None:
            equal = [entry for entry in self.inputs if entry.role in ("latents", "timestep")]
            check_equal_halves(given, [self.in_paths[entry.name] for entry in equal])
        return [self._checked(entry, given) for entry in self.inputs]

    def unflatten(self, values: tuple[torch.Tensor, ...]) -> object:
        """Return flat outputs in the structure that the module returns."""
        if self.stacked:
            (samples,) = values
            values = samples.unbind(0)
        return pytree.tree_unflatten(list(values), self.out_spec)

    def _checked(self, entry: Input, given: Mapping[str, object]) -> torch.Tensor:
        path = self.in_paths[entry.name]
        if path not in given:
            raise CaptureError(f"argument {path} is missing: pass a tensor {list(entry.shape)}")
        value = given[path]
        if not isinstance(value, torch.Tensor):
            raise CaptureError(f"argument {path} is {type(value).__name__}, expected a tensor")
        if tuple(value.shape) != entry.shape or value.dtype != entry.dtype:
            raise CaptureError(
                f"argument {path} is {value.dtype} {list(value.shape)}, captured as {entry.dtype} "
                f"{list(entry.shape)}: capture again for this shape"
            )
        device = self.example[entry.name].device
        if value.device != device:
            raise CaptureError(f"argument {path} is on {value.device}, the program on {device}")
        return value
