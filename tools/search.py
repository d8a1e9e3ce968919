"""Search a plan greedily, exactly as the paper does, without computing anything twice.

Source: DiTFastAttn (arXiv 2406.08552), section 3.4: step by step, layer by layer, the most
aggressive method whose error on the whole model's output stays under a threshold.

A candidate at site i differs from what is already known only from site i on. So a step is run once
with every site full: that is the reference, and the first base. A candidate starts from the base's
values in front of its site; the run of one that is accepted is the next base; the last base is the
step itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version

import numpy as np
import torch

from ditc.passes import Losses, Method, Origin, Plan, Program, Window, multiply_adds, site_cost
from ditc.passes.pieces import Piece, Pieces, SitePieces, cut
from ditc.runtime.errors import PlanError
from ditc.runtime.sampler import SamplerTable

from .trajectory import Trajectory

__all__ = ["CANDIDATES", "Decided", "Found", "greedy", "relative_loss", "threshold_of"]

CANDIDATES = (Method.AST, Method.WA_RS_ASC, Method.WA_RS, Method.ASC)
"""Methods in the order in which the paper tries them; `full` where none is good enough."""
Values = dict[str, torch.Tensor]
METRIC = "relative, symmetric, clipped at 10"


@dataclass(frozen=True)
class Decided:
    """A step that a search has decided.

    Attributes:
        methods: method of each site.
        losses: loss of every candidate that was tried, by site.
        multiply_adds: computed by the search up to and with this step.
        plain_multiply_adds: the same of a search that runs the whole model each time.
    """

    methods: Mapping[str, Method]
    losses: Mapping[str, Losses]
    multiply_adds: int
    plain_multiply_adds: int


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        plan: the plan, with the loss of every candidate that was tried.
        multiply_adds: what the search computed.
        plain_multiply_adds: what it would have been with a whole run of the model for the
            reference and for every candidate.
    """

    plan: Plan
    multiply_adds: int
    plain_multiply_adds: int


def relative_loss(reference: torch.Tensor, output: torch.Tensor) -> float:
    """Return `mean(clip(|O − O'| / (max(|O|, |O'|) + 1e-6), 0, 10))`.

    Source: DiTFastAttn (arXiv 2406.08552), equation 6; symmetric in its arguments.
    """
    larger = torch.maximum(reference.abs(), output.abs())
    return ((reference - output).abs() / (larger + 1e-6)).clamp(0, 10).mean().item()


def threshold_of(threshold: float, number: int, count: int) -> float:
    """Return the threshold of site `number` (from 0) of `count`: it rises with depth."""
    return threshold * (number + 1) / count


def greedy(
    program: Program,
    table: SamplerTable,
    threshold: float,
    *,
    guidance_scale: float = 1.0,
    seed: int = 0,
    windows: Mapping[str, Window] | None = None,
    decided: Sequence[Decided] = (),
    on_step: Callable[[Decided], object] | None = None,
) -> Found:
    """Find a plan: step by step, site by site, the first candidate under the threshold.

    Args:
        program: the captured model, its batch the calibration samples (twice with CFG); the
            conditioning is what it was captured with.
        table: the sampler, whose number of steps is the plan's.
        threshold: δ; site i of M may err by δ·i/M on the whole model's output.
        guidance_scale: scale of classifier-free guidance; ignored without.
        seed: of the initial latents and the sampler's noise.
        windows: window of each site to compress, the default one of every eligible site if None.
        decided: steps that an earlier search with the same arguments has decided; they are run
            as decided, once each, and the search goes on behind them.
        on_step: called with each step that was decided anew.

    Raises:
        PlanError: if the threshold is no positive number or nothing is eligible.
    """
    if not (np.isfinite(threshold) and threshold > 0):
        raise PlanError(f"threshold is {threshold}, expected a positive number")
    plan = Plan.uniform(program, table.steps, Method.FULL, scheduler=table.scheduler)
    chosen = dict(plan.windows) if windows is None else dict(windows)
    if not chosen:
        raise PlanError("the program has no site that can be compressed")
    trajectory = Trajectory(program, table, guidance_scale, seed)
    search = _Search(program, cut(program, chosen), chosen, threshold)
    record = list(decided)
    for step, known in enumerate(record):
        trajectory.advance(step, search.replay(trajectory.inputs(step), known))
    for step in range(len(record), table.steps):
        new, output = search.decide(step, trajectory.inputs(step))
        record.append(new)
        trajectory.advance(step, output)
        if on_step is not None:
            on_step(new)
    found = replace(
        plan,
        windows=chosen,
        cells=tuple(step.methods for step in record),
        losses=tuple(step.losses for step in record),
        guidance_scale=guidance_scale if program.cfg else None,
        origin=Origin("greedy", threshold, METRIC, seed, trajectory.samples, version("ditc")),
    )
    found.check(program)
    return Found(found, search.multiply_adds, search.plain_multiply_adds)


class _Search:
    """The state of a greedy search: what slots hold, and how much was computed."""

    def __init__(
        self, program: Program, pieces: Pieces, windows: Mapping[str, Window], threshold: float
    ) -> None:
        self.program = program
        self.pieces = pieces
        self.outputs: dict[str, Values] = {}
        self.residuals: dict[str, torch.Tensor] = {}
        self.multiply_adds = 0
        self.plain_multiply_adds = 0
        self._windows = windows
        self._threshold = threshold
        self._needs = _needed_behind(pieces)
        self._costs = {part.site.name: site_cost(program, part.site) for part in pieces.sites}
        whole = multiply_adds(program.graph_module.graph)
        self._rest = whole - sum(cost.full for cost in self._costs.values())
        shared = (Method.ASC, Method.WA_RS_ASC) if program.cfg is None else ()
        self._candidates = [method for method in CANDIDATES if method not in shared]

    def replay(self, inputs: Mapping[str, torch.Tensor], known: Decided) -> torch.Tensor:
        """Run a step as it was decided and return its output."""
        values = {**inputs, **self.pieces.glue[0](inputs)}
        for number, part in enumerate(self.pieces.sites):
            values.update(part.whole(values))
            forms = _Forms(self, part, values)
            method = known.methods[part.site.name]
            exits = forms.exits(method)
            forms.keep(method)
            values = {**values, **exits}
            values.update(self.pieces.glue[number + 1](values))
            values = {name: values[name] for name in self._needs[number + 1] if name in values}
        self.multiply_adds = known.multiply_adds
        self.plain_multiply_adds = known.plain_multiply_adds
        return values[self.pieces.outputs[0]]

    def decide(self, step: int, inputs: Mapping[str, torch.Tensor]) -> tuple[Decided, torch.Tensor]:
        """Decide every site of a step, and return its output too."""
        name = self.pieces.outputs[0]
        base = self._run_behind(-1, dict(inputs))
        reference = base[name]
        decided: dict[str, Method] = {}
        tried: dict[str, Losses] = {}
        self._count_plain(decided)
        for number, part in enumerate(self.pieces.sites):
            forms = _Forms(self, part, base)
            limit = threshold_of(self._threshold, number, len(self.pieces.sites))
            method, losses = Method.FULL, {}
            for candidate in self._candidates if step else ():
                run = self._run_behind(number, {**base, **forms.exits(candidate)})
                losses[candidate] = relative_loss(reference, run[name])
                self._count_plain({**decided, part.site.name: candidate})
                if losses[candidate] < limit:
                    method, base = candidate, run
                    break
            forms.keep(method)
            decided[part.site.name] = method
            tried[part.site.name] = losses
        self._count_plain(decided)
        new = Decided(decided, tried, self.multiply_adds, self.plain_multiply_adds)
        return new, base[name]

    def run(self, piece: Piece, values: Mapping[str, torch.Tensor]) -> Values:
        """Run a piece and count it."""
        self.multiply_adds += piece.multiply_adds
        return piece(values)

    def _run_behind(self, number: int, values: Values) -> Values:
        """Run all that comes behind a site with every site there full.

        Returns:
            The values that are still needed behind the site, and the program's outputs.
        """
        values = {**values, **self.run(self.pieces.glue[number + 1], values)}
        for later in range(number + 1, len(self.pieces.sites)):
            values.update(self.run(self.pieces.sites[later].whole, values))
            values.update(self.run(self.pieces.glue[later + 1], values))
        return {name: values[name] for name in self._needs[number + 1] if name in values}

    def _count_plain(self, methods: Mapping[str, Method]) -> None:
        """Count a whole run of the model, as a search that keeps nothing would make."""
        self.plain_multiply_adds += self._rest + sum(
            cost.of(methods.get(name, Method.FULL), self._windows[name])
            for name, cost in self._costs.items()
        )


class _Forms:
    """What a site yields under each method, each computed at most once."""

    def __init__(self, search: _Search, part: SitePieces, base: Values) -> None:
        self._search = search
        self._part = part
        self._base = base
        self._window: torch.Tensor | None = None
        self._windowed: Values | None = None

    def exits(self, method: Method) -> Values:
        """Return the values of the site's exits."""
        if method is Method.AST:
            return self._search.outputs[self._part.site.name]
        exits = self._windowed_exits() if method.windowed else self._full_exits()
        return (
            {name: self._shared(value) for name, value in exits.items()}
            if (method.shares_cfg)
            else exits
        )

    def keep(self, method: Method) -> None:
        """Leave in the slots what a step of this method leaves there."""
        name = self._part.site.name
        if method is not Method.AST:
            self._search.outputs[name] = self.exits(method)
        if method.runs_full_attention:
            attention = self._search.run(self._part.attention, self._base)
            residual = attention[self._part.site.attention] - self._window_output()
            shared = self._shared(residual) if method.shares_cfg else residual
            self._search.residuals[name] = shared

    def _full_exits(self) -> Values:
        return {name: self._base[name] for name in self._part.site.exits}

    def _windowed_exits(self) -> Values:
        if self._windowed is None:
            site = self._part.site
            output = self._window_output() + self._search.residuals[site.name]
            values = {**self._base, site.attention: output}
            self._windowed = self._search.run(self._part.exit, values)
        return self._windowed

    def _window_output(self) -> torch.Tensor:
        if self._window is None:
            values = self._search.run(self._part.window, self._base)
            self._window = values[self._part.site.attention]
        return self._window

    def _shared(self, value: torch.Tensor) -> torch.Tensor:
        """Repeat the conditional half for both halves."""
        first, second = value.chunk(2)
        half = first if self._search.program.cfg == "cond-first" else second
        return torch.cat([half, half])


def _needed_behind(pieces: Pieces) -> list[set[str]]:
    """Return, for each stretch of glue, the names needed behind it (itself included)."""
    needs: list[set[str]] = []
    names = set(pieces.outputs) | set(pieces.glue[-1].inputs)
    needs.append(names)
    for number in reversed(range(len(pieces.sites))):
        part = pieces.sites[number]
        names = set(names)
        for piece in (part.whole, part.attention, part.window, part.exit, pieces.glue[number]):
            names.update(piece.inputs)
        names.update(part.site.exits)
        needs.append(names)
    return needs[::-1]
