"""`ditc search`: a model and a threshold or a budget in, a plan out; stopped, it goes on."""

import argparse
import hashlib
import sys
from dataclasses import asdict, replace
from importlib.metadata import version

import torch

from ditc.export import sampler_table
from ditc.passes import Goal, Method, Plan, Program, Tried
from ditc.passes.plan import MAX_STEPS
from ditc.passes.plan_fields import MAX_NUMBER, MAX_SEED
from ditc.runtime.errors import DitcError
from ditc.runtime.sampler import SamplerTable

from .budget import least_threshold, limit_of
from .decisions import METRICS, Checkpoint, Found, relative_loss
from .journal import Journal, Results
from .latencies import Latencies
from .models import check_steps, load_recording, parse_call
from .places import check_place, replace_text
from .progress import progress
from .report_words import milliseconds
from .samples import check_samples
from .search import find
from .space import Space, space_of
from .windows import windowed

__all__ = ["search"]

THRESHOLD = 0.1
CALIBRATION = 4


def search(options: argparse.Namespace) -> None:
    """Search a plan as the options ask, and write it.

    Where the search is goes into a journal beside the plan after every step; a search with the
    same arguments goes on from there, and ends in the same plan.

    Raises:
        DitcError: if model, threshold, budget, latencies or place are at fault.
    """
    check_place("--out", options.out)
    _check_numbers(options)
    if not 2 <= options.steps <= MAX_STEPS:
        raise DitcError(
            f"--steps {options.steps}: expected 2 to {MAX_STEPS}; step 0 is never compressed"
        )
    if options.budget_ms is not None and options.latency is None:
        raise DitcError(
            "--budget-ms needs --latency, a file of 'ditc bench MODEL --sites': without it no "
            "milliseconds are known; --speedup goes by multiply-adds then"
        )
    latencies = None if options.latency is None else Latencies.load(options.latency)
    call = parse_call(options.call)
    check_steps(call, options.steps, "--steps has")
    samples = options.calibration or (CALIBRATION if options.model == "demo" else None)
    recording = load_recording(options.model, options.steps, call, samples)
    table = sampler_table(recording.sampler(), options.steps)
    program = recording.batched().capture()
    check_samples(options.model, program, samples)
    program, windows = windowed(program, options.window)
    space = space_of(program, windows, latencies)
    seeker = _Seeker(options, space, table)
    if options.speedup is None and options.budget_ms is None:
        found = seeker.find(THRESHOLD if options.threshold is None else options.threshold)
        plan, note = found.plan, _computed(found, options.search)
    else:
        plan, note = seeker.within_budget()
    replace_text(options.out, plan.to_json())
    seeker.forget()
    left = f"{plan.attention_left():.1%} of attention left"
    sys.stdout.write(f"{options.out}: {left}{_promised(space, plan)}; {note}\n")


def _check_numbers(options: argparse.Namespace) -> None:
    """Refuse numbers that lead nowhere before the model is loaded."""
    for name in ("threshold", "speedup", "budget_ms"):
        value = getattr(options, name)
        if value is not None and not 0 < value <= MAX_NUMBER:
            raise DitcError(
                f"--{name.replace('_', '-')} {value:g}: expected a positive number up to "
                f"{MAX_NUMBER:g}"
            )
    if not abs(options.guidance_scale) <= MAX_NUMBER:
        raise DitcError(
            f"--guidance-scale {options.guidance_scale:g}: expected a number up to {MAX_NUMBER:g}"
        )
    if options.seed > MAX_SEED:
        raise DitcError(f"--seed {options.seed}: expected an integer up to {MAX_SEED}")


class _Seeker:
    """Searches as the options ask, its journals beside the plan's place."""

    def __init__(self, options: argparse.Namespace, space: Space, table: SamplerTable) -> None:
        self._options = options
        self._space = space
        self._table = table
        self._arguments = _arguments(options, space, table)
        self._place = options.out.with_name(options.out.name + ".journal")
        self._tried = options.out.with_name(options.out.name + ".tried")

    def find(self, threshold: float) -> Found:
        """Search with a threshold, going on where the journal ends."""
        return self._find(self._options.search, self._space, threshold, "search")

    def within_budget(self) -> tuple[Plan, str]:
        """Search with one threshold after the other; return the plan taken and a note on it."""
        options, space = self._options, self._space
        full = Plan.uniform(space.program, self._table.steps, Method.FULL)
        goal = Goal(options.speedup, options.budget_ms)
        limit = limit_of(space, full, goal)
        results = Results(self._tried, {**self._arguments, **asdict(goal)})
        if results.uncompressed is None:
            nothing = replace(space, candidates=dict.fromkeys(space.candidates, ()))
            latents = self._find("local", nothing, 1.0, "uncompressed").latents
            results.keep_uncompressed(torch.from_numpy(latents))
        reference = results.uncompressed
        assert reference is not None

        def meets(threshold: float) -> bool:
            if threshold not in results.plans:
                label = f"search, δ = {threshold:g}"
                found = self._find(options.search, space, threshold, label)
                loss = relative_loss(reference, torch.from_numpy(found.latents))
                tried = _tried(space, found.plan, threshold, loss)
                results.keep(replace(found.plan, pareto=(tried,)), threshold)
            return space.predicted(results.plans[threshold]) <= limit

        taken = least_threshold(options.search, len(space.windows), meets)
        points = [point for _, plan in sorted(results.plans.items()) for point in plan.pareto or ()]
        note = f"δ = {taken:g}, the least of {len(points)} tried that meets the budget"
        plan = results.plans[taken]
        assert plan.origin is not None
        origin = replace(plan.origin, goal=goal)
        return replace(plan, pareto=tuple(points), origin=origin), note

    def forget(self) -> None:
        """Remove the journals: the plan is written."""
        self._place.unlink(missing_ok=True)
        self._tried.unlink(missing_ok=True)

    def _find(self, search: str, space: Space, threshold: float, label: str) -> Found:
        arguments = {**self._arguments, "search": search, "threshold": threshold, "label": label}
        journal = Journal(self._place, {**arguments, "metric": METRICS[search]})
        known = journal.read()
        if known is not None:
            sys.stderr.write(f"going on behind step {len(known.steps) - 1}\n")
        left = self._table.steps - (len(known.steps) if known else 0)
        with progress(label, left) as advance:

            def keep(checkpoint: Checkpoint) -> None:
                journal.write(checkpoint)
                advance()

            return find(
                search,
                space,
                self._table,
                threshold,
                guidance_scale=self._options.guidance_scale,
                seed=self._options.seed,
                resume=known,
                on_step=keep,
            )


def _tried(space: Space, plan: Plan, threshold: float, loss: float) -> Tried:
    latencies = space.latencies
    latency_ms = None if latencies is None else latencies.predicted_ms(plan)
    return Tried(threshold, loss, latency_ms, plan.multiply_adds_left())


def _promised(space: Space, plan: Plan) -> str:
    """Return what the latencies promise; without any, nothing is promised but multiply-adds."""
    if space.latencies is None:
        return f", {space.predicted(plan):.1%} of the model"
    ms, whole = space.predicted(plan), space.latencies.step_ms * plan.steps
    return f", {milliseconds(ms)} a generation predicted, {whole / ms:.2f} times as fast"


def _computed(found: Found, search: str) -> str:
    if search == "greedy":
        spent = found.multiply_adds / found.plain_multiply_adds
        return f"the search computed {spent:.0%} of what whole runs of the model would have"
    spent = found.multiply_adds / (found.plan.cost.full * found.plan.steps)
    return f"the search computed as much as {spent:.1f} uncompressed generations"


def _arguments(options: argparse.Namespace, space: Space, table: SamplerTable) -> dict[str, object]:
    """Return what any plan found depends on, its threshold aside, as JSON values."""
    program = space.program
    return {
        "ditc": version("ditc"),
        "model": program.identity.model,
        "config_sha256": program.identity.config_sha256,
        "inputs": [[entry.name, list(entry.shape)] for entry in program.inputs],
        "constants": {path: repr(value) for path, value in program.constants.items()},
        "tensors_sha256": _digest(program),
        "cfg": program.cfg,
        "windows": {site: window.to_json() for site, window in space.windows.items()},
        "sampler": table.to_json(),
        "guidance_scale": options.guidance_scale,
        "seed": options.seed,
        "search": options.search,
        "latencies": space.latencies and space.latencies.to_json(),
    }


def _digest(program: Program) -> str:
    """Return the SHA-256 of the weights and of the conditioning that a search runs with."""
    digest = hashlib.sha256()
    conditions = {entry.name for entry in program.inputs if entry.role == "condition"}
    weights = program.graph_module.state_dict()
    for name, value in (*weights.items(), *program.example.items()):
        if name in conditions or name in weights:
            digest.update(name.encode())
            digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
