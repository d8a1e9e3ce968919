"""Decide one step of a greedy search, computing nothing twice.

A candidate at site i differs from what is already known only from site i on. So a step is run once
with every site full: that is the reference, and the first base. A candidate starts from the base's
values in front of its site; the run of one that is accepted is the next base; the last base is the
step itself. Of a half of the batch that another run has had, what that one made is taken.
"""

import math
from collections.abc import Mapping

import torch

from ditc.passes import (
    Losses,
    Method,
    Program,
    Site,
    Window,
    multiply_adds,
    rewrite,
    site_cost,
)
from ditc.passes.pieces import Halves, Piece, Pieces, SitePieces
from ditc.runtime.errors import PassError, PlanError

from .decisions import CANDIDATES, Decided, relative_loss, threshold_of

__all__ = ["StepSearch"]

Values = dict[str, torch.Tensor]


class StepSearch:
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
        self._wholes = tuple(part.whole for part in pieces.sites)
        self._needs = _needed_behind(pieces)
        self._costs = {part.site.name: site_cost(program, part.site) for part in pieces.sites}
        whole = multiply_adds(program.graph_module.graph)
        self._rest = whole - sum(cost.full for cost in self._costs.values())
        self._candidates = {
            part.site.name: _candidates(program, part.site, windows) for part in pieces.sites
        }

    def snapshot(self) -> Values:
        """Return what the slots hold, by names of their own."""
        outputs = {
            f"{site} output {name}": value
            for site, values in self.outputs.items()
            for name, value in values.items()
        }
        return outputs | {f"{site} residual": value for site, value in self.residuals.items()}

    def restore(self, snapshot: Mapping[str, torch.Tensor], last: Decided) -> None:
        """Go on with slots as they were when `snapshot` was taken, behind a step."""
        for part in self.pieces.sites:
            name = part.site.name
            self.outputs[name] = {
                exit_name: snapshot[f"{name} output {exit_name}"] for exit_name in part.site.exits
            }
            self.residuals[name] = snapshot[f"{name} residual"]
        self.multiply_adds = last.multiply_adds
        self.plain_multiply_adds = last.plain_multiply_adds

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
            runs = {Method.FULL: base}
            for candidate in self._candidates[part.site.name] if step else ():
                run = self._try(number, candidate, {**base, **forms.exits(candidate)}, runs)
                runs[candidate] = run
                losses[candidate] = relative_loss(reference, run[name])
                _check_loss(step, part.site.name, losses[candidate])
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

    def _try(
        self, number: int, candidate: Method, values: Values, runs: Mapping[Method, Values]
    ) -> Values:
        """Run all behind a site; of a half that another run has had, take what that one made.

        `asc` leaves the conditional half as full attention does, and `wa-rs` as `wa-rs+asc`.
        """
        twin = {Method.ASC: Method.FULL, Method.WA_RS: Method.WA_RS_ASC}.get(candidate)
        if self.pieces.halves is None or twin is None or twin not in runs:
            return self._run_behind(number, values)
        axes = self.pieces.halves.axes
        last = self.program.cfg == "cond-first"
        half = {name: _half(value, axes.get(name), last) for name, value in values.items()}
        half = self._run_behind(number, half, self.pieces.halves)
        known = runs[twin]
        return {
            name: _join(known[name], value, axes.get(name), last) for name, value in half.items()
        }

    def _run_behind(self, number: int, values: Values, halves: Halves | None = None) -> Values:
        """Run all that comes behind a site with every site there full.

        Returns:
            The values that are still needed behind the site, and the program's outputs: of one
            half of the batch if `halves` are given, and `values` are that half's.
        """
        glue = self.pieces.glue if halves is None else halves.glue
        wholes = self._wholes if halves is None else halves.sites
        values = {**values, **self.run(glue[number + 1], values)}
        for later in range(number + 1, len(wholes)):
            values.update(self.run(wholes[later], values))
            values.update(self.run(glue[later + 1], values))
        return {name: values[name] for name in self._needs[number + 1] if name in values}

    def _count_plain(self, methods: Mapping[str, Method]) -> None:
        """Count a whole run of the model, as a search that keeps nothing would make."""
        self.plain_multiply_adds += self._rest + sum(
            cost.of(methods.get(name, Method.FULL), self._windows[name])
            for name, cost in self._costs.items()
        )


class _Forms:
    """What a site yields under each method, each computed at most once."""

    def __init__(self, search: StepSearch, part: SitePieces, base: Values) -> None:
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
        if not method.shares_cfg:
            return exits
        return {name: self._shared(value) for name, value in exits.items()}

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


def _half(value: torch.Tensor, axis: int | None, last: bool) -> torch.Tensor:
    """Return one half of a value's batch, the whole of a value without a batch."""
    return value if axis is None else value.chunk(2, dim=axis)[last]


def _join(known: torch.Tensor, half: torch.Tensor, axis: int | None, last: bool) -> torch.Tensor:
    """Put a half in the place of the same half of a known value."""
    if axis is None:
        return half
    other = _half(known, axis, not last)
    return torch.cat([other, half] if last else [half, other], dim=axis)


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


def _candidates(program: Program, site: Site, windows: Mapping[str, Window]) -> tuple[Method, ...]:
    """Return the methods that a site can have: no sharing where its halves can't be told."""
    apart = tuple(method for method in CANDIDATES if not method.shares_cfg)
    if program.cfg is None:
        return apart
    try:
        rewrite(program, {site.name: Method.ASC}, windows)
    except PassError:
        return apart
    return CANDIDATES


def _check_loss(step: int, site: str, loss: float) -> None:
    if not math.isfinite(loss):
        raise PlanError(
            f"step {step}, site {site}: the model returns numbers that aren't finite: search with "
            "a smaller guidance scale, or a sampler that suits the model"
        )
