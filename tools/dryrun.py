"""Prove that Torch-TensorRT converts every graph: `python -m ditc.tools.dryrun [MODEL …]`.

Its partitioner is run dry over every kind of graph that compiling makes, of small models, and its
converters make a TensorRT network of each; nothing is built, and no GPU is needed. Run it in an
environment of its own, which `make dryrun` sets up. The exit code is 1 if an operator of any graph
can't be converted, or a graph doesn't become one engine.
"""

import argparse
import contextlib
import io
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ditc.export.torch_network import NotConvertibleError, import_dynamo, make_network
from ditc.runtime.errors import DitcError

from .dryrun_graphs import CASES, Case, Graph, graphs, zoo_cases

__all__ = ["Coverage", "cover", "dry_run", "main"]

ROW = "{:<8} {:<29} {:<19} {:<16} {:>9} {:>11} {:>10} {:>6}  {}"
TITLES = ("model", "options", "graph", "methods", "operators", "unsupported", "partitions")


@dataclass(frozen=True)
class Coverage:
    """What Torch-TensorRT makes of a graph.

    Attributes:
        operators: of the graph, as it is given to the converters.
        unsupported: how often each operator without a converter is in it.
        partitions: engines that the graph would be cut into.
        layers: of the network that the converters made; 0 where they made none.
        reason: why they made none; empty if they did.
    """

    operators: int
    unsupported: Mapping[str, int] = field(default_factory=dict)
    partitions: int = 1
    layers: int = 0
    reason: str = ""

    @property
    def whole(self) -> bool:
        """Whether the graph becomes one engine, operator for operator."""
        return not self.unsupported and self.partitions == 1 and not self.reason


def cover(dynamo: SimpleNamespace, program: Path) -> Coverage:
    """Return what Torch-TensorRT makes of a program of torch.export.

    Args:
        dynamo: from `ditc.export.torch_network.import_dynamo`.
        program: file that `ditc.export.torch_program` wrote.
    """
    exported = torch.export.load(program)
    inputs = [
        dynamo.package.Input(shape=tuple(node.meta["val"].shape), dtype=node.meta["val"].dtype)
        for node in exported.graph.find_nodes(op="placeholder")
        if node.name in exported.graph_signature.user_inputs
    ]
    found = _partitioned(exported, inputs)
    try:
        made = make_network({"graph": str(program), "capabilities": ()})
    except NotConvertibleError as error:
        return Coverage(*found, reason=str(error))
    return Coverage(*found, layers=made.network.num_layers)


def _partitioned(
    exported: torch.export.ExportedProgram, inputs: Sequence[object]
) -> tuple[int, Mapping[str, int], int]:
    """Run the partitioner dry; return operators, those unsupported, and partitions."""
    compiler: Any = import_module("torch_tensorrt.dynamo._compiler")
    trackers: list[SimpleNamespace] = []
    shown = compiler.dryrun_stats_display
    compiler.dryrun_stats_display = lambda tracker, _: trackers.append(tracker)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            compiler.compile(
                exported,
                arg_inputs=inputs,
                dryrun=True,
                min_block_size=1,
                offload_module_to_cpu=True,
                attn_bias_is_causal=False,
            )
    finally:
        compiler.dryrun_stats_display = shown
    (tracker,) = trackers
    unsupported = {str(name): int(count) for name, count in tracker.unsupported_ops.items()}
    return tracker.total_ops_in_graph, unsupported, tracker.tensorrt_graph_count


def _row(graph: Graph, found: Coverage) -> str:
    missing = ", ".join(f"{count} × {name}" for name, count in found.unsupported.items())
    return ROW.format(
        graph.case.title,
        graph.case.options,
        graph.name,
        graph.methods,
        found.operators,
        sum(found.unsupported.values()),
        found.partitions,
        found.layers,
        missing or found.reason,
    ).rstrip()


def dry_run(cases: Iterable[Case], dynamo: SimpleNamespace) -> list[tuple[Graph, Coverage]]:
    """Try every graph of some cases, and print a row for each.

    Raises:
        DitcError: if a model can't be captured, or compiled so.
    """
    results: list[tuple[Graph, Coverage]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.pt2"
        for case in cases:
            for graph in graphs(case):
                path.write_bytes(graph.make().graph)
                results.append((graph, cover(dynamo, path)))
                _say(_row(*results[-1]))
    return results


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 1 if a graph can't be converted whole, or Torch-TensorRT isn't there."""
    parser = argparse.ArgumentParser(prog="python -m ditc.tools.dryrun", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="parts of titles; all if none")
    parser.add_argument("--zoo", action="store_true", help="the models of ditc.tools.zoo instead")
    parser.add_argument("-o", "--out", type=Path, help="JSON file to write")
    given = parser.parse_args(arguments)
    logging.getLogger("torch_tensorrt").setLevel(logging.CRITICAL)
    try:
        cases = zoo_cases(given.models) if given.zoo else _named(given.models)
        dynamo = import_dynamo(())
        _say(_heading(dynamo))
        results = dry_run(cases, dynamo)
    except (DitcError, NotConvertibleError) as error:
        sys.stderr.write(f"dryrun: {error}\n")
        return 1
    if given.out is not None:
        given.out.write_text(json.dumps(_record(results), indent=1) + "\n", encoding="utf-8")
    whole = [found for _, found in results if found.whole]
    operators = sum(found.operators for _, found in results)
    _say(f"{len(whole)} of {len(results)} graphs become one engine; {operators} operators")
    return 0 if len(whole) == len(results) else 1


def _named(parts: Sequence[str]) -> list[Case]:
    cases = [c for c in CASES if not parts or any(p in f"{c.title} {c.options}" for p in parts)]
    if not cases:
        raise DitcError(f"no model is called {' or '.join(parts)}")
    return cases


def _heading(dynamo: SimpleNamespace) -> str:
    library = import_module("tensorrt")
    name = getattr(library, "_package_name", library.__name__)
    return (
        f"torch_tensorrt {dynamo.package.__version__}, {name} {library.__version__}, torch "
        f"{torch.__version__}\n{ROW.format(*TITLES, 'layers', '').rstrip()}"
    )


def _record(results: Iterable[tuple[Graph, Coverage]]) -> list[dict[str, object]]:
    return [
        {
            "model": graph.case.title,
            "options": graph.case.options,
            "graph": graph.name,
            "methods": graph.methods,
            **asdict(found),
        }
        for graph, found in results
    ]


if __name__ == "__main__":
    sys.exit(main())
