"""Find the model a command names: a pipeline folder, a hub id, `demo`, or `module:factory`."""

import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from ditc.passes import Recording, record
from ditc.runtime.errors import DitcError, first_line

from .calling import calling
from .glyphs import IMAGE_SIZE, NULL_CLASS, demo_scheduler, load_demo_model
from .samples import with_samples

__all__ = ["DEMO_PLAN", "check_steps", "demo_recording", "load_recording", "parse_call"]

PATCH = 2
"""Pixels a side of what is one token of the demo model."""
MAX_SIDE = 1024
DEMO_PLAN = Path(__file__).parent / "demo_model" / "plan.json"
"""A plan for the demo model, found without latencies: for the greatest saving of FLOPs."""


def load_recording(
    model: str,
    steps: int,
    call: Mapping[str, object],
    samples: int | None,
    *,
    loaded: bool = True,
) -> Recording:
    """Load a model and record one call of its denoiser.

    Args:
        model: `demo`, a folder of a pipeline or of Open-Sora's checkpoint, a hub id, or
            `package.module:factory`, where the factory takes nothing and returns a
            `ditc.passes.Recording`.
        steps: number of denoising steps the pipeline is asked for.
        call: further arguments of the pipeline.
        samples: images at once; None for one of `demo`, and as many as the call makes elsewhere.
        loaded: whether a pipeline's denoiser is needed with its weights; it can be compiled
            without.

    Raises:
        DitcError: if the model can't be found or loaded.
    """
    if model == "demo":
        return demo_recording(samples or 1, _side(call, "height"), _side(call, "width"))
    if (Path(model) / "config.json").is_file():
        return _from_checkpoint(Path(model), steps, call)
    if ":" in model and not Path(model).exists():
        return _from_factory(model)
    if model.startswith((".", "/", "~")) and not Path(model).exists():
        raise DitcError(f"model {model}: there is no such folder")
    return _from_pipeline(model, steps, call, samples, loaded)


def _side(call: Mapping[str, object], name: str) -> int:
    side = call.get(name, IMAGE_SIZE)
    if not isinstance(side, int) or not 0 < side <= MAX_SIDE or side % PATCH:
        raise DitcError(f"demo: {name} is {side}, expected a multiple of {PATCH} up to {MAX_SIDE}")
    return side


def demo_recording(
    samples: int = 1, height: int = IMAGE_SIZE, width: int = IMAGE_SIZE
) -> Recording:
    """Return the demo model with example arguments: both halves, conditional first.

    It was trained at 32 pixels a side; at others it runs, and what it makes are no glyphs.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(samples) % NULL_CLASS
    kwargs = {
        "hidden_states": torch.randn(2 * samples, 1, height, width, generator=generator),
        "timestep": torch.full((2 * samples,), 500.0),
        "class_labels": torch.cat([labels, torch.full((samples,), NULL_CLASS)]),
    }
    return Recording(load_demo_model(), kwargs, "cond-first", demo_scheduler())


def parse_call(text: str) -> dict[str, object]:
    """Parse a pipeline's arguments from JSON.

    Raises:
        DitcError: if the text is no JSON object.
    """
    try:
        call = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DitcError(f"--call: no valid JSON: {error}") from error
    if not isinstance(call, dict):
        raise DitcError(f"--call: expected a JSON object, found {type(call).__name__}")
    return call


def check_steps(call: Mapping[str, object], steps: int, whose: str) -> None:
    """Refuse a call that asks for another number of steps than a plan has, or is to have.

    Args:
        call: arguments of the pipeline.
        steps: how many there are.
        whose: what says so, for the message.

    Raises:
        DitcError: if the numbers differ.
    """
    asked = call.get("num_inference_steps", steps)
    if asked != steps:
        raise DitcError(
            f"--call asks for {asked} steps, {whose} {steps}: leave num_inference_steps out"
        )


def _from_checkpoint(folder: Path, steps: int, call: Mapping[str, object]) -> Recording:
    from .open_sora_loading import is_open_sora
    from .open_sora_recording import open_sora_recording

    if not is_open_sora(folder):
        raise DitcError(
            f"model {folder}: holds a model and no pipeline, expected a pipeline's folder or "
            "Open-Sora's checkpoint"
        )
    return open_sora_recording(folder, steps, call)


def _from_factory(name: str) -> Recording:
    module_name, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:  # an installed command doesn't look there by itself
        sys.path.insert(0, str(Path.cwd()))
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # whatever the user's code ran into
        raise DitcError(f"model {name}: can't be imported: {error}") from error
    try:
        made = factory()
    except DitcError:
        raise
    except Exception as error:
        raise DitcError(f"model {name}: raised {type(error).__name__}: {error}") from error
    if not isinstance(made, Recording):
        raise DitcError(
            f"model {name}: the factory returned {type(made).__name__}, expected a "
            "ditc.passes.Recording"
        )
    return made


def _from_pipeline(
    model: str, steps: int, call: Mapping[str, object], samples: int | None, loaded: bool
) -> Recording:
    from .pipelines import open_pipeline

    try:
        pipe, weights = open_pipeline(model, loaded=loaded)
    except (OSError, ValueError, ImportError) as error:
        raise DitcError(
            f"model {model}: is neither 'demo', a pipeline folder, package.module:factory, nor a "
            f"hub id that can be loaded: {_why(model, error)}"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    with calling(model, type(pipe).__name__):
        more = call if samples is None else with_samples(pipe, call, samples)
        return record(pipe, call={"num_inference_steps": steps, **more}, weights=weights)


def _why(model: str, error: BaseException) -> str:
    """Return an error's first line: where there is no such folder, of what the hub ran into."""
    while not Path(model).exists():
        deeper = error.__cause__ or error.__context__
        if deeper is None:
            break
        error = deeper
    return first_line(error)
