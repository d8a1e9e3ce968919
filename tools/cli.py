"""The `ditc` command: arguments in, one function a command, exit codes out.

Exit codes: 0 done, 1 the input is at fault (one line on standard error), 2 usage.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

from ditc.runtime.errors import DitcError, install

from .argument_types import positive
from .arguments import (
    add_bench_options,
    add_compare_options,
    add_compile_options,
    add_engine_options,
    add_json_option,
    add_report_options,
    add_run_options,
    add_search_options,
    add_variant_option,
)
from .calling import OUT_OF_MEMORY
from .terminating import terminable

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options, unknown = _parser().parse_known_args(arguments)
    if unknown:
        options.misused(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        with terminable():
            options.run(options)
        sys.stdout.flush()
    except DitcError as error:
        sys.stderr.write(f"ditc: {_line(error)}\n")
        return 1
    except ImportError as error:
        sys.stderr.write(f"ditc: {_missing(error)}\n")
        return 1
    except MemoryError as error:
        sys.stderr.write(f"ditc: memory is short: {_line(error)}\n")
        return 1
    except RuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        sys.stderr.write(f"ditc: memory is short: {_line(error)}\n")
        return 1
    except KeyboardInterrupt:
        goes_on = "; the same command goes on from there" if options.run is _search else ""
        sys.stderr.write(f"ditc: interrupted{goes_on}\n")
        return 130
    except BrokenPipeError:  # whoever read has gone: nothing is written at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        sys.stderr.write(f"ditc: {_line(error)}\n")
        return 1
    return 0


def _line(error: Exception) -> str:
    """Return a message as one line: engines and operating systems write several."""
    return " ".join(line.strip() for line in str(error).splitlines())


def _missing(error: ImportError) -> str:
    name = (error.name or "").partition(".")[0]
    if name in ("torch", "diffusers", "transformers", "onnx", "onnx_ir", "onnxscript", "scipy"):
        return f"{name} is not installed: {install('compile')}"
    if name in ("torchmetrics", "matplotlib"):
        return f"{name} is not installed: {install('dev')}"
    return f"{error}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ditc",
        description="Compile diffusion transformers with compressed attention into engines.",
    )
    parser.add_argument("--version", action="version", version=f"ditc {version('ditc')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_search(commands)
    _add_compile(commands)
    _add_run(commands)
    _add_inspect(commands)
    _add_diff(commands)
    _add_compare(commands)
    _add_verify(commands)
    _add_bench(commands)
    _add_report(commands)
    _add_weights(commands)
    for command in commands.choices.values():
        command.set_defaults(misused=command.error)
    return parser


Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _add_demo(commands: Commands) -> None:
    parser = commands.add_parser(
        "demo", help="compile the shipped model, make images, compare with the uncompressed ones"
    )
    parser.add_argument("-o", "--out", type=Path, default=Path("out/demo"), help="folder to write")
    parser.add_argument("--rounds", type=positive, default=7, help="rounds of timing (7)")
    parser.set_defaults(run=_demo)


def _add_search(commands: Commands) -> None:
    parser = commands.add_parser("search", help="find a plan for a model and a threshold")
    add_search_options(parser)
    parser.set_defaults(run=_search)


def _add_diff(commands: Commands) -> None:
    parser = commands.add_parser("diff", help="show how two plans differ")
    parser.add_argument("first", type=Path, metavar="A", help="plan file or bundle folder")
    parser.add_argument("second", type=Path, metavar="B", help="the same")
    add_json_option(parser)
    parser.set_defaults(run=_diff)


def _add_compare(commands: Commands) -> None:
    parser = commands.add_parser("compare", help="say how close images are to others")
    add_compare_options(parser)
    parser.set_defaults(run=_compare)


def _add_compile(commands: Commands) -> None:
    parser = commands.add_parser("compile", help="compile a model and a plan into a bundle")
    add_compile_options(parser)
    parser.set_defaults(run=_compile)


def _add_run(commands: Commands) -> None:
    parser = commands.add_parser("run", help="generate with a bundle; needs no torch")
    add_run_options(parser)
    parser.set_defaults(run=_run)


def _add_inspect(commands: Commands) -> None:
    parser = commands.add_parser("inspect", help="show what a bundle or a plan holds")
    parser.add_argument("path", type=Path, nargs="?", help="bundle folder or plan.json")
    parser.add_argument(
        "--why", nargs=2, metavar=("STEP", "SITE"), help="explain one cell of a plan"
    )
    parser.add_argument("--schema", action="store_true", help="the JSON Schema of plan files")
    add_variant_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=_inspect)


def _add_verify(commands: Commands) -> None:
    parser = commands.add_parser("verify", help="check a bundle's files and run every step")
    parser.add_argument("bundle", type=Path)
    add_json_option(parser)
    add_engine_options(parser)
    parser.set_defaults(run=_verify)


def _add_bench(commands: Commands) -> None:
    parser = commands.add_parser(
        "bench", help="time a bundle's buckets, or each method at each site of a model"
    )
    add_bench_options(parser)
    parser.set_defaults(run=_bench)


def _add_report(commands: Commands) -> None:
    parser = commands.add_parser("report", help="show a bundle or a plan as one HTML file")
    add_report_options(parser)
    parser.set_defaults(run=_report)


def _add_weights(commands: Commands) -> None:
    parser = commands.add_parser("weights", help="put another checkpoint's weights into a bundle")
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "--from",
        dest="checkpoint",
        type=Path,
        required=True,
        help="safetensors file, or a folder that holds one or several with their index",
    )
    parser.add_argument("-o", "--out", type=Path, help="folder to write (the bundle's own)")
    parser.set_defaults(run=_weights)


# Commands import what they need when they run: torch is there only where something is compiled.


def _demo(options: argparse.Namespace) -> None:
    from .demo import run_demo

    run_demo(options.out, options.rounds)


def _compile(options: argparse.Namespace) -> None:
    from .building import build

    build(options)


def _run(options: argparse.Namespace) -> None:
    from .running import generate

    generate(options)


def _inspect(options: argparse.Namespace) -> None:
    from .comparing import explain
    from .inspecting import inspect, show_schema

    if options.schema:
        show_schema()
    elif options.path is None:
        raise DitcError("inspect: expected a bundle folder or plan.json, or --schema")
    elif options.why is not None:
        step, site = _step(options.why[0]), options.why[1]
        explain(options.path, step, site, variant=options.variant, as_json=options.json)
    else:
        inspect(options.path, variant=options.variant, as_json=options.json)


def _step(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise DitcError(f"--why {text}: expected the number of a step") from None


def _search(options: argparse.Namespace) -> None:
    from .searching import search

    search(options)


def _diff(options: argparse.Namespace) -> None:
    from .comparing import diff

    diff(options.first, options.second, as_json=options.json)


def _compare(options: argparse.Namespace) -> None:
    try:
        from .comparing_images import compare
    except ModuleNotFoundError as error:
        raise DitcError(f"{error.name} is not installed: {install('dev')}") from error
    compare(options)


def _verify(options: argparse.Namespace) -> None:
    from .running import verify

    verify(options)


def _bench(options: argparse.Namespace) -> None:
    if options.sites != (options.out is not None):
        options.misused("--sites and --out go together")
    from .bench import bench, check_bench_options, check_sites_options

    if options.sites:
        check_sites_options(options)
        from .bench_sites import bench_sites

        bench_sites(options)
        return
    check_bench_options(options)
    options.bundle = Path(options.what)
    bench(options)


def _report(options: argparse.Namespace) -> None:
    from .report import report

    report(options)


def _weights(options: argparse.Namespace) -> None:
    from ditc.export.variants import swap_weights

    place = swap_weights(options.bundle, options.checkpoint, options.out or options.bundle)
    sys.stdout.write(f"{place}: weights of {options.checkpoint}, graphs as they were\n")
