"""`ditc bench MODEL --sites`: time each method at each site on the target, the site cut out.

A site becomes a program of its own, is rewritten, lowered and run as in a bundle, its residuals and
outputs in slots. One plan shows every method once, with and without a residual to keep. What a call
costs by itself is in all of the times, so that it cancels out where they are compared.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import fx
from torch.utils import _pytree as pytree

from ditc.export import compile as compile_bundle
from ditc.passes import Input, Method, Plan, Program, Schedule, schedule
from ditc.passes.graphs import shape_of, weight
from ditc.passes.piece import SitePieces
from ditc.passes.pieces import Pieces
from ditc.runtime import Bundle
from ditc.runtime.errors import LoweringError, PassError
from ditc.runtime.ort_checks import CPU

from .latencies import Latencies, SiteLatency
from .models import load_recording, parse_call
from .places import check_place
from .progress import progress
from .running import Numbers
from .samples import check_samples
from .space import Space, space_of
from .timing import in_turn
from .windows import windowed

__all__ = ["bench_sites", "measure", "site_program"]

STEP = "step"
RECORDED_STEPS = 2
PLAIN = {
    0: (Method.FULL, True),
    1: (Method.WA_RS, False),
    2: (Method.ASC, True),
    3: (Method.WA_RS_ASC, False),
    4: (Method.ASC, False),
    5: (Method.FULL, False),
    6: (Method.AST, False),
}
"""Steps of the plan that shows all methods: each one's method, and whether a later window needs its
residual. Step 5 leaves its output to step 6."""


def bench_sites(options: argparse.Namespace) -> None:
    """Time the sites of the model that the options name, and write what came of it.

    Raises:
        DitcError: if model or place are at fault, or a site can't be lowered.
    """
    check_place("--out", options.out)
    call = parse_call(options.call)
    recording = load_recording(options.what, RECORDED_STEPS, call, options.samples)
    program = recording.batched().capture()
    check_samples(options.what, program, options.samples)
    latencies = measure(
        space_of(*windowed(program, options.window)),
        options.rounds,
        providers=options.provider or (CPU,),
        threads=options.threads,
    )
    latencies.save(options.out)
    sys.stdout.write(_table(options.out, latencies))


def measure(
    space: Space,
    rounds: int,
    *,
    providers: Sequence[str] = (CPU,),
    threads: int | None = None,
) -> Latencies:
    """Time every method at every site, and a whole uncompressed step, all in turn.

    Sites with equal graphs, whatever their weights, are measured once.

    Args:
        space: the model, cut at its sites, and the methods each may have.
        rounds: how often each is timed; what counts is the median.
        providers: ONNX Runtime execution providers.
        threads: threads within an operator, None for all cores.
    """
    program = space.program
    values = _entering(program, space.pieces)
    kinds: dict[object, str] = {}
    for part in space.pieces.sites:
        kinds.setdefault(_signature(space, part), part.site.name)
    parts = {part.site.name: part for part in space.pieces.sites}
    with tempfile.TemporaryDirectory(prefix="ditc-bench-") as folder:
        schedules = {STEP: schedule(program, Plan.uniform(program, 1, Method.FULL))}
        for name in kinds.values():
            schedules[name] = _schedule(space, parts[name], values[name])
        bundles: dict[str, Bundle] = {}
        with progress("compile sites", len(schedules)) as advance:
            for number, (name, sched) in enumerate(schedules.items()):
                place = compile_bundle(sched, Path(folder) / str(number))
                bundles[name] = Bundle.open(place, providers=providers, threads=threads)
                advance()
        times = _times(schedules, bundles, rounds)
    sites = {}
    for part in space.pieces.sites:
        name = kinds[_signature(space, part)]
        sites[part.site.name] = _site_latency(schedules[name], name, times)
    return Latencies(
        target=f"onnx, {', '.join(providers)}",
        threads=threads,
        batch=program.latents.shape[0],
        identity=program.identity,
        latents=program.latents.shape[1:],
        cfg=program.cfg,
        windows=space.windows,
        step_ms=times[STEP, 0],
        sites=sites,
        ditc=version("ditc"),
    )


def site_program(program: Program, part: SitePieces, values: Mapping[str, torch.Tensor]) -> Program:
    """Return a site as a program of its own: in goes what enters it, out come its exits.

    Args:
        program: that it was cut from.
        part: the site.
        values: what enters it, by name.

    Raises:
        LoweringError: if nothing of the model's batch enters it.
    """
    batch = program.latents.shape[0]
    names = part.whole.inputs
    floats = [name for name in names if values[name].is_floating_point()]
    held = [name for name in floats if values[name].shape[:1] == (batch,)] or floats
    if not held:
        raise LoweringError(f"site {part.site.name}: nothing of floating point enters it")
    main = max(held, key=lambda name: values[name].numel())
    inputs = tuple(
        Input(
            name,
            tuple(values[name].shape),
            values[name].dtype,
            "latents" if name == main else "condition",
        )
        for name in names
    )
    outputs = tuple(f"{name}_out" for name in part.whole.outputs)
    return Program(
        graph_module=part.whole.module,
        inputs=inputs,
        outputs=outputs,
        sites=(part.site,),
        cfg=program.cfg,
        identity=program.identity,
        constants={},
        example={name: values[name] for name in names},
        in_paths={name: name for name in names},
        out_spec=pytree.tree_flatten(outputs)[1],
    )


def _entering(program: Program, pieces: Pieces) -> dict[str, dict[str, torch.Tensor]]:
    """Run the model once and return what enters each site, by site."""
    values = dict(program.example)
    entering = {}
    values.update(pieces.glue[0](values))
    for part, glue in zip(pieces.sites, pieces.glue[1:], strict=True):
        entering[part.site.name] = {name: values[name].contiguous() for name in part.whole.inputs}
        values.update(part.whole(values))
        values.update(glue(values))
    return entering


def _schedule(space: Space, part: SitePieces, values: Mapping[str, torch.Tensor]) -> Schedule:
    """Return the schedule that shows all methods a site can have, in steps as in `PLAIN`."""
    name = part.site.name
    sub = site_program(space.program, part, values)
    plan = Plan.uniform(sub, len(PLAIN), Method.FULL, window=space.windows[name])
    possible = _possible(space, sub, name)
    for step, (method, _) in PLAIN.items():
        if method in possible:
            plan = plan.replace(step, name, method)
    return schedule(sub, plan)


def _possible(space: Space, sub: Program, name: str) -> tuple[Method, ...]:
    """Return the methods of a site that can be applied to it by itself too."""
    candidates = space.candidates[name]
    if Method.ASC not in candidates:
        return candidates
    full = Plan.uniform(sub, 3, Method.FULL, window=space.windows[name])
    shared = full.replace(1, name, Method.ASC).replace(2, name, Method.WA_RS_ASC)
    try:
        for bucket in schedule(sub, shared).buckets:
            _ = bucket.graph_module
    except PassError:
        return tuple(method for method in candidates if not method.shares_cfg)
    return candidates


def _times(
    schedules: Mapping[str, Schedule], bundles: Mapping[str, Bundle], rounds: int
) -> dict[tuple[str, int], float]:
    """Return the median of every step of every bundle in milliseconds, all in turn."""
    inputs: dict[str, dict[str, Numbers]] = {
        name: {
            entry.name: sched.program.example[entry.name].numpy() for entry in sched.program.inputs
        }
        for name, sched in schedules.items()
    }
    ways = {
        f"{name} {step}": (name, step)
        for name, sched in schedules.items()
        for step in range(sched.steps)
    }

    def runner(name: str, step: int) -> Callable[[], object]:
        return lambda: bundles[name].step(step, **inputs[name])

    with progress("time sites", rounds) as advance:
        found = in_turn(
            {key: runner(*way) for key, way in ways.items()}, rounds, 2, after_round=advance
        )
    return {way: found[key].median_ms for key, way in ways.items()}


def _site_latency(
    sched: Schedule, name: str, times: Mapping[tuple[str, int], float]
) -> SiteLatency:
    site = sched.program.sites[0].name
    ms: dict[Method, float] = {}
    keeping_ms: dict[Method, float] = {}
    for step, (method, keeps) in PLAIN.items():
        if sched.plan.method(step, site) is method:
            (keeping_ms if keeps else ms)[method] = times[name, step]
    order = [method for method in Method if method in ms]
    return SiteLatency({method: ms[method] for method in order}, keeping_ms)


def _signature(space: Space, part: SitePieces) -> object:
    """Return what two sites share whose graphs differ in nothing but weights' values."""
    module = part.whole.module
    number = {node: index for index, node in enumerate(module.graph.nodes)}
    lines = tuple(_line(module, node, number) for node in module.graph.nodes)
    site = part.site.name
    return lines, space.windows[site], space.candidates[site]


def _line(module: fx.GraphModule, node: fx.Node, number: Mapping[fx.Node, int]) -> str:
    if node.op == "get_attr":
        tensor = weight(module, str(node.target))
        return f"weight {tuple(tensor.shape)} {tensor.dtype}"
    if node.op == "placeholder":
        return f"input {shape_of(node)} {node.meta['val'].dtype}"
    arguments = fx.map_arg((node.args, node.kwargs), lambda arg: f"%{number[arg]}")
    return f"{node.op} {node.target if node.op != 'output' else ''} {arguments}"


def _table(out: Path, latencies: Latencies) -> str:
    lines = [f"{'site':<40}" + "".join(f"{method:>12}" for method in Method)]
    for site, found in latencies.sites.items():
        cells = (f"{found.ms[m]:>9.2f} ms" if m in found.ms else f"{'-':>12}" for m in Method)
        lines.append(f"{site:<40}" + "".join(cells))
    slow = sum(
        method is not Method.FULL and not latencies.faster(site, method)
        for site, found in latencies.sites.items()
        for method in found.ms
    )
    lines.append(
        f"{out}: a whole step takes {latencies.step_ms:.2f} ms on {latencies.target}; {slow} "
        "methods aren't faster than full attention at their site"
    )
    return "\n".join(lines) + "\n"
