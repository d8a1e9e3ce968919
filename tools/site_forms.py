"""What a site yields under each method, and what it leaves behind for later steps."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from ditc.passes import Method
from ditc.passes.piece import Piece, SitePieces, Values

from .decisions import Decided
from .space import Space

__all__ = ["Forms", "SiteStates"]


class SiteStates:
    """What the slots of all sites hold between steps, and how much a search computed."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.pieces = space.pieces
        self.outputs: dict[str, Values] = {}
        self.residuals: dict[str, torch.Tensor] = {}
        self.multiply_adds = 0
        self.plain_multiply_adds = 0
        self.needs = _needed_behind(self)
        self._unread: dict[str, Method] = {}

    def snapshot(self) -> Values:
        """Return what the slots hold, by names of their own."""
        outputs = {
            f"{site} output {name}": value
            for site, values in self.outputs.items()
            for name, value in values.items()
        }
        return outputs | {f"{site} residual": value for site, value in self.residuals.items()}

    def restore(self, snapshot: Mapping[str, torch.Tensor], steps: Sequence[Decided]) -> None:
        """Go on with slots as they were when `snapshot` was taken, behind the last of the steps."""
        for part in self.pieces.sites:
            name = part.site.name
            self.outputs[name] = {
                exit_name: snapshot[f"{name} output {exit_name}"] for exit_name in part.site.exits
            }
            if self.keeps_residual(name):
                self.residuals[name] = snapshot[f"{name} residual"]
        for step in steps:
            for name, method in step.methods.items():
                self.note(name, method)
        self.multiply_adds = steps[-1].multiply_adds
        self.plain_multiply_adds = steps[-1].plain_multiply_adds

    def keeps_residual(self, site: str) -> bool:
        """Return whether a later step could want the site's residual."""
        return any(method.windowed for method in self.space.candidates[site])

    def note(self, site: str, method: Method) -> None:
        """Note which method a site had: a window reads the residual of the latest without one."""
        if method.runs_full_attention:
            self._unread[site] = method
        elif method.windowed:
            self._unread.pop(site, None)

    def gain(self, site: str, method: Method) -> float:
        """Return what a method saves at a site now, less what keeping its residual costs.

        The first window that reads a residual is the one that it is kept for.
        """
        saved, kept_by = self.space.saved(site, method), self._unread.get(site)
        if not method.windowed or kept_by is None:
            return saved
        return saved - self.space.keeping(site, kept_by)

    def candidates(self, site: str) -> tuple[Method, ...]:
        """Return the methods to try at a site now, in turn.

        In the paper's order; where latencies were measured, fastest first, and none that doesn't
        gain.
        """
        methods = self.space.candidates[site]
        if self.space.latencies is None:
            return methods
        gains = {method: self.gain(site, method) for method in methods}
        paying = [method for method in methods if gains[method] > 0]
        return tuple(sorted(paying, key=lambda method: -gains[method]))

    def run(self, piece: Piece, values: Mapping[str, torch.Tensor]) -> Values:
        """Run a piece and count it."""
        self.multiply_adds += piece.multiply_adds
        return piece(values)

    def needed(self, number: int, values: Mapping[str, torch.Tensor]) -> Values:
        """Return those of the values that are still needed from a stretch of glue on."""
        return {name: values[name] for name in self.needs[number] if name in values}

    def entered(self, inputs: Mapping[str, torch.Tensor]) -> Values:
        """Return a step's inputs and what is computed in front of all sites."""
        return {**inputs, **self.run(self.pieces.glue[0], inputs)}

    def walk(self, values: Values, pick: Callable[[int, "Forms"], Method]) -> torch.Tensor:
        """Run a step from front to back, each site with the method that `pick` names there.

        Args:
            values: what comes in front of all sites, by name.
            pick: given a site's number and its forms, behind all sites in front of it.

        Returns:
            The program's first output.
        """
        values = dict(values)
        for number, part in enumerate(self.pieces.sites):
            forms = Forms(self, part, values)
            values.update(forms.exits(pick(number, forms)))
            values.update(self.run(self.pieces.glue[number + 1], values))
            values = self.needed(number + 1, values)
        return values[self.pieces.outputs[0]]


class Forms:
    """What a site yields under each method, each computed at most once.

    Args:
        states: slots of all sites.
        part: the site.
        base: what enters the site by name; of query, key and value, of full attention and of the
            exits what is known already.
    """

    def __init__(self, states: SiteStates, part: SitePieces, base: Values) -> None:
        self.part = part
        self._states = states
        self._known = dict(base)
        self._window: torch.Tensor | None = None
        self._windowed_exits: Values | None = None

    def exits(self, method: Method) -> Values:
        """Return the values of the site's exits."""
        if method is Method.AST:
            return self._states.outputs[self.part.site.name]
        exits = self._windowed() if method.windowed else self._unwindowed()
        if not method.shares_cfg:
            return exits
        return {name: self._shared(value) for name, value in exits.items()}

    def keep(self, method: Method) -> None:
        """Leave in the slots what a step of this method leaves there."""
        name = self.part.site.name
        self._states.note(name, method)
        if method is not Method.AST:
            self._states.outputs[name] = self.exits(method)
        if method.runs_full_attention and self._states.keeps_residual(name):
            residual = self._full_output() - self._window_output()
            shared = self._shared(residual) if method.shares_cfg else residual
            self._states.residuals[name] = shared

    def _unwindowed(self) -> Values:
        names = self.part.site.exits
        if not self._knows(names):
            self._known |= self._projected(self._full_output())
        return {name: self._known[name] for name in names}

    def _windowed(self) -> Values:
        if self._windowed_exits is None:
            residual = self._states.residuals[self.part.site.name]
            self._windowed_exits = self._projected(self._window_output() + residual)
        return self._windowed_exits

    def _projected(self, output: torch.Tensor) -> Values:
        values = {**self._known, self.part.site.attention: output}
        if not values.keys() >= set(self.part.exit.inputs):
            values = {**self._entered(), self.part.site.attention: output}
        return self._states.run(self.part.exit, values)

    def _full_output(self) -> torch.Tensor:
        name = self.part.site.attention
        if not self._knows([name]):
            self._known |= self._states.run(self.part.attention, self._entered())
        return self._known[name]

    def _window_output(self) -> torch.Tensor:
        if self._window is None:
            values = self._states.run(self.part.window, self._entered())
            self._window = values[self.part.site.attention]
        return self._window

    def _entered(self) -> Values:
        """Return what is known, query, key and value among it."""
        if not self._knows(self.part.entry.outputs):
            self._known |= self._states.run(self.part.entry, self._known)
        return self._known

    def _knows(self, names: Iterable[str]) -> bool:
        return self._known.keys() >= set(names)

    def _shared(self, value: torch.Tensor) -> torch.Tensor:
        """Repeat the conditional half for both halves."""
        first, second = value.chunk(2)
        half = first if self._states.space.program.cfg == "cond-first" else second
        return torch.cat([half, half])


def _needed_behind(states: SiteStates) -> list[set[str]]:
    """Return, for each stretch of glue, the names needed behind it (itself included).

    Full attention is kept for every site that could leave a residual; query, key and value, three
    times as much, for the site behind the stretch alone.
    """
    pieces = states.pieces
    names = set(pieces.outputs) | set(pieces.glue[-1].inputs)
    needs = [names]
    for part, glue in zip(reversed(pieces.sites), reversed(pieces.glue[:-1]), strict=True):
        used = {name for piece in (*part.in_turn, part.window) for name in piece.inputs}
        inner = {part.site.attention, *part.entry.outputs}
        names = names | set(glue.inputs) | (used - inner) | set(part.site.exits)
        if states.keeps_residual(part.site.name):
            names = names | {part.site.attention}
        needs.append(names | set(part.entry.outputs))
    return needs[::-1]
