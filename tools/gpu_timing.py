"""Time callables on a GPU in turn: CUDA graphs replayed between CUDA events."""

import math
from collections.abc import Callable, Mapping

import torch

from .timing import Timing, in_turn, timing

__all__ = ["Run", "timed"]

Run = Callable[[], object]
WARM_UP = 3
LEAST_MS = 5.0
"""What runs shorter is repeated between two events, for their resolution of half a microsecond."""


def timed(runs: Mapping[str, Run], device: str, rounds: int) -> dict[str, Timing]:
    """Run callables in turn, round after round, and return each one's milliseconds.

    On a GPU each is captured as a CUDA graph, so that Python and launches cost nothing; on the CPU
    each is called, and times are wall times. Nothing flushes caches between two runs.
    """
    if torch.device(device).type != "cuda":
        return in_turn(runs, rounds)
    graphs = {name: _captured(run) for name, run in runs.items()}
    repeats = {name: _repeats(graph) for name, graph in graphs.items()}
    taken: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(rounds):
        for name, graph in graphs.items():
            taken[name].append(_replayed_ms(graph, repeats[name]))
    return {name: timing(values) for name, values in taken.items()}


def _captured(run: Run) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    torch.cuda.synchronize()
    return graph


def _repeats(graph: torch.cuda.CUDAGraph) -> int:
    return max(1, math.ceil(LEAST_MS / max(_replayed_ms(graph, 1), 0.01)))


def _replayed_ms(graph: torch.cuda.CUDAGraph, repeats: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(repeats):
        graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / repeats
