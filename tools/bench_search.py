"""Compare the greedy search with a plain one: `python -m ditc.tools.bench_search`.

The plain search runs the whole model anew for the reference, for every candidate and for the step
as decided, on the same pieces of the traced graph. Both must find the same plan. What is compared
is what they computed, in multiply-adds, and the time that took, both in turn in one process. The
quicker searches are measured in uncompressed generations.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from diffusers import DiTTransformer2DModel

from ditc.export import sampler_table
from ditc.passes import Losses, Method, Recording
from ditc.runtime.errors import DitcError, PlanError
from ditc.runtime.sampler import SamplerTable

from .argument_types import positive
from .decisions import Decided, relative_loss
from .glyphs import demo_scheduler
from .models import demo_recording
from .search import SEARCHES, find
from .site_forms import Forms, SiteStates
from .space import Space, space_of
from .stepping import GreedySteps
from .thresholds import threshold_of
from .timing import in_turn
from .trajectory import Trajectory

__all__ = ["Comparison", "PlainSteps", "Quick", "compare", "deep_recording", "main", "quick"]

GUIDANCE_SCALE = 4.0
SAMPLES = 4
"""That `ditc search demo` judges by."""


@dataclass(frozen=True)
class Comparison:
    """What the two searches took for the same plan.

    Attributes:
        model: name of the model.
        layers: sites that are searched.
        steps: denoising steps.
        threshold: δ.
        compressed: share of the cells behind step 0 that aren't full.
        multiply_adds: ratio of what was computed, greedy over plain.
        time: ratio of wall times, median of rounds.
        greedy_s: median wall time of the greedy search.
        plain_s: the same of the plain one.
    """

    model: str
    layers: int
    steps: int
    threshold: float
    compressed: float
    multiply_adds: float
    time: float
    greedy_s: float
    plain_s: float


@dataclass(frozen=True)
class Quick:
    """What a quicker search takes, in uncompressed generations of the same samples.

    Attributes:
        model: name of the model.
        search: its name.
        multiply_adds: what it computed.
        time: what it took, median of rounds in turn.
    """

    model: str
    search: str
    multiply_adds: float
    time: float


class PlainSteps(SiteStates):
    """A greedy search that keeps nothing within a step."""

    def __init__(self, space: Space, threshold: float) -> None:
        super().__init__(space)
        self._threshold = threshold

    def decide(self, step: int, inputs: Mapping[str, torch.Tensor]) -> tuple[Decided, torch.Tensor]:
        """Decide every site of a step, and return its output too."""
        names = [part.site.name for part in self.pieces.sites]
        decided = dict.fromkeys(names, Method.FULL)
        tried: dict[str, Losses] = {name: {} for name in names}
        if step:
            decided, tried = self._choose(inputs)
        output = self._whole(inputs, decided, keep=True)
        return Decided(decided, tried, self.multiply_adds, self.multiply_adds), output

    def _choose(
        self, inputs: Mapping[str, torch.Tensor]
    ) -> tuple[dict[str, Method], dict[str, Losses]]:
        decided: dict[str, Method] = {}
        tried: dict[str, Losses] = {}
        reference = self._whole(inputs, {})
        for number, part in enumerate(self.pieces.sites):
            name = part.site.name
            limit = threshold_of(self._threshold, number, len(self.pieces.sites))
            decided[name], losses = Method.FULL, {}
            for candidate in self.space.candidates[name]:
                output = self._whole(inputs, {**decided, name: candidate})
                losses[candidate] = relative_loss(reference, output)
                if losses[candidate] < limit:
                    decided[name] = candidate
                    break
            tried[name] = losses
        return decided, tried

    def _whole(
        self, inputs: Mapping[str, torch.Tensor], methods: Mapping[str, Method], keep: bool = False
    ) -> torch.Tensor:
        def pick(_: int, forms: Forms) -> Method:
            method = methods.get(forms.part.site.name, Method.FULL)
            if keep:
                forms.keep(method)
            return method

        return self.walk(self.entered(inputs), pick)


def deep_recording(layers: int = 28) -> Recording:
    """Return a DiT of the demo's width with many layers and random weights, both halves."""
    torch.manual_seed(0)
    module = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=1,
        out_channels=1,
        num_layers=layers,
        sample_size=32,
        patch_size=2,
        num_embeds_ada_norm=36,
    )
    kwargs = {
        "hidden_states": torch.randn(2, 1, 32, 32),
        "timestep": torch.full((2,), 500.0),
        "class_labels": torch.tensor([3, 36]),
    }
    return Recording(module.eval(), kwargs, "cond-first", demo_scheduler())


def compare(
    name: str, recording: Recording, steps: int, threshold: float, rounds: int
) -> Comparison:
    """Search the same plan both ways, in turn.

    Raises:
        PlanError: if the plans differ.
    """
    program = recording.capture()
    table = sampler_table(recording.scheduler, steps)
    space = space_of(program)
    ratios, taken = [], {GreedySteps: [0.0], PlainSteps: [0.0]}
    for _ in range(rounds):
        greedy, greedy_s, cells = _timed(GreedySteps(space, threshold), space, table)
        plain, plain_s, other = _timed(PlainSteps(space, threshold), space, table)
        if cells != other:
            raise PlanError(f"{name}: greedy and plain search decide otherwise")
        ratios.append(greedy_s / plain_s)
        taken[GreedySteps].append(greedy_s)
        taken[PlainSteps].append(plain_s)
    behind = [method for row in cells[1:] for method in row.values()]
    return Comparison(
        name,
        len(space.pieces.sites),
        steps,
        threshold,
        sum(method is not Method.FULL for method in behind) / len(behind),
        greedy / plain,
        statistics.median(ratios),
        statistics.median(taken[GreedySteps][1:]),
        statistics.median(taken[PlainSteps][1:]),
    )


def quick(
    name: str, recording: Recording, steps: int, threshold: float, rounds: int
) -> list[Quick]:
    """Run the quicker searches and a generation without compression, in turn."""
    program = recording.capture()
    table = sampler_table(recording.scheduler, steps)
    space = space_of(program)
    computed: dict[str, int] = {}

    def search(name: str) -> None:
        computed[name] = find(
            name, space, table, threshold, guidance_scale=GUIDANCE_SCALE
        ).multiply_adds

    def generate() -> None:
        trajectory = Trajectory(program, table, GUIDANCE_SCALE, seed=0)
        for step in range(table.steps):
            output = program.graph_module(*trajectory.inputs(step).values())[0]
            trajectory.advance(step, output)

    names = [name for name in SEARCHES if name != "greedy"]
    with torch.no_grad():
        taken = in_turn(
            {"generation": generate, **{name: partial(search, name) for name in names}}, rounds
        )
    whole = space.cost.full * table.steps
    return [
        Quick(name, found, computed[found] / whole, taken["generation"].ratio_to(taken[found]))
        for found in names
    ]


def _timed(
    decider: GreedySteps | PlainSteps, space: Space, table: SamplerTable
) -> tuple[int, float, list[Mapping[str, Method]]]:
    """Return the multiply-adds, the seconds and the decisions of a search."""
    trajectory = Trajectory(space.program, table, GUIDANCE_SCALE, seed=0)
    cells = []
    started = time.perf_counter()
    for step in range(table.steps):
        decided, output = decider.decide(step, trajectory.inputs(step))
        trajectory.advance(step, output)
        cells.append(decided.methods)
    return decider.multiply_adds, time.perf_counter() - started, cells


def _line(found: Comparison) -> str:
    return (
        f"{found.model}, {found.layers} layers, {found.steps} steps, threshold "
        f"{found.threshold:g}: {found.compressed:.0%} of cells compressed; multiply-adds "
        f"{found.multiply_adds:.2f}, time {found.time:.2f} ({found.greedy_s:.1f} s against "
        f"{found.plain_s:.1f} s)"
    )


def _quick_line(found: Quick) -> str:
    return (
        f"{found.model}, {found.search}: as long as {found.time:.2f} uncompressed generations, "
        f"multiply-adds of {found.multiply_adds:.2f}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 1 with one line on stderr where the input is at fault."""
    parser = argparse.ArgumentParser(
        prog="python -m ditc.tools.bench_search", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--thresholds", default="0.05,0.1", help="with commas between (0.05,0.1)")
    parser.add_argument("--steps", type=positive, default=20, help="of the demo model (20)")
    parser.add_argument("--layers", type=positive, default=28, help="of the deep model (28)")
    parser.add_argument("--deep-steps", type=positive, default=4, help="of the deep model (4)")
    parser.add_argument("--rounds", type=positive, default=3, help="of timing (3)")
    parser.add_argument("--json", action="store_true", help="for programs to read")
    options = parser.parse_args(arguments)
    found: list[Comparison] = []
    found_quick: list[Quick] = []
    try:
        models = {
            "demo": (demo_recording(), options.steps),
            "random weights": (deep_recording(options.layers), options.deep_steps),
        }
        for text in options.thresholds.split(","):
            for name, (recording, steps) in models.items():
                found.append(compare(name, recording, steps, float(text), options.rounds))
                if not options.json:
                    sys.stdout.write(_line(found[-1]) + "\n")
                    sys.stdout.flush()
        models["demo"] = (demo_recording(SAMPLES), options.steps)
        for name, (recording, steps) in models.items():
            found_quick += quick(name, recording, steps, 0.1, options.rounds)
    except (DitcError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    if options.json:
        record = [*map(asdict, found), *map(asdict, found_quick)]
        sys.stdout.write(json.dumps(record, indent=1) + "\n")
    else:
        sys.stdout.write("\n".join(map(_quick_line, found_quick)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
