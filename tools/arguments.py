"""Arguments of the `ditc` command: those of commands that take many, or that several take."""

import argparse
from pathlib import Path

from ditc.runtime.targets import PRECISIONS, WEIGHTS_MODES

from .argument_types import batch_range, limit, positive, seed, target, variant, window

__all__ = [
    "add_bench_options",
    "add_compare_options",
    "add_compile_options",
    "add_engine_options",
    "add_json_option",
    "add_report_options",
    "add_run_options",
    "add_search_options",
    "add_variant_option",
    "add_window_option",
]

CLIP = "openai/clip-vit-large-patch14"
"""The model of the paper's CLIP scores."""


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """Add what `ditc search` takes."""
    parser.add_argument("model", metavar="MODEL", help="as for compile")
    parser.add_argument("-o", "--out", type=Path, required=True, help="plan file to write")
    parser.add_argument("--steps", type=positive, default=20, help="denoising steps (20)")
    parser.add_argument(
        "--search",
        choices=("greedy", "local", "ilp"),
        default="greedy",
        help="greedy: by the whole model's output, about a run of the model a candidate; local: by "
        "the site's own output, about one run a step, blind to what later layers make of an error; "
        "ilp: at the site too, all sites of a step at once, about two runs a step; δ of both is of "
        "squared errors (greedy)",
    )
    add_window_option(parser, "band")
    parser.add_argument(
        "--latency",
        type=Path,
        help="what 'ditc bench MODEL --sites' measured: no method that isn't faster there is tried",
    )
    goal = parser.add_mutually_exclusive_group()
    goal.add_argument("--threshold", type=float, help="loss allowed, δ (0.1)")
    goal.add_argument(
        "--speedup",
        type=float,
        help="find the least threshold that is so many times as fast, by --latency if given, else "
        "by multiply-adds; runs about ten searches, so that local and ilp are the ones to use",
    )
    goal.add_argument(
        "--budget-ms",
        type=float,
        help="find the least threshold whose generation takes so long; needs --latency",
    )
    parser.add_argument(
        "--calibration",
        type=positive,
        help="samples to judge by (4 for demo, else as many as the call makes)",
    )
    parser.add_argument("--guidance-scale", type=float, default=4.0, help="(4.0)")
    parser.add_argument("--seed", type=seed, default=0, help="of latents and noise (0)")
    parser.add_argument("--call", default="{}", help="the pipeline's arguments as a JSON object")


def add_compile_options(parser: argparse.ArgumentParser) -> None:
    """Add what `ditc compile` takes."""
    parser.add_argument(
        "model", metavar="MODEL", help="pipeline folder, hub id, demo, or package.module:factory"
    )
    plans = parser.add_mutually_exclusive_group(required=True)
    plans.add_argument("--plan", type=Path, help="plan file (JSON)")
    plans.add_argument(
        "--variant",
        action="append",
        type=variant,
        metavar="HEIGHTxWIDTH=PLAN",
        help="a resolution and its plan; given several times, all share the weights of one bundle",
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="bundle folder to write")
    parser.add_argument(
        "--target",
        type=target,
        default="onnx",
        help="to lower to: onnx, tensorrt-rtx:sm89,sm120 (GPUs to build for, none is needed), "
        "tensorrt (for the GPU at hand), torch-tensorrt or torch-tensorrt:sm89 (straight from "
        "torch's graphs) (onnx)",
    )
    parser.add_argument(
        "--weights",
        choices=WEIGHTS_MODES,
        default="inputs",
        help="of engines: inputs for one store that all share, baked for a model's weights in "
        "each (inputs)",
    )
    parser.add_argument(
        "--window-kernel",
        action="store_true",
        help="of target tensorrt: windows by a kernel of their own in the engines, not as blocks",
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="(fp32)")
    add_window_option(parser, "those of the plan")
    parser.add_argument(
        "--max-buckets",
        type=limit,
        default="knee",
        metavar="K",
        help="merge steps to so many graphs; 'all' for none merged, 'knee' to stop where a further "
        "graph brings less than an average one (knee)",
    )
    groups = parser.add_mutually_exclusive_group()
    groups.add_argument(
        "--near",
        type=Path,
        metavar="BUNDLE",
        help="merge steps as in that bundle, so that a step that differs builds two graphs at most "
        "(the bundle that is replaced, where it costs at most 10%% more)",
    )
    groups.add_argument("--regroup", action="store_true", help="merge steps near no bundle")
    parser.add_argument(
        "--max-slot-bytes",
        type=positive,
        metavar="BYTES",
        help="share less until what is kept between steps fits",
    )
    parser.add_argument(
        "--max-memory-bytes",
        type=positive,
        metavar="BYTES",
        help="the same until weights, the values of a step and what is kept fit, as predicted",
    )
    parser.add_argument(
        "--latency", type=Path, help="what 'ditc bench MODEL --sites' measured, to merge steps by"
    )
    parser.add_argument(
        "--cache", type=Path, help="folder that keeps graphs for later builds (~/.cache/ditc)"
    )
    parser.add_argument(
        "--no-prologue",
        action="store_true",
        help="compute in every step what doesn't depend on the latents, too",
    )
    parser.add_argument(
        "--fold-halves",
        action="store_true",
        help="compute once what is the same in both halves of guidance; the bundle then refuses "
        "latents that differ between them",
    )
    parser.add_argument(
        "--fuse-guidance",
        action="store_true",
        help="have graphs guide their output: half of it, and the scale as an input",
    )
    parser.add_argument(
        "--fold-timesteps",
        action="store_true",
        help="have a graph that runs one step hold its timestep; with --no-prologue",
    )
    parser.add_argument(
        "--no-sampler",
        action="store_true",
        help="leave the pipeline's scheduler out: the bundle is to be attached to the pipeline, or "
        "to be run step by step",
    )
    parser.add_argument(
        "--no-decoder",
        action="store_true",
        help="leave the pipeline's autoencoder out: the bundle makes latents",
    )
    parser.add_argument("--jobs", type=positive, help="graphs to build at once (as many as cores)")
    parser.add_argument("--samples", type=positive, help="images at once (as the call makes)")
    parser.add_argument(
        "--dynamic",
        type=batch_range,
        metavar="batch=LEAST..MOST",
        help="make graphs that serve so many samples at once, as batch=1..8; limits on bytes hold "
        "for the most",
    )
    parser.add_argument("--call", default="{}", help="the pipeline's arguments as a JSON object")
    parser.add_argument(
        "--ignore-model", action="store_true", help="use a plan that was made for another model"
    )


def add_window_option(parser: argparse.ArgumentParser, default: str) -> None:
    """Add which tokens see which where a site has a window."""
    parser.add_argument(
        "--window",
        type=window,
        metavar="KIND",
        help="band or band:R for R tokens on each side (an eighth of all), block:N for whole "
        "blocks of N, tile:8x8 or tile:2x8x8 for tiles of the image's or the video's grid and "
        f"those that touch them, tile:8x8:2 or tile:8x8:2x1 to see further ({default})",
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add what `ditc run` takes."""
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        help="file to write: .png of pictures, .gif or .mp4 of videos, .npy of latents",
    )
    parser.add_argument("--seed", type=seed, default=0, help="of latents and noise (0)")
    parser.add_argument("--guidance-scale", type=float, help="default: 4.0 where there is guidance")
    parser.add_argument("--batch", type=positive, help="samples, of a bundle that serves a range")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=VALUES",
        help="conditioning: numbers with commas between, or a .npy file; under guidance as many as "
        "samples, or twice as many, with the unconditional half in the batch's order",
    )
    parser.add_argument(
        "--negative", action="append", default=[], metavar="NAME=VALUES", help="unconditional half"
    )
    parser.add_argument("--fps", type=positive, help="frames a second of a video file (24)")
    add_engine_options(parser)


def add_bench_options(parser: argparse.ArgumentParser) -> None:
    """Add what `ditc bench` takes."""
    parser.add_argument("what", metavar="BUNDLE|MODEL", help="bundle folder; with --sites a MODEL")
    parser.add_argument("--rounds", type=positive, default=9, help="rounds of timing (9)")
    parser.add_argument(
        "--sites", action="store_true", help="time the sites of a model, as search --latency reads"
    )
    parser.add_argument("-o", "--out", type=Path, help="latencies to write, with --sites")
    add_window_option(parser, "band")
    parser.add_argument("--samples", type=positive, help="--sites: at once (as the call makes)")
    parser.add_argument("--call", default="{}", help="--sites: the pipeline's arguments, JSON")
    add_json_option(parser)
    add_engine_options(parser)


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """Add what `ditc report` takes."""
    parser.add_argument("path", type=Path, help="bundle folder or plan.json")
    add_variant_option(parser)
    parser.add_argument("-o", "--out", type=Path, required=True, help="HTML file to write")
    parser.add_argument("--png", type=Path, help="write the heat map as a picture too")
    parser.add_argument("--bench", type=Path, help="what 'ditc bench --json' printed of the bundle")
    parser.add_argument("--demo", type=Path, help="folder that 'ditc demo' wrote")
    parser.add_argument(
        "--pareto",
        type=Path,
        help="JSON list of plans: latency_ms or multiply_adds_left, loss, threshold, label",
    )


def add_compare_options(parser: argparse.ArgumentParser) -> None:
    """Add what `ditc compare` takes."""
    parser.add_argument("first", type=Path, metavar="A", help="folder of .png or .npy, or one file")
    parser.add_argument("second", type=Path, metavar="B", help="the same: what they should be")
    parser.add_argument(
        "--features", choices=("inception", "glyphs"), default="inception", help="Fréchet's"
    )
    parser.add_argument("--prompts", type=Path, help="text file, a line an image, for CLIP score")
    parser.add_argument("--clip", default=CLIP, help=f"folder or cached hub id ({CLIP})")
    add_json_option(parser)


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add which variant's engines run, and how."""
    add_variant_option(parser)
    parser.add_argument(
        "--provider", action="append", help="ONNX Runtime provider, CPUExecutionProvider if none"
    )
    parser.add_argument("--threads", type=positive, help="threads within an operator")
    parser.add_argument(
        "--cuda-graphs", action="store_true", help="launch each TensorRT engine as one graph"
    )


def add_variant_option(parser: argparse.ArgumentParser) -> None:
    """Add which variant of a bundle is meant."""
    parser.add_argument(
        "--variant", metavar="NAME", help="which one, of a bundle that holds several"
    )


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add whether JSON is printed."""
    parser.add_argument("--json", action="store_true", help="for programs to read")
