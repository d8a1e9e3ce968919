"""What a generation draws and feeds: latents, noise, guidance scale, the model's inputs."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from .calls import in_batch
from .engine import Array
from .errors import BundleError, EngineError
from .guidance import Latents
from .inputs import check_array
from .manifest import InputInfo, Manifest
from .sampler import SamplerTable

__all__ = [
    "DEFAULT_GUIDANCE_SCALE",
    "as_float32",
    "generator",
    "guidance_scale",
    "initial_latents",
    "model_inputs",
    "noise_of",
    "sampler_of",
]

DEFAULT_GUIDANCE_SCALE = 4.0
SCALARS = (int, float, np.number)


def sampler_of(manifest: Manifest) -> tuple[SamplerTable, InputInfo]:
    """Return a bundle's sampler, and the input that holds the latents.

    Raises:
        BundleError: if it has none.
    """
    latents = manifest.input_of("latents")
    if manifest.sampler is None or latents is None:
        raise BundleError(
            "the bundle has no sampler or no latents input: attach it to its pipeline, use step() "
            "in a loop of your own, or compile without --no-sampler (sampler= in Python)"
        )
    return manifest.sampler, latents


def guidance_scale(manifest: Manifest, scale: float | None) -> float:
    """Return the scale to guide with, 1 where there is no guidance.

    Raises:
        EngineError: if it is no finite number, or there is nothing to guide.
    """
    if manifest.cfg is None:
        if scale not in (None, 1.0):
            raise EngineError(
                f"guidance_scale is {scale}, but the bundle has no guidance, expected None or 1"
            )
        return 1.0
    if scale is None:
        return DEFAULT_GUIDANCE_SCALE
    if np.ndim(scale) or not isinstance(scale, SCALARS) or not np.isfinite(scale):
        raise EngineError(f"guidance_scale is {scale}, expected a finite number")
    return float(scale)


def model_inputs(
    manifest: Manifest,
    latents: Latents,
    timestep: float,
    scale: float,
    conditioning: Mapping[str, Array],
) -> dict[str, Array]:
    """Return what the model takes at a step, by name.

    Args:
        manifest: says the inputs, in the shapes of the batch that is run.
        latents: scaled as the model takes them, `[samples, …]`; with halves in one batch both
            take the same.
        timestep: that the model is told.
        scale: of guidance, for graphs that guide their output themselves.
        conditioning: of the call.
    """
    inputs = dict(conditioning)
    for info in manifest.inputs:
        if info.role == "latents":
            whole = in_batch(manifest.cfg)
            batch = np.concatenate([latents, latents]) if whole else latents
            inputs[info.name] = np.ascontiguousarray(batch, info.dtype)
        if info.role == "timestep":
            inputs[info.name] = np.full(info.shape, timestep, info.dtype)
        if info.role == "guidance":
            inputs[info.name] = np.full(info.shape, scale, info.dtype)
    return inputs


def generator(seed: int) -> np.random.Generator:
    """Return what latents and noise are drawn from.

    Raises:
        EngineError: if the seed is no integer of at least 0.
    """
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise EngineError(f"seed is {seed}, expected an integer of at least 0")
    return np.random.default_rng(int(seed))


def initial_latents(
    draw: np.random.Generator,
    table: SamplerTable,
    shape: tuple[int, ...],
    given: npt.ArrayLike | None,
) -> Latents:
    """Return the latents to begin with: those given, or noise of the sampler's initial scale."""
    if given is not None:
        return as_float32("latents", given, shape)
    return draw.standard_normal(shape, np.float32) * np.float32(table.init_noise_scale)


def noise_of(
    k: int,
    table: SamplerTable,
    draw: np.random.Generator,
    given: Latents | None,
    shape: tuple[int, ...],
) -> Latents | None:
    """Return the noise of step `k`, None if the sampler takes none there."""
    if not table.noise[k]:
        return None
    noise: Latents = draw.standard_normal(shape, np.float32) if given is None else given[k]
    return noise


def as_float32(name: str, value: npt.ArrayLike, shape: tuple[int, ...]) -> Latents:
    """Return an array of the caller's as float32, a copy, checked to be of the shape."""
    checked = check_array(InputInfo(name, shape, "float32", "latents"), value)
    return np.array(checked, np.float32)
