"""Measure window attention in ONNX Runtime: `python -m ditc.tools.bench_window`.

One attention is built in every form: full, with the fused operators and written out; under a
mask; and lowered to blocks, for a band and for a window of whole blocks. Each is checked on some
rows against float64, then all are run in turn in one process, so that noise falls on all alike.
A ratio is the median over rounds of the fastest full attention's time over the form's own.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import truediv

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tqdm import tqdm

from ditc.passes.window import Window
from ditc.runtime.errors import DitcError, EngineError

from .window_forms import Form, Shape, forms

__all__ = ["Result", "main", "measure"]

TOLERANCE = 1e-5
CHECKED_ROWS = 7

Feeds = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Result:
    """A form's times; the error is the largest, relative to the largest value.

    The ratio is None where no full attention fits into memory.
    """

    name: str
    nodes: int
    median_ms: float
    fastest_ms: float
    ratio: float | None
    error: float


def _rows(shape: Shape) -> list[int]:
    return [*range(0, shape.tokens, -(-shape.tokens // CHECKED_ROWS)), shape.tokens - 1]


def _reference(feeds: Feeds, shape: Shape, window: Window | None) -> NDArray[np.float64]:
    query, key, value = (feeds[name].astype(np.float64) for name in ("query", "key", "value"))
    outputs = []
    for row in _rows(shape):
        seen = (0, shape.tokens) if window is None else window.keys_of(row, row + 1, shape.tokens)
        scores = np.einsum("bhd,bhkd->bhk", query[:, :, row], key[:, :, slice(*seen)]) * shape.scale
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        outputs.append(np.einsum("bhk,bhkd->bhd", weights, value[:, :, slice(*seen)]))
    return np.stack(outputs, axis=2)


class _Runner:
    """A form's session, the arrays it takes, and the times it took in milliseconds."""

    def __init__(self, form: Form, shape: Shape, feeds: Feeds, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # A session's idle threads would otherwise spin on while the next form runs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self.form = form
        self.feeds = dict(feeds)
        self.times: list[float] = []
        self._session = onnxruntime.InferenceSession(
            form.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        if form.merged:
            merged = (shape.batch, shape.tokens, shape.heads * shape.head_dim)
            self.feeds["query"] = feeds["query"].transpose(0, 2, 1, 3).reshape(merged)
        self.error = self._error(shape, feeds)

    def _error(self, shape: Shape, feeds: Feeds) -> float:
        found = self._session.run(None, self.feeds)[0]
        if self.form.merged:
            found = found.reshape(shape.batch, shape.tokens, shape.heads, shape.head_dim)
            found = found.transpose(0, 2, 1, 3)
        expected = _reference(feeds, shape, self.form.window)
        error = float(np.abs(found[:, :, _rows(shape)] - expected).max() / np.abs(expected).max())
        if error > TOLERANCE:
            raise EngineError(
                f"{self.form.name} is {error:.1e} from float64, expected at most {TOLERANCE:.0e}: "
                "times of a wrong result mean nothing"
            )
        return error

    def run(self) -> None:
        started = time.perf_counter()
        self._session.run(None, self.feeds)
        self.times.append(1e3 * (time.perf_counter() - started))


def measure(
    made: Sequence[Form], shape: Shape, *, threads: int, repeats: int, progress: bool = False
) -> tuple[Result, ...]:
    """Run all forms in turn, `repeats` times, and return their results in the same order.

    Raises:
        EngineError: if a form is further than 1e-5 from float64, relative to the largest value.
    """
    rng = np.random.default_rng(0)
    size = (shape.batch, shape.heads, shape.tokens, shape.head_dim)
    feeds = {name: rng.standard_normal(size, np.float32) for name in ("query", "key", "value")}
    runners = [_Runner(form, shape, feeds, threads) for form in made]
    for _ in tqdm(range(repeats), desc="rounds", disable=not progress):
        for runner in runners:
            runner.run()
    full = [runner.times for runner in runners if runner.form.window is None]
    fastest = min(full, key=statistics.median, default=[])
    return tuple(
        Result(
            runner.form.name,
            len(runner.form.model.graph.node),
            statistics.median(runner.times),
            min(runner.times),
            statistics.median(map(truediv, fastest, runner.times)) if fastest else None,
            runner.error,
        )
        for runner in runners
    )


def _table(results: Sequence[Result]) -> str:
    lines = [f"{'form':28}{'nodes':>7}{'median ms':>12}{'fastest ms':>12}{'ratio':>8}{'error':>10}"]
    for r in results:
        ratio = "-" if r.ratio is None else f"{r.ratio:.2f}"
        times = f"{r.median_ms:12.2f}{r.fastest_ms:12.2f}"
        lines.append(f"{r.name:28}{r.nodes:7}{times}{ratio:>8}{r.error:10.1e}")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ditc.tools.bench_window",
        description="Measure window attention against full attention in ONNX Runtime on the CPU.",
    )
    defaults = {"batch": 2, "heads": 16, "tokens": 4096, "head-dim": 72, "repeats": 9}
    for name, default in {**defaults, "threads": os.cpu_count() or 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"({default})")
    parser.add_argument("--radius", type=int, help="tokens seen each side (an eighth of all)")
    parser.add_argument(
        "--block", type=int, help="tokens a block (the largest up to 128 that fits)"
    )
    parser.add_argument("--json", action="store_true", help="print results for a program")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 1 with one line on stderr where the input is at fault."""
    options = _parser().parse_args(arguments)
    shape = Shape(options.batch, options.heads, options.tokens, options.head_dim)
    radius = options.tokens // 8 if options.radius is None else options.radius
    block = math.gcd(radius, 128) if options.block is None else options.block
    try:
        for name in ("batch", "heads", "tokens", "head_dim", "threads", "repeats"):
            if getattr(options, name) < 1:
                raise EngineError(f"{name} is {getattr(options, name)}, expected at least 1")
        made = forms(shape, radius, block)
        numbers = {"threads": options.threads, "repeats": options.repeats}
        results = measure(made, shape, **numbers, progress=not options.json)
    except DitcError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps([asdict(r) for r in results], indent=2) if options.json else _table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
